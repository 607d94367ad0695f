"""`vitbench ab`: two sides of a model in one run, and which is quicker."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from vitbench import results, units
from vitbench.cli.compare import (
    ComparisonFormatOption,
    ComparisonOutputOption,
    FailOnOption,
    Fails,
    StrictOption,
    conclude,
)
from vitbench.cli.measure import (
    AmpOption,
    ChannelsOption,
    CheckpointOption,
    CompileOption,
    DeviceOption,
    Dtype,
    DtypeOption,
    Mode,
    ModeOption,
    ThreadsOption,
    TimeoutOption,
)
from vitbench.cli.options import (
    Extents,
    FramesOption,
    InputOption,
    ModelsArgument,
    parse_size,
    status,
)
from vitbench.running import environment

if TYPE_CHECKING:
    from vitbench.ab import Tell
    from vitbench.judging.duel import Progress


_SPEC = (
    "a setting (dtype=bf16, compile=inductor, threads=1), a model, a Python (python:venv/bin/python), a requirement "
    "(torch==2.14) or a git revision (git:main); several with commas"
)


def ab(
    models: ModelsArgument = None,
    a: Annotated[str, typer.Option("--a", metavar="SPEC", help=f"The base: {_SPEC}.")] = "here",
    b: Annotated[
        str, typer.Option("--b", metavar="SPEC", help="What is compared with it, said the same way.")
    ] = "here",
    budget: Annotated[str, typer.Option("--budget", metavar="TIME", help="Time for each model: 120s, 10m.")] = "120s",
    threshold: Annotated[
        str, typer.Option("--threshold", metavar="N%", help="Change up to which the two are the same.")
    ] = "3%",
    img_size: Annotated[
        Extents | None, typer.Option("--img-size", metavar="N or HxW", help="Image size.", parser=parse_size)
    ] = None,
    num_frames: FramesOption = None,
    input: InputOption = None,
    batch_size: Annotated[int, typer.Option("--batch-size", "-b", min=1, help="Inputs a pass.")] = 1,
    device: DeviceOption = "auto",
    dtype: DtypeOption = Dtype.fp32,
    amp: AmpOption = False,
    mode: ModeOption = Mode.infer,
    compile: CompileOption = None,
    channels_last: ChannelsOption = False,
    grad_checkpointing: CheckpointOption = False,
    threads: ThreadsOption = None,
    timeout: TimeoutOption = 600.0,
    format: ComparisonFormatOption = None,
    output: ComparisonOutputOption = None,
    fail_on: FailOnOption = Fails.regressed,
    strict: StrictOption = False,
) -> None:
    """Compare the speed of two sides in one run: settings, models, Pythons, versions of a package, or git revisions.

    A side that is left out is this Python and the current folder; the other options hold for both. Blocks of the two are measured
    in turn, in fresh processes each round, until the ratio is known or the budget is spent; a change is measured a second time,
    and the base against itself, before it is called one. Exits with 1 where b is slower by more than the threshold.
    """
    from vitbench import ab as verb
    from vitbench.judging import sides
    from vitbench.judging.duel import Rule

    if output is not None:
        results.check_writable(output)
    contest = verb.Contest(
        verb.Ask(
            models=models or (),
            a=sides.parse(a),
            b=sides.parse(b),
            options=sides.Options(
                device=device,
                dtype=dtype.value,
                amp=amp,
                mode=mode.value,
                compile=compile,
                channels_last=channels_last,
                grad_checkpointing=grad_checkpointing,
                threads=threads,
                batch_size=batch_size,
                img_size=(img_size[0], img_size[1]) if img_size else None,
                num_frames=num_frames,
                input=input,
            ),
            rule=Rule(budget_s=verb.parse_budget(budget), threshold=verb.parse_threshold(threshold)),
            timeout_s=timeout,
            command=environment.command() or "",
        )
    )
    try:
        with drawn() as tell:
            contest.run(say=status, tell=tell)
    except KeyboardInterrupt:
        if contest.measured:
            # What was interrupted ends as such, whatever was measured.
            with suppress(typer.Exit):
                conclude(contest.comparison(), format, output)
        raise
    conclude(contest.comparison(), format, output, fail_on=fail_on.value, strict=strict)


@contextmanager
def drawn() -> Iterator[Tell]:
    """Gives what shows, on standard error where that is a terminal, how far the measurement is; drawn once a round."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda model, progress: None
        return
    with console.status("Starting both sides", refresh_per_second=1) as shown:
        yield lambda model, progress: shown.update(units.printable(f"{model}: {said(progress)}"))


def said(progress: Progress) -> str:
    """Gives in a line how far a measurement is: b's throughput over a's so far, and how well it is known."""
    estimate = progress.estimate
    reach = f" ± {100 * estimate.half_width:.2f} %" if math.isfinite(estimate.half_width) else ""
    done = f"round {progress.rounds}, {progress.spent_s:.0f} of {progress.budget_s:.0f} s"
    if progress.stage == "control":
        return f"control, {done}"
    return f"{units.percent(math.expm1(-estimate.centre))}{reach} ({progress.stage} pass, {done})"
