"""Shelf of charts: rows of result files become a figure, one chart a file.

Each has `plot(rows, ...)`, whose other arguments are the options it takes, by the names they have on the command line; one
that can do without rows has a default for them. A chart that also has something to list has `listing()`, which takes the same
and gives a table.
"""

from vitbench.registry import Entry, Shelf

CHARTS = Shelf(
    "chart",
    Entry(
        "tradeoff", "vitbench.charts.tradeoff", "published top-1, or any column, against cost, with the Pareto front"
    ),
    Entry("scaling", "vitbench.charts.scaling", "speed over the input's size (ViT's Fig. 12), or over the batch"),
    Entry("fig5", "vitbench.charts.fig5", "accuracy against pre-training compute: ViT's Fig. 5, or your own models"),
    Entry(
        "roofline", "vitbench.charts.roofline", "achieved FLOP/s under what the machine can do: models, or one's blocks"
    ),
    Entry("latency", "vitbench.charts.latency", "the samples, median and percentiles of each row"),
    Entry("memory", "vitbench.charts.memory", "what a pass holds, part by part, predicted and measured"),
)
