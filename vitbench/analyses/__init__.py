"""Shelf of analyses: one figure of a paper, one file, with a record, `analyze()`, `draw()` and `table()`."""

from vitbench.registry import Entry, Shelf

ANALYSES = Shelf(
    "analysis",
    Entry(
        "token-similarity", "vitbench.analyses.token_similarity", "DeiT's class and distillation token, layer by layer."
    ),
    Entry("cka", "vitbench.analyses.cka", "Similarity of the layers of one model, or of two."),
    Entry("receptive-field", "vitbench.analyses.receptive_field", "Effective receptive field of each layer."),
    Entry("feature-maps", "vitbench.analyses.feature_maps", "Feature maps, and the share of dead channels."),
)
