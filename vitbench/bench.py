"""The verb behind `vitbench flops`: models in, one row each out, as soon as it is known."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from vitbench import catalog, published
from vitbench.errors import BadInput, VitbenchError, one_line
from vitbench.findings import CrossCount
from vitbench.records import Row, Setting, Status
from vitbench.running import environment, worker
from vitbench.units import size as size_text

if TYPE_CHECKING:
    from torch import nn

    from vitbench.build import Plan

Counter = Literal["dispatch", "fvcore", "both"]

# Below this many models a second process costs more, in importing torch, than it saves.
_WORTH_PROCESSES = 16
_TIMEOUT_S = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One model to count, and how.

    Attributes:
        name: a catalog name, a timm name, or `package.module:factory`.
        img_size, num_frames, input_shape: as `build.plan` takes them.
        of_timm: whether timm's own model of that name is meant, where the catalog's is another.
        batch_size: inputs per forward pass.
        counter: our dispatch counter, fvcore, or both side by side.
    """

    name: str
    img_size: tuple[int, int] | None = None
    num_frames: int | None = None
    input_shape: tuple[int, ...] | None = None
    of_timm: bool = False
    batch_size: int = 1
    counter: Counter = "dispatch"


def select(patterns: Sequence[str], *, families: Sequence[str] = (), everything: bool = False) -> list[str]:
    """Gives the names that patterns and families stand for, each once, in the order asked.

    A name without `*`, `?` or `[` is taken as it is: whether there is such a model is found when it is built.

    Raises:
        BadInput: a glob matches nothing.
        UnknownName: there is no such family.
    """
    names: list[str] = []
    for pattern in patterns:
        if ":" in pattern or not any(sign in pattern for sign in "*?["):
            names.append(pattern)
            continue
        found = [row.name for row in catalog.match(pattern)]
        if not found:
            raise BadInput(
                f"No model of the catalog matches {pattern!r}; `vitbench list` shows all, --timm looks in timm."
            )
        names += found
    for family in families:
        names += [row.name for row in catalog.of_family(family)]
    if everything:
        names += list(catalog.VARIANTS)
    return list(dict.fromkeys(names))


def select_timm(glob: str) -> list[str]:
    """Gives timm's own models whose name fits a glob.

    Raises:
        BadInput: the glob matches nothing.
    """
    import timm

    # Native models are registered with timm, but they are not timm's.
    found = [name for name in timm.list_models(glob) if timm.model_entrypoint(name).__module__.startswith("timm.")]
    if not found:
        raise BadInput(f"No model of timm matches {glob!r}.")
    return found


def named(
    models: Sequence[str] | None, families: Sequence[str] | None, everything: bool, timm: str | None
) -> list[tuple[str, bool]]:
    """Gives the models that a command's arguments stand for, each with whether timm's own of that name is meant.

    Raises:
        BadInput: none is named, or a glob matches nothing.
        UnknownName: there is no such family.
    """
    names = dict.fromkeys(select(models or (), families=families or (), everything=everything), False)
    for name in select_timm(timm) if timm is not None else ():
        names.setdefault(name, True)
    if not names:
        raise BadInput("Name at least one model, or use --family, --all or --timm; `vitbench list` shows the catalog.")
    return list(names.items())


def count(requests: Sequence[Request]) -> Iterator[Row]:
    """Counts models and yields a row each, in order; a model that fails is a row that says why.

    Many models are shared out to a process for each core.
    """
    about = environment.describe()
    if len(requests) < _WORTH_PROCESSES or environment.cores() == 1:
        rows: Iterator[Row] = map(count_one, requests)
    else:
        rows = worker.each(
            count_one, requests, workers=environment.cores(), timeout_s=_TIMEOUT_S, failed=_without_result
        )
    for row in rows:
        yield replace(row, environment=about)


def count_one(request: Request) -> Row:
    """Counts one model in this process; errors become the row's status and note."""
    with worker.without_garbage_collection():
        return _count(request)


def planned(request: Request) -> Plan:
    """Gives the plan by which a request's model is built; errors are those of `build.plan`."""
    from vitbench import build

    return build.plan(
        request.name,
        img_size=request.img_size,
        num_frames=request.num_frames,
        input_shape=request.input_shape,
        of_timm=request.of_timm,
    )


def stated_input(model: nn.Module, request: Request) -> tuple[int, ...]:
    """Gives the input of a factory's model that nobody stated but the model itself, at the size asked for.

    Raises:
        BadInput: the model does not say either.
    """
    from vitbench import build

    shape = build.input_shape(model)
    if not shape:
        raise BadInput(f"{request.name} does not say which input it takes; give it with --input, such as 3x224x224.")
    return (*shape[:-2], *request.img_size) if request.img_size else shape


def _count(request: Request) -> Row:
    shape = request.input_shape or ()
    try:
        plan = planned(request)
        shape = plan.input_shape or shape
        model = plan.build("meta")
        shape = shape or stated_input(model, request)
        setting = Setting(model=request.name, input_shape=tuple(shape), batch_size=request.batch_size)
        findings = _findings(model, setting, request.counter)
        note = ""
        if plan.variant is not None:
            findings["published"] = published.beside(
                plan.variant.published_ids,
                plan.variant.paper.cited_as,
                shape,
                params=findings["flops"].params,
                macs=findings["flops"].macs // request.batch_size,
            )
            if plan.variant.name != request.name:
                note = f"at this size it is {plan.variant.name} ({plan.variant.note or 'weights of its own'})"
        return Row(setting=setting, findings=findings, note=note)
    except VitbenchError as error:
        return _without_result(replace(request, input_shape=tuple(shape)), "failed", str(error))


def _findings(model: nn.Module, setting: Setting, counter: Counter) -> dict[str, Any]:
    from vitbench.metrics.flops import count_flops, count_flops_with_fvcore

    arguments = (model, setting.input_shape)
    try:
        if counter == "fvcore":
            return {"flops": count_flops_with_fvcore(*arguments, batch_size=setting.batch_size)}
        ours = count_flops(*arguments, batch_size=setting.batch_size)
        if counter == "dispatch":
            return {"flops": ours}
        theirs = count_flops_with_fvcore(*arguments, batch_size=setting.batch_size)
        return {"flops": ours, "cross": CrossCount(macs_fvcore=theirs.macs, macs_disagreement=ours.macs - theirs.macs)}
    except Exception as error:
        # Whatever a model raises on an input is the answer to whether it takes that input.
        raise BadInput(
            f"{setting.model} cannot take input {size_text(setting.input_shape)}: {one_line(error)}."
        ) from error


def _without_result(request: Request, status: Status, reason: str) -> Row:
    setting = Setting(model=request.name, input_shape=request.input_shape or (), batch_size=request.batch_size)
    return Row(setting=setting, findings={}, status=status, note=reason)
