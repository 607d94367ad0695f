"""Shelf of metrics: one number-giver, one file, with a record and `measure()`."""

from vitbench.registry import Entry, Shelf

METRICS = Shelf(
    "metric",
    Entry(
        "flops", "vitbench.metrics.flops", "parameters, multiply-accumulates, FLOPs and activations of a forward pass"
    ),
    Entry("throughput", "vitbench.metrics.throughput", "inputs a second and latency, of a pass or of a training step"),
)
