"""What the measuring commands show: rows as tables for people."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vitbench.records import Column, Row, RunSetting, Table, flatten, headings
from vitbench.units import count, milliseconds, size
from vitbench.units import memory as memory_text

Flat = Mapping[str, Any]

# What stands in columns or notes of its own.
_NO_CONDITION = ("model", "input_shape", "batch_size", "batch_size_asked")


def throughput(rows: Sequence[Row]) -> Table:
    """Shows rows of `vitbench throughput`."""
    return _table(rows, _times())


def roofline(rows: Sequence[Row]) -> Table:
    """Shows rows of `vitbench roofline`; notes say how much of a model's time goes to blocks that memory limits."""
    shown = [
        Column(heading="Traffic", text=_bytes("traffic_bytes"), numeric=True),
        Column(heading="FLOP/byte", text=lambda row: _rate(row.get("intensity_flops_per_byte")), numeric=True),
        Column(heading="Median", text=_time("latency_median_ms"), numeric=True),
        Column(heading="FLOP/s", text=_count("achieved_flops_per_s"), numeric=True),
        Column(heading="Roof", text=_count("roof_flops_per_s"), numeric=True),
        Column(heading="Of roof", text=_share("roof_share"), numeric=True),
        Column(heading="Peak FLOP/s", text=_count("peak_flops_per_s"), numeric=True),
        Column(heading="Bytes/s", text=_count("bandwidth_bytes_per_s"), numeric=True),
        Column(heading="Doubts", text=lambda row: " ".join(row.get("warnings", ())), folds=True),
    ]
    notes = ["Roof: the lower of the peak and FLOP/byte x bytes/s. Traffic: as if nothing stayed in a cache."]
    for row in rows:
        found, speed = row.findings.get("roofline"), row.findings.get("throughput")
        if found is not None and speed is not None:
            ridge = speed.peak_flops_per_s / found.bandwidth_bytes_per_s
            below = sum(seconds for _, flops, traffic, seconds in found.blocks if flops < ridge * traffic)
            share = 100 * below / (sum(seconds for *_, seconds in found.blocks) or 1.0)
            what = f"{share:.0f} % of the time goes to blocks below {ridge:.3g} FLOP/byte, where memory is the limit"
            notes.append(f"{row.setting.model}: {what}.")
    return _table(rows, shown, *notes)


def memory(rows: Sequence[Row]) -> Table:
    """Shows rows of `vitbench memory`: each part predicted, and what was measured beside it."""
    parts = [("Weights", "weights"), ("Gradients", "gradients"), ("Optimizer", "optimizer")]
    shown = [
        *(Column(heading=heading, text=_beside(name), numeric=True) for heading, name in parts),
        Column(heading="Activations", text=_beside("activations"), numeric=True),
        Column(heading="Workspace", text=_beside("workspace"), numeric=True),
        *_peaks(),
        Column(heading="Reserved", text=_bytes("measured_reserved_bytes"), numeric=True),
        Column(heading="Driver", text=_bytes("measured_driver_bytes"), numeric=True),
    ]
    note = "Parts: predicted, and in brackets measured. They peak at different times and need not sum to the peak."
    return _table(rows, shown, note)


def max_batch(rows: Sequence[Row]) -> Table:
    """Shows rows of `vitbench max-batch`."""
    shown = [
        Column(heading="Largest batch", text=_number("max_batch"), numeric=True),
        Column(heading="Of memory", text=_bytes("limit_bytes"), numeric=True),
        Column(heading="Peak", text=_bytes("peak_bytes"), numeric=True),
        Column(heading="With one more", text=_bytes("next_peak_bytes"), numeric=True),
        Column(heading="Weights", text=_bytes("weights_bytes"), numeric=True),
        Column(heading="Activations", text=_bytes("activations_bytes"), numeric=True),
        Column(heading="Method", text=lambda row: row.get("max_batch_method", "")),
    ]
    note = "Predicted: tensors alone, without the driver's own memory and the allocator's holes."
    predicted = any(getattr(row.findings.get("max_batch"), "max_batch_method", "") == "predicted" for row in rows)
    return _table(rows, shown, *([note] if predicted else []), batch=False)


def bench(rows: Sequence[Row]) -> Table:
    """Shows rows of `vitbench bench`."""
    counts = [
        Column(heading="Params", text=_count("params"), numeric=True),
        Column(heading="MACs", text=_count("macs"), numeric=True),
    ]
    return _table(rows, [*counts, *_times(), *_peaks()])


def _table(rows: Sequence[Row], shown: Sequence[Column], *notes: str, batch: bool = True) -> Table:
    flat = [flatten(row) for row in rows]
    failed = any(row.status != "ok" for row in rows)
    columns = [
        Column(heading="Model", text=lambda row: row["model"]),
        Column(heading="Batch x input" if batch else "Input", text=_batch_and_input if batch else _input),
        *_varying(flat),
        *shown,
        *([Column(heading="Status", text=lambda row: row["status"])] if failed else []),
    ]
    # A column that no row fills, such as the backward pass of inference, is for the files alone.
    columns = [column for column in columns if any(column.text(row) for row in flat)]
    return Table(rows=flat, columns=columns, notes=[*notes, *_notes(flat)])


def _times() -> list[Column]:
    return [
        Column(heading="Inputs/s", text=lambda row: _rate(row.get("throughput_per_s")), numeric=True),
        Column(heading="Median", text=_time("latency_median_ms"), numeric=True),
        Column(heading="95 % interval", text=_interval, numeric=True),
        Column(heading="p90", text=_time("latency_p90_ms"), numeric=True),
        Column(heading="p95", text=_time("latency_p95_ms"), numeric=True),
        Column(heading="p99", text=_time("latency_p99_ms"), numeric=True),
        Column(heading="Forward", text=_time("forward_median_ms"), numeric=True),
        Column(heading="Backward", text=_time("backward_median_ms"), numeric=True),
        Column(heading="Optimizer", text=_time("optimizer_median_ms"), numeric=True),
        Column(heading="First call", text=_time("first_call_ms"), numeric=True),
        Column(heading="Compiling", text=_seconds, numeric=True),
        Column(heading="Samples", text=_number("samples"), numeric=True),
        Column(heading="Of peak", text=_share("utilization"), numeric=True),
        Column(heading="Doubts", text=lambda row: " ".join(row.get("warnings", ())), folds=True),
    ]


def _peaks() -> list[Column]:
    return [
        Column(heading="Peak, predicted", text=_bytes("predicted_peak_bytes"), numeric=True),
        Column(heading="Peak, measured", text=_bytes("measured_peak_bytes"), numeric=True),
    ]


def _varying(flat: Sequence[Flat]) -> list[Column]:
    """Gives columns for the settings that are not the same in all rows; what is the same stands below the table."""
    return [
        Column(heading=heading, text=_said(name))
        for name, heading in headings(RunSetting).items()
        if name not in _NO_CONDITION and len({_said(name)(row) for row in flat}) > 1
    ]


def _notes(flat: Sequence[Flat]) -> list[str]:
    first = flat[0]
    words = {"amp": "AMP", "channels_last": "channels-last", "grad_checkpointing": "gradient checkpointing"}
    parts = []
    for name in headings(RunSetting):
        if name in _NO_CONDITION or len({_said(name)(row) for row in flat}) > 1 or not (same := _said(name)(first)):
            continue
        if name == "threads":
            parts += [f"{same} thread{'' if same == '1' else 's'}"] if first["device"] == "cpu" else []
        else:
            parts.append(f"compiled by {same}" if name == "compile" else words.get(name, same))
    where = next(filter(None, (row.get("environment_device_name") for row in flat)), "")
    notes = [f"{', '.join(filter(None, (*parts, where)))}; torch {first.get('environment_torch')}."]
    if any(row.get("repeats", 1) > 1 for row in flat):
        notes.append("Interval: Student's, over the medians of the processes.")
    for row in flat:
        if row["note"]:
            begin = "" if row["status"] == "ok" else f"{row['status']}: "
            notes.append(f"{row['model']}, batch {row['batch_size']}: {begin}{row['note']}")
    return notes


def _input(row: Flat) -> str:
    return size(row["input_shape"])


def _batch_and_input(row: Flat) -> str:
    return f"{row['batch_size']} x {_input(row)}" if row["input_shape"] else str(row["batch_size"])


def _said(name: str) -> Callable[[Flat], str]:
    def text(row: Flat) -> str:
        value = row.get(name)
        return "yes" if value is True else "" if value in (None, False) else str(value)

    return text


def _count(name: str) -> Callable[[Flat], str]:
    return lambda row: count(row[name]) if row.get(name) is not None else ""


def _number(name: str) -> Callable[[Flat], str]:
    return lambda row: str(row[name]) if row.get(name) is not None else ""


def _bytes(name: str) -> Callable[[Flat], str]:
    return lambda row: memory_text(row[name]) if row.get(name) is not None else ""


def _beside(name: str) -> Callable[[Flat], str]:
    """Gives what was predicted, and in brackets what was measured; nothing where both are zero, as gradients in inference."""

    def text(row: Flat) -> str:
        predicted, measured = (row.get(f"{kind}_{name}_bytes") for kind in ("predicted", "measured"))
        if not predicted and not measured:
            return ""
        left = memory_text(predicted) if predicted is not None else ""
        right = f"({memory_text(measured)})" if measured is not None else ""
        return f"{left} {right}".strip()

    return text


def _rate(value: float | None) -> str:
    return "" if value is None else count(round(value, 2) if value < 1000 else value)


def _time(name: str) -> Callable[[Flat], str]:
    return lambda row: milliseconds(row[name]) if row.get(name) is not None else ""


def _seconds(row: Flat) -> str:
    return f"{row['compile_s']:.1f} s" if row.get("compile_s") is not None else ""


def _interval(row: Flat) -> str:
    if row.get("latency_low_ms") is None:
        return ""
    return f"{milliseconds(row['latency_low_ms'])} to {milliseconds(row['latency_high_ms'])}"


def _share(name: str) -> Callable[[Flat], str]:
    return lambda row: f"{row[name] * 100:.1f} %" if row.get(name) is not None else ""
