"""The verb behind `vitbench ab`: two sides of the same models, measured in turn in one run, and a change for each model."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from vitbench import catalog
from vitbench.changes import Change, Comparison, ranked
from vitbench.errors import BadInput
from vitbench.findings import Throughput
from vitbench.judging import discoveries, duel, sides
from vitbench.judging.pairs import Estimate
from vitbench.records import Environment, RunSetting, headings
from vitbench.units import parse_share, percent
from vitbench.units import size as size_text

COLUMN = "throughput_per_s"

# Fields of the environment that say where and when, not what runs.
_INCIDENTAL = ("time",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """What to compare.

    Attributes:
        models: names or globs; one or more, unless side a names one.
        a, b: what the sides are.
        options: of both, where a side does not say otherwise.
        rule: how long, and what is a change.
        timeout_s: how long building a model may take, and a block.
        command: what was typed, for the report.
    """

    models: Sequence[str]
    a: sides.Spec
    b: sides.Spec
    options: sides.Options
    rule: duel.Rule = duel.RULE
    timeout_s: float = 600.0
    command: str = ""


@dataclass(slots=True, kw_only=True)
class _Match:
    """One model, as far as it has come."""

    model: str
    abouts: dict[str, sides.About] = field(default_factory=dict)
    progress: duel.Progress | None = None
    found: duel.Duel | None = None
    problem: str = ""


Tell = Callable[[str, duel.Progress], None]


class Contest:
    """Both sides of all models, in one run; what is measured when it is interrupted is not lost."""

    def __init__(self, ask: Ask) -> None:
        """Checks what was asked.

        Raises:
            BadInput: no model, or nothing to compare; options of a side exclude each other.
        """
        self._ask = ask
        if ask.a.text == ask.b.text == sides.HERE:
            raise BadInput("Both sides are the same: give --a or --b, such as --b dtype=bf16 or --a git:main.")
        self._models = _selected(ask)
        self._options = {name: replace(ask.options, **spec.options) for name, spec in (("a", ask.a), ("b", ask.b))}
        self._code: list[str] = []
        self._matches: list[_Match] = []

    @property
    def measured(self) -> bool:
        """Whether there is anything to tell."""
        return any(match.progress or match.problem for match in self._matches)

    def run(self, *, say: sides.Say, tell: Tell) -> None:
        """Measures all models, one after another.

        Args:
            say: is told of what takes long.
            tell: is told of each round, with the model.

        Raises:
            BadInput: a side's code cannot be had, nobody knows a model's name, or side a could be asked for none of the models.
                Nothing has been measured then.
        """
        ask = self._ask
        with sides.opened((ask.a, ask.b), say=say, limit_s=ask.timeout_s) as (a, b):
            self._code = [f"{side.name} is commit {side.commit}." for side in (a, b) if side.commit]
            matches = [_Match(model=model) for model in self._models]
            # All of them before the first is measured: a name that nobody knows costs no measurement.
            mistakes = [mistake for match in matches if (mistake := self._begin(match, a, b))]
            if len(mistakes) == len(matches):
                raise BadInput(f"{mistakes[0].rstrip('.')}.")
            self._matches = matches
            for match in self._matches:
                if not match.problem:
                    self._measure(match, a, b, functools.partial(tell, match.model))

    def _starts(self, match: _Match, a: sides.Side, b: sides.Side) -> dict[str, Callable[[], sides.SideWorker]]:
        ask = self._ask
        return {
            "a": functools.partial(a.start, ask.a.model or match.model, self._options["a"]),
            "b": functools.partial(b.start, ask.b.model or match.model, self._options["b"]),
        }

    def _begin(self, match: _Match, a: sides.Side, b: sides.Side) -> str:
        """Starts both sides once; gives what was wrong with what side a was asked for, empty where nothing was.

        It also fills the compiler's cache: what that takes is no part of a round.
        """
        try:
            for name, start in self._starts(match, a, b).items():
                worker = start()
                match.abouts[name] = worker.about
                worker.close()
        except sides.SideFailed as error:
            if error.kind == "UnknownName" and not (self._ask.a.code_elsewhere or self._ask.b.code_elsewhere):
                raise BadInput(str(error)) from error
            match.problem = str(error)
            if not match.abouts and error.kind in ("UnknownName", "BadInput"):
                return match.problem
        return ""

    def _measure(self, match: _Match, a: sides.Side, b: sides.Side, tell: Callable[[duel.Progress], None]) -> None:
        def told(progress: duel.Progress) -> None:
            if progress.stage != "control":
                match.progress = progress
            tell(progress)

        starts = self._starts(match, a, b)
        per_input = _batch(match.abouts["a"]) / _batch(match.abouts["b"])
        try:
            match.found = duel.duel(
                starts["a"],
                lambda: _Scaled(starts["b"](), per_input),
                rule=self._ask.rule,
                tell=told,
                always_control=not any(one.found for one in self._matches),  # the first tells how noisy the machine is
                renew=None if a.shares(b) else functools.partial(_renewed, (a, b), starts.values()),
            )
        except sides.SideFailed as error:
            match.problem = str(error)

    def comparison(self, *, alone: bool = True) -> Comparison:
        """Gives what has been measured so far; a model in progress, or not begun, is inconclusive.

        Args:
            alone: whether this is all that a report tells; the false discoveries of several contests are corrected together.
        """
        ask = self._ask
        changes = [_change(match, ask.rule) for match in self._matches]
        notes = (*self._code, *_notes(ask.rule, [match for match in self._matches if match.found is not None]))
        if alone:
            changes, told = discoveries.corrected(changes)
            notes += told
        abouts = next((match.abouts for match in self._matches if len(match.abouts) == 2), {})
        before, after = (_environment(abouts[name]) if abouts else {} for name in ("a", "b"))
        return Comparison(
            base=ask.a.text,
            head=ask.b.text,
            changes=ranked(changes),
            differences={
                name: (before[name], after.get(name, ""))
                for name in before
                if name not in _INCIDENTAL and before[name] != after.get(name, "")
            },
            environment=after,
            notes=notes,
            commands=(ask.command,) if ask.command else (),
        )


def _renewed(both: Sequence[sides.Side], starts: Iterable[Callable[[], sides.SideWorker]]) -> None:
    """Starts the servers of both sides anew, side by side, and waits until they have imported all."""
    for side in both:
        side.renew()
    for start in starts:
        start().close()


class _Scaled:
    """A worker whose seconds are those of as many inputs as the other side's passes have."""

    def __init__(self, worker: sides.SideWorker, scale: float) -> None:
        self._worker = worker
        self._scale = scale

    def block(self, runs: int) -> list[float]:
        return [self._scale * seconds for seconds in self._worker.block(runs)]

    def close(self) -> None:
        self._worker.close()


def _selected(ask: Ask) -> list[str]:
    names: list[str] = []
    for pattern in ask.models:
        found = [pattern]
        if ":" not in pattern and any(sign in pattern for sign in "*?["):
            found = [row.name for row in catalog.match(pattern)]
            if not found:
                raise BadInput(f"No model of the catalog matches {pattern!r}; `vitbench list` shows all.")
        names += found
    if ask.a.model is not None:
        if names:
            raise BadInput(f"Name the model of side a once: {ask.a.model} in --a, or {names[0]} before it.")
        names = [ask.a.model]
    if not names:
        raise BadInput("Name at least one model; `vitbench list` shows the catalog.")
    return list(dict.fromkeys(names))


def _batch(about: sides.About) -> int:
    return int(about.setting["batch_size"])


def _change(match: _Match, rule: duel.Rule) -> Change:
    found = match.found
    estimate = found.estimate if found else match.progress.estimate if match.progress else None
    change = Change(
        setting=_setting(match),
        column=COLUMN,
        heading=headings(Throughput)[COLUMN],
        judged="timed",
        better="higher",
        threshold=rule.threshold,
        verdict="missing" if match.problem else "inconclusive",
        note=match.problem or "interrupted",
    )
    if estimate is not None:
        # Throughput is one over time: the ratio, and which end of the interval is which, turn round.
        change = replace(
            change, ratio=math.exp(-estimate.centre), low=math.exp(-estimate.high), high=math.exp(-estimate.low)
        )
    if match.problem or found is None:
        return change
    judgement = duel.judged(found)
    batch = _batch(match.abouts["a"])
    return replace(
        change,
        before=batch / found.a_median_s,
        after=batch / found.b_median_s,
        verdict=judgement.verdict,
        note="; ".join(filter(None, (judgement.note, output_difference(match.abouts["a"], match.abouts["b"])))),
        more=judgement.more,
        p_value=judgement.p_value,
        rounds=tuple(tuple(math.exp(-ratio) for ratio in pairs) for pairs in found.rounds),
    )


def _setting(match: _Match) -> dict[str, str]:
    """Gives what both sides have in common, as text; what is as it always is, is left out."""
    if len(match.abouts) < 2:
        return {"model": match.model}
    before, after = match.abouts["a"].setting, match.abouts["b"].setting
    shown = ("input_shape", "batch_size", "device", "dtype", "mode", "threads")
    rest = [name for name in headings(RunSetting) if name not in ("model", "batch_size_asked", *shown) and before[name]]
    common = [name for name in (*shown, *rest) if before[name] == after[name]]
    return {"model": match.model} | {name: _text(before[name]) for name in common}


def _text(value: Any) -> str:
    return size_text(tuple(value)) if isinstance(value, list | tuple) else str(value)


def _environment(about: sides.About) -> dict[str, str]:
    found = {name: about.environment.get(name) for name in headings(Environment)} | dict(about.machine)
    return {name: str(value) for name, value in found.items() if value is not None}


def output_difference(a: sides.About, b: sides.About) -> str:
    """Gives in a clause how far two sides' outputs lie apart; empty where they are the same or were given other inputs."""
    if any(a.setting[name] != b.setting[name] for name in ("model", "input_shape", "batch_size")):
        return ""
    if [list(shape) for shape in a.shapes] != [list(shape) for shape in b.shapes]:
        first, second = (", ".join(size_text(tuple(shape)) for shape in about.shapes) or "none" for about in (a, b))
        return f"the outputs are of other shapes: {first}, then {second}"
    norm, distance = math.hypot(*a.values), math.dist(a.values, b.values)
    if not math.isfinite(norm) or not math.isfinite(distance):
        return "an output is not finite"
    if distance == 0:
        return ""
    return f"the outputs differ by {distance / norm:.1e} of their norm" if norm else "the outputs differ"


def _notes(rule: duel.Rule, matches: Sequence[_Match]) -> list[str]:
    notes = [
        f"Measured in turn: pairs of blocks of about {1e3 * rule.block_s:g} ms in random order, fresh processes each round, "
        f"at least {rule.rounds} rounds, until the interval reaches {rule.precision:.1%} to either side or "
        f"{rule.budget_s:g} s a model are spent. A change is more than {rule.threshold:.1%}, measured twice."
    ]
    for match in matches:
        found = match.found
        if found is None:
            continue
        first = f"{match.model}: {_counted(found.rounds)} in {found.spent_s:.0f} s"
        control = found.control
        notes.append(f"{first}; side a against itself: {_interval(control.estimate)}." if control else f"{first}.")
    return notes


def _counted(rounds: Sequence[Sequence[float]]) -> str:
    pairs = sum(map(len, rounds))
    return f"{len(rounds)} {'round' if len(rounds) == 1 else 'rounds'}, {pairs} {'pair' if pairs == 1 else 'pairs'}"


def _interval(estimate: Estimate) -> str:
    centre = percent(math.expm1(-estimate.centre))
    if not math.isfinite(estimate.low) or not math.isfinite(estimate.high):
        return centre
    return f"{centre} ({percent(math.expm1(-estimate.high))} to {percent(math.expm1(-estimate.low))})"


def parse_budget(text: str) -> float:
    """Reads "120s", "2m" or "1h" as seconds.

    Raises:
        BadInput: it is no such thing.
    """
    found = re.fullmatch(r"([0-9]{1,6}(?:\.[0-9]+)?) ?([smh])", text.strip())
    if not found or not float(found[1]):
        raise BadInput(f"{text!r} is not a time above zero with its unit, such as 120s or 10m.")
    return float(found[1]) * {"s": 1, "m": 60, "h": 3600}[found[2]]


def parse_threshold(text: str) -> float:
    """Reads "3%" as 0.03.

    Raises:
        BadInput: it is no such thing, or zero, within which no measured time lies.
    """
    try:
        share = parse_share(text)
    except ValueError as error:
        raise BadInput(str(error)) from error
    if not share:
        raise BadInput(f"No two times agree within {text}: give a part above zero, such as 3%.")
    return share
