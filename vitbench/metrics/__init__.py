"""Shelf of metrics: one number-giver, one file, with a record and `measure()`."""

from vitbench.registry import Entry, Shelf

METRICS = Shelf(
    "metric",
    Entry(
        "flops", "vitbench.metrics.flops", "parameters, multiply-accumulates, FLOPs and activations of a forward pass"
    ),
    Entry("throughput", "vitbench.metrics.throughput", "inputs a second and latency, of a pass or a training step"),
    Entry("roofline", "vitbench.metrics.roofline", "FLOP/s over FLOPs a byte, of a forward pass and its blocks"),
    Entry("fingerprint", "vitbench.metrics.fingerprint", "what a forward pass gives, whatever the time it takes"),
    Entry("memory", "vitbench.metrics.memory", "memory of a pass, predicted and measured"),
    Entry("memory_predicted", "vitbench.metrics.memory", "memory of a pass, predicted alone: nothing is run"),
    Entry("max_batch", "vitbench.metrics.max_batch", "the largest batch that fits into memory"),
)
