"""`vitbench list` and `vitbench show`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from vitbench import catalog, published
from vitbench.cli.options import FamilyOption, FormatOption, OutputOption, complete_model, emit
from vitbench.errors import BadInput
from vitbench.records import Column, Table
from vitbench.units import printed, size


def list_(
    pattern: Annotated[
        str | None,
        typer.Argument(help="Only names that contain this, or fit it as a glob.", autocompletion=complete_model),
    ] = None,
    family: FamilyOption = None,
    format: FormatOption = None,
    output: OutputOption = None,
) -> None:
    """List every architecture: name, family, paper, input, published parameters and top-1."""
    rows = [row for name in family for row in catalog.of_family(name)] if family else list(catalog.VARIANTS.values())
    if pattern is not None:
        glob = pattern if any(sign in pattern for sign in "*?[") else f"*{pattern}*"
        fitting = {row.name for row in catalog.match(glob)}
        rows = [row for row in rows if row.name in fitting]
        if not rows:
            # Raises with the near misses of what is in the catalog.
            found = catalog.find(pattern)
            if family:
                raise BadInput(f"No model of that family matches {pattern!r}.")
            rows = [found]
    flat = [_summary(row) for row in rows]
    columns = (
        Column(heading="Name", text=lambda row: row["name"]),
        Column(heading="Family", text=lambda row: row["family"]),
        Column(heading="Kind", text=lambda row: row["modality"]),
        Column(heading="Input", text=lambda row: size(row["input_shape"])),
        Column(heading="Params", text=lambda row: _printed(row["published_params"]), numeric=True),
        Column(
            heading="Top-1",
            text=lambda row: f"{row['published_top1']:g} %" if row["published_top1"] else "",
            numeric=True,
        ),
        Column(heading="Year", text=lambda row: str(row["paper_year"])),
        Column(heading="arXiv", text=lambda row: row["paper_arxiv"]),
        Column(heading="Paper", text=lambda row: row["paper_title"], folds=True),
    )
    listed = {row.family for row in rows}
    notes = (
        "Params and top-1 are published ones; `vitbench show NAME` gives every figure with its source.",
        *(note for name, note in catalog.FAMILY_NOTES.items() if name in listed),
    )
    emit(Table(rows=flat, columns=columns, notes=notes), format, output)


def show(
    name: Annotated[str, typer.Argument(help="A name of the catalog.", autocompletion=complete_model)],
    format: FormatOption = None,
    output: OutputOption = None,
) -> None:
    """Show all that is known of one architecture, each published figure with its source."""
    variant = catalog.find(name)
    found = published.ranked(published.find(variant.published_ids), variant.paper.cited_as)
    summary = _summary(variant)
    rows: list[Mapping[str, Any]] = [
        summary | {"figure": number} | _figure(figure) for number, figure in enumerate(found, 1)
    ] or [summary]
    columns = (
        Column(heading="#", text=lambda row: str(row["figure"]), numeric=True),
        Column(heading="Input", text=lambda row: row["figure_input"]),
        Column(
            heading="Params",
            text=lambda row: f"{row['figure_params_M']} M" if row["figure_params_M"] else "",
            numeric=True,
        ),
        Column(
            heading="Printed",
            text=lambda row: f"{row['figure_printed_G']} G" if row["figure_printed_G"] else "",
            numeric=True,
        ),
        Column(heading="which is", text=lambda row: _meaning(row)),
        Column(heading="Top-1", text=lambda row: row["figure_top1"], numeric=True),
        Column(heading="Trained on", text=lambda row: row["figure_data"]),
        Column(heading="Source", text=lambda row: row["figure_source"], folds=True),
    )
    emit(Table(rows=rows, columns=columns if found else (), notes=_sentences(variant, rows, found)), format, output)


def _summary(row: catalog.Variant) -> dict[str, Any]:
    own = published.find(row.published_ids, row.input_shape)
    params = published.chosen(own, "params", row.paper.cited_as)
    top1 = published.chosen(own, "top1", row.paper.cited_as)
    return {
        "name": row.name,
        "family": row.family,
        "paper_title": row.paper.title,
        "paper_arxiv": row.paper.arxiv,
        "paper_year": row.paper.year,
        "modality": row.modality,
        "input_shape": row.input_shape,
        "num_classes": row.num_classes,
        "timm_name": row.timm_name,
        "published_params": params.params if params else None,
        "published_params_source": params.source if params else "",
        "published_top1": float(top1.top1) if top1 else None,
        "published_top1_data": top1.data if top1 else "",
        "published_top1_source": top1.source if top1 else "",
        "note": row.note,
    }


def _figure(figure: published.Figure) -> dict[str, Any]:
    return {
        "figure_paper_name": figure.paper_name,
        "figure_input": figure.input,
        "figure_params_M": figure.params_M,
        "figure_printed_G": figure.flops_G,
        "figure_convention": figure.convention,
        "figure_macs": figure.macs,
        "figure_top1": figure.top1,
        "figure_data": figure.data,
        "figure_throughput": figure.throughput,
        "figure_throughput_device": figure.throughput_device,
        "figure_source": figure.source,
        "figure_notes": figure.notes,
        "figure_reason": figure.reason,
    }


def _meaning(row: Mapping[str, Any]) -> str:
    if not row["figure_printed_G"]:
        return ""
    if row["figure_macs"] is None:
        return "not all MACs"
    # Two for each multiply-accumulate, or so many views of a video.
    times = round(float(row["figure_printed_G"]) * 1e9 / row["figure_macs"])
    return "MACs" if times == 1 else f"{times} x MACs"


def _sentences(variant: catalog.Variant, rows: list[Mapping[str, Any]], found: list[published.Figure]) -> list[str]:
    paper = variant.paper
    classes = f"{variant.num_classes} classes" if variant.num_classes else "no classifier"
    sentences = [
        f"{variant.name}: {variant.family}, takes {variant.modality}s of {size(variant.input_shape)}, "
        f"{classes}; timm: {variant.timm_name}",
        f"Paper: {paper.title}, arXiv {paper.arxiv}, {paper.year}",
    ]
    if variant.note:
        sentences.append(f"Note: {variant.note}.")
    siblings = [
        row.name
        for row in catalog.VARIANTS.values()
        if row.published_ids[0] == variant.published_ids[0] and row.name != variant.name
    ]
    if siblings:
        sentences.append(f"At other sizes: {', '.join(siblings)}.")
    if not found:
        sentences.append("No published figures are on record.")
    sentences += _disagreements(found)
    said: dict[str, list[str]] = {}
    for number, figure in enumerate(found, 1):
        parts = [figure.convention] if figure.flops_G else []
        parts += [text for text in (figure.notes, figure.reason) if text]
        if figure.throughput:
            parts.append(f"published throughput {figure.throughput} ({figure.throughput_device})")
        if parts:
            said.setdefault("; ".join(parts), []).append(str(number))
    return sentences + [f"{', '.join(numbers)}: {text}" for text, numbers in said.items()]


def _disagreements(found: list[published.Figure]) -> list[str]:
    """Says where sources print different counts of one model at one input; why is in the notes of each."""
    sentences = []
    for shape in dict.fromkeys(figure.input for figure in found):
        figures = [figure for figure in found if figure.input == shape and figure.macs is not None]
        if not figures:
            continue
        least, most = (choose(figures, key=lambda figure: figure.macs or 0) for choose in (min, max))
        if (most.macs or 0) - (least.macs or 0) > least.macs_rounding + most.macs_rounding:
            sentences.append(
                f"Sources disagree at {shape}: {printed(least.macs or 0)} to {printed(most.macs or 0)} MACs; "
                "what each counts, and why one is off, is below."
            )
    return sentences


def _printed(value: float | None) -> str:
    return printed(value) if value else ""
