"""Shelf of analyses: one figure of a paper, one file, with a record, `analyze()`, `draw()` and `table()`."""

from vitbench.registry import Entry, Shelf

ANALYSES = Shelf(
    "analysis",
    Entry("attn-distance", "vitbench.analyses.attention_distance", "how far each head looks: ViT's Fig. 7 right"),
    Entry("attn-rollout", "vitbench.analyses.attention_rollout", "where in the input the output looks: ViT's Fig. 6"),
    Entry("attn-entropy", "vitbench.analyses.attention_entropy", "how many places each head looks at"),
)
