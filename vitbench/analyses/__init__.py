"""Shelf of analyses: one figure of a paper, one file, with a record, `analyze()`, `draw()` and `table()`."""

from vitbench.registry import Entry, Shelf

ANALYSES = Shelf(
    "analysis",
    Entry(
        "embedding-filters", "vitbench.analyses.embedding_filters", "principal components of the first layer's filters"
    ),
    Entry("posemb-similarity", "vitbench.analyses.position_similarity", "cosine similarity of position embeddings"),
    Entry("attn-distance", "vitbench.analyses.attention_distance", "how far each head looks"),
    Entry("attn-rollout", "vitbench.analyses.attention_rollout", "where in the input the output looks"),
    Entry("attn-entropy", "vitbench.analyses.attention_entropy", "how many places each head looks at"),
    Entry(
        "token-similarity", "vitbench.analyses.token_similarity", "DeiT's class and distillation token, layer by layer"
    ),
    Entry("position-bias", "vitbench.analyses.position_bias", "relative position bias of each head"),
    Entry("cka", "vitbench.analyses.cka", "similarity of the layers of one model, or of two"),
    Entry("receptive-field", "vitbench.analyses.receptive_field", "effective receptive field of each layer"),
    Entry("feature-maps", "vitbench.analyses.feature_maps", "feature maps, and the share of dead channels"),
)
