"""Shelf of charts: rows of result files become a figure, one chart a file, with `plot()`."""

from vitbench.registry import Entry, Shelf

CHARTS = Shelf(
    "chart",
    Entry("scaling", "vitbench.charts.scaling", "speed and largest batch over the input's size: ViT's Fig. 12"),
    Entry(
        "roofline", "vitbench.charts.roofline", "achieved FLOP/s under what the machine can do: models, or one's blocks"
    ),
)
