"""Shelf of analyses: one figure of a paper, one file, with a record, `analyze()`, `draw()` and `table()`."""

from vitbench.registry import Entry, Shelf

ANALYSES = Shelf(
    "analysis",
    Entry(
        "embedding-filters",
        "vitbench.analyses.embedding_filters",
        "principal components of the first layer's filters, with their variance (ViT, Fig. 7 left)",
    ),
    Entry(
        "posemb-similarity",
        "vitbench.analyses.position_similarity",
        "cosine similarity of position embeddings, also after resampling (ViT, Figs. 7 centre and 10)",
    ),
    Entry(
        "position-bias",
        "vitbench.analyses.position_bias",
        "relative position bias of each head, and how local it is by itself (Swin, CoAtNet, MaxViT, BEiT)",
    ),
)
