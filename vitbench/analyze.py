"""The verb behind `vitbench attn-distance` and its sisters: a model and images in, findings out, one forward pass for all."""

from __future__ import annotations

import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vitbench import build, catalog
from vitbench.analyses import ANALYSES
from vitbench.analyses.attention_distance import DistanceReader
from vitbench.analyses.attention_entropy import EntropyReader
from vitbench.analyses.attention_rollout import RolloutReader
from vitbench.analyses.cka import Grams
from vitbench.analyses.feature_maps import ChannelMaps
from vitbench.analyses.token_similarity import TokenPair
from vitbench.counters import lifetimes
from vitbench.errors import BadInput, NotDefined, NotSupported, VitbenchError, one_line
from vitbench.inputs import images
from vitbench.inputs.images import Images, Preprocessing
from vitbench.inside import attention, observing
from vitbench.records import AnalysisSetting, Dtype, Row, RunSetting, columns, flatten
from vitbench.running import device, environment, passes
from vitbench.units import size

OF_WEIGHTS = ("embedding-filters", "posemb-similarity", "position-bias")
"""What needs no image."""

IN_PASS = ("attn-distance", "attn-rollout", "attn-entropy", "token-similarity", "cka", "feature-maps")
"""What watches forward passes; one pass serves all."""

ALONE = ("receptive-field",)
"""What needs gradients, and so passes of its own."""

# Inputs a batch that `auto` takes at most: more is no faster.
_AUTO = {"cpu": 16, "elsewhere": 64}
_UNPREDICTED = 4
# Of the memory that is free, so much may be predicted to be used: the images and what reads them need room too.
_ROOM = 0.6

# What differs between two models that are compared.
_OF_OTHER = ("model", "input_shape", "weights", "preprocessing")

Along = Callable[[Iterable[images.Batch], int], Iterable[images.Batch]]
"""Passes batches on, of so many inputs in all, and may show how they come."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """A model to look into, and how.

    Attributes:
        model: a catalog name, a timm name, or `package.module:factory`.
        weights: pretrained, random, or the path of a file; of a factory, pretrained takes the model as it comes.
        img_size, num_frames, input_shape: as `build.plan` takes them.
        device: as `device.resolve` takes it.
        dtype: of weights and activations.
        batch_size: inputs a pass, or auto: as many as memory is predicted to hold, within reason.
        seed: of random weights and of the sample of images.
    """

    model: str
    weights: str = "pretrained"
    img_size: tuple[int, int] | None = None
    num_frames: int | None = None
    input_shape: tuple[int, ...] | None = None
    device: str = "auto"
    dtype: Dtype = "fp32"
    batch_size: int | Literal["auto"] = "auto"
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A model that is looked into.

    Attributes:
        model: on its device, in its dtype.
        title: its name, and what a reader of a picture must know of it.
        setting: the key of its rows.
        ask: what was asked.
    """

    model: nn.Module
    title: str
    setting: AnalysisSetting
    ask: Ask

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return torch.device(self.setting.device)

    @property
    def takes_clips(self) -> bool:
        """Whether its inputs are clips, not images.

        Raises:
            BadInput: nobody has said what its input is; its weights alone can be looked at.
        """
        if not self.setting.input_shape:
            raise BadInput(
                f"{self.ask.model} does not say which input it takes; give it with --input, such as 3x224x224."
            )
        return len(self.setting.input_shape) == 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What one analysis found, or why it is not defined.

    Attributes:
        analysis: its name.
        subject: what was looked into; its setting says with how many inputs.
        finding: as the analysis gives it; None where it is not defined.
        refusal: why not, for people.
        other: the model that it was compared with.
    """

    analysis: str
    subject: Subject
    finding: Any = None
    refusal: str = ""
    other: Subject | None = None


@dataclass(kw_only=True)
class Options:
    """What single analyses can be told.

    Attributes:
        components, center: of embedding-filters.
        most_maps: inputs that attn-rollout keeps; None for all.
        parts: of cka.
        layers: of feature-maps and receptive-field.
        variant, channels: of receptive-field.
        limit: inputs that receptive-field averages over at most; None for as many as the paper.
    """

    components: int = 28
    center: bool = True
    most_maps: int | None = None
    parts: bool = True
    layers: tuple[str, ...] | None = None
    variant: Literal["raghu", "replknet"] = "raghu"
    channels: int | None = None
    limit: int | None = None


def subject(ask: Ask) -> Subject:
    """Builds the model that was asked for.

    Raises:
        UnknownName: no model has that name.
        BadInput: it cannot be built so, or the file does not fit it.
        NotSupported: there are no pretrained weights, or no such device.
    """
    where = device.resolve(ask.device)
    plan = build.plan(ask.model, img_size=ask.img_size, num_frames=ask.num_frames, input_shape=ask.input_shape)
    ask = _sized(ask)
    options: dict[str, Any] = {"img_size": ask.img_size, "num_frames": ask.num_frames}
    from_file = ask.weights not in ("pretrained", "random")
    if from_file and ":" not in ask.model:
        options["num_classes"] = 0  # no analysis reads the classifier, and many files have none, or another
    # Whether a factory's weights are trained only it knows.
    weights = "random" if ":" in ask.model and not from_file else ask.weights
    try:
        model = build.create_model(ask.model, weights=weights, seed=ask.seed, device=where, **_given(options))
        model.to(passes.DTYPES[ask.dtype])
    except Exception as error:
        if device.out_of_memory(error):
            raise NotSupported(f"{ask.model} does not fit into the memory of {where}.") from error
        raise
    shape = plan.input_shape or build.input_shape(model) or ()
    source, about = _source_of_weights(ask)
    setting = AnalysisSetting(
        model=ask.model,
        input_shape=tuple(shape),
        weights=source,
        device=str(where),
        dtype=ask.dtype,
    )
    sized = size(tuple(shape)[-2:]) if ask.img_size else ""
    said = ", ".join(part for part in (about, sized) if part)
    return Subject(model=model, title=f"{ask.model} ({said})" if said else ask.model, setting=setting, ask=ask)


def _source_of_weights(ask: Ask) -> tuple[str, str]:
    """Gives where the weights come from, for rows, and what a picture's title says of it."""
    if ask.weights == "random":
        return f"random weights (seed {ask.seed})", "random weights"
    if ask.weights != "pretrained":
        return f"file {Path(ask.weights).name}", Path(ask.weights).name
    return ("as its factory gives them", "") if ":" in ask.model else ("pretrained", "")


def settle(ask: Ask) -> None:
    """Sets this process up to look into models: float32 is float32, and memory that runs out is an error, not the end of others.

    Raises:
        NotSupported: there is no such device.
    """
    where = device.resolve(ask.device)
    device.prepare(where, ask.dtype, torch.get_num_threads())
    if where.type == "cpu":
        device.limit_memory()


def check(ask: Ask) -> None:
    """Makes sure, before anything is computed, that there is a model of that name and that it can have that input.

    Raises:
        VitbenchError: as `subject` raises them.
    """
    build.plan(ask.model, img_size=ask.img_size, num_frames=ask.num_frames, input_shape=ask.input_shape)


def _sized(ask: Ask) -> Ask:
    """Turns another input than a model's own into the size for which it is built; a factory's input is only stated."""
    if ask.input_shape is None or ":" in ask.model:
        return ask
    own = build.plan(ask.model).input_shape or ()
    height, width = ask.input_shape[-2:]
    frames = ask.input_shape[1:-2]
    return replace(
        ask,
        img_size=ask.img_size or ((height, width) if (height, width) != own[-2:] else None),
        num_frames=ask.num_frames or (frames[0] if frames != own[1:-2] else None),
    )


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def preprocessing(of: Subject) -> Preprocessing:
    """Gives what images go through before the model sees them: its own data config, at its real input."""
    row = catalog.VARIANTS.get(of.ask.model)
    return images.preprocessing(of.model, of.setting.input_shape, frame_stride=row.frame_stride if row else None)


def look(
    of: Subject,
    names: Sequence[str],
    found: Images | None = None,
    *,
    options: Options | None = None,
    along: Along = lambda batches, _: batches,
) -> Iterator[Outcome]:
    """Runs analyses on a model, those that watch passes on one pass, and yields an outcome each.

    Ctrl-C ends the pass after the batch that is under way, a second one at once; what was seen until then is given, and the
    setting says of how many inputs. What is not defined for the model, or not of these inputs, is an outcome with the reason.

    Args:
        of: the model.
        names: of analyses.
        found: the images; None where only weights are looked at.
        options: of single analyses.
        along: may show how the batches come.

    Raises:
        BadInput: no image can be read, the model cannot take them, or memory runs out.
        KeyboardInterrupt: after the outcomes of what had been seen.
    """
    options = options or Options()
    for name in names:
        if name in OF_WEIGHTS:
            yield _guarded(name, of, partial(_of_weights, name, of, options))
    watching = [name for name in names if name in IN_PASS]
    if watching:
        yield from _in_pass(of, watching, _needed(found), options, along)
    for name in names:
        if name in ALONE:
            run = _Run(of, _needed(found), along, batch_size=1)
            with _interruptible(run):
                outcome = _guarded(name, of, partial(_receptive_field, run, options), run=run)
            if run.inputs or not run.interrupted:
                yield outcome
            if run.interrupted:
                raise KeyboardInterrupt


def rows(outcome: Outcome) -> list[dict[str, Any]]:
    """Gives the rows of an outcome for a file: setting, every number of the picture, environment."""
    if outcome.finding is None:
        return []
    about = environment.describe()
    other = {} if outcome.other is None else columns(outcome.other.setting)
    beside = {f"other_{name}": other[name] for name in _OF_OTHER if name in other}
    note = " ".join(outcome.finding.notes)
    return [
        flatten(
            Row(setting=outcome.subject.setting, findings={"other": beside, "row": row}, environment=about, note=note)
        )
        for row in outcome.finding.rows
    ]


def compared(
    first: Subject,
    second: Subject,
    found: tuple[Images, Images],
    *,
    options: Options,
    along: Along = lambda batches, _: batches,
) -> Iterator[Outcome]:
    """Compares the layers of two models by CKA, on the same images, each with its own preprocessing; yields one outcome.

    Args:
        first: a model.
        second: the other.
        found: the same images for each.
        options: parts is read.
        along: may show how the batches come.

    Raises:
        BadInput: one model takes images and the other clips; or as `look`.
        NotSupported: one of them has no layers.
        KeyboardInterrupt: after the outcome of what had been seen.
    """
    from vitbench.analyses import cka

    if first.takes_clips != second.takes_clips:
        clips, pictures = (first, second) if first.takes_clips else (second, first)
        raise BadInput(
            f"{clips.ask.model} takes clips and {pictures.ask.model} images, so there is nothing to show to both; "
            "compare two models of one kind."
        )
    batch = min(_batch_size(first, len(found[0])), _batch_size(second, len(found[1])))
    one, two = _Run(first, found[0], along, batch), _Run(second, found[1], _silently, batch)
    try:
        with (
            _interruptible(one),
            _explained(one, two),
            closing(one.batches()) as of_one,
            closing(two.batches(after=one)) as of_two,
        ):
            finding = cka.analyze(
                first.model,
                of_one,
                second.model,
                of_two,
                parts=options.parts,
                titles=(first.title, second.title),
            )
    except NotDefined as error:
        raise error.of("cka", f"{first.ask.model} and {second.ask.model}") from error
    except BadInput:
        if one.interrupted:
            raise KeyboardInterrupt from None  # too few inputs until then
        raise
    yield Outcome(analysis="cka", subject=one.subject(), finding=finding, other=two.subject())
    if one.interrupted:
        raise KeyboardInterrupt


def _silently(batches: Iterable[images.Batch], _: int) -> Iterable[images.Batch]:
    return batches


def _guarded(name: str, of: Subject, work: Callable[[], Any], run: _Run | None = None) -> Outcome:
    try:
        finding = work()
    except NotDefined as error:
        return Outcome(analysis=name, subject=of, refusal=str(error.of(name, of.ask.model)))
    except BadInput as error:
        # Of this analysis alone, such as too few images for it: the others have theirs all the same.
        return Outcome(analysis=name, subject=of, refusal=str(error))
    return Outcome(analysis=name, subject=of if run is None else run.subject(), finding=finding)


def _needed(found: Images | None) -> Images:
    if found is None:
        raise BadInput("This analysis looks at images: give them with --images DIR, or clips with --video.")
    return found


def _of_weights(name: str, of: Subject, options: Options) -> Any:
    module = ANALYSES.load(name)
    if name == "embedding-filters":
        return module.analyze(of.model, components=options.components, center=options.center)
    if name == "position-bias":
        return module.analyze(of.model, input_size=tuple(of.setting.input_shape[-2:]) or None)
    if of.ask.img_size is None and of.ask.num_frames is None:
        return module.analyze(of.model)
    if of.ask.weights == "random":
        raise BadInput(
            "A random position table is drawn anew at each size: there is no before and after. Give trained weights, or no size."
        )
    # Not what the catalog has at that size, which is often another model, with weights of its own.
    row = catalog.VARIANTS.get(of.ask.model)
    same = of.ask if row is None or row.options else replace(of.ask, model=row.timm_name)
    own = subject(replace(same, img_size=None, num_frames=None))
    return module.analyze(own.model, resized=subject(same).model)


def _receptive_field(run: _Run, options: Options) -> Any:
    from vitbench.analyses import receptive_field

    with _explained(run), closing(run.batches()) as batches:
        return receptive_field.analyze(
            run.of.model,
            batches,
            variant=options.variant,
            channels=options.channels,
            names=options.layers,
            limit=options.limit,
            seed=run.of.ask.seed,
        )


@dataclass
class _Run:
    """Batches of images on their way through a model: counted, named, and ended by an interrupt without an error.

    Attributes:
        interrupted: no further batch is to come.
        cut: for that reason, none has come.
    """

    of: Subject
    images: Images
    along: Along
    batch_size: int
    inputs: int = 0
    interrupted: bool = False
    cut: bool = False
    names: deque[str] = field(default_factory=deque)

    def batches(self, after: _Run | None = None) -> Generator[Tensor]:
        """Gives the inputs, as long as another run that has just given its own gives them."""
        self.inputs, self.names = 0, deque()
        dtype = passes.DTYPES[self.of.ask.dtype]
        # Closed, so that the threads that decode end with the run, however it ends.
        with closing(self.images.batches(self.batch_size, self.of.device, dtype)) as batches:
            for batch in self.along(batches, len(self.images)):
                self.names.extend(batch.names)
                yield batch.tensor
                self.inputs += len(batch.tensor)
                self.cut = self.interrupted if after is None else after.cut
                if self.cut:
                    return

    def subject(self) -> Subject:
        """Gives the subject with what was looked at in its setting."""
        setting = replace(
            self.of.setting,
            inputs=self.inputs,
            batch_size=self.batch_size,
            source=self.images.source,
            preprocessing=self.images.preprocessing.text,
        )
        return replace(self.of, setting=setting)


@contextmanager
def _interruptible(run: _Run) -> Iterator[None]:
    """Lets Ctrl-C end a run behind the batch under way, so that all layers have seen the same inputs; a second, at once."""

    def end(_: int, __: FrameType | None) -> None:
        run.interrupted = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    # Another handler is another program's, and only the main thread has any.
    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def _explained(*runs: _Run) -> Iterator[None]:
    """Whatever a model raises on its inputs is the answer to whether it takes them."""
    try:
        yield
    except VitbenchError:
        raise
    except Exception as error:
        most = max(run.batch_size for run in runs)
        if device.out_of_memory(error):
            smaller = "a smaller --batch-size, or a smaller --img-size" if most > 1 else "a smaller --img-size"
            raise BadInput(f"Memory ran out with batches of {most}: give {smaller}.") from error
        which = " or ".join(f"{run.of.ask.model} cannot take input {size(run.of.setting.input_shape)}" for run in runs)
        raise BadInput(f"{which}: {one_line(error)}.") from error


def _in_pass(of: Subject, names: Sequence[str], found: Images, options: Options, along: Along) -> Iterator[Outcome]:
    run = _Run(of, found, along, _batch_size(of, len(found)))
    with _interruptible(run), _explained(run):
        watched, refused = _passed(run, names, options)
    for name in names:
        if name in refused:
            yield Outcome(analysis=name, subject=of, refusal=str(refused[name].of(name, of.ask.model)))
        else:
            yield _guarded(name, of, partial(watched.finding, name), run=run)
    if run.interrupted:
        raise KeyboardInterrupt


def _passed(run: _Run, names: Sequence[str], options: Options) -> tuple[_Watched, Mapping[str, NotDefined]]:
    """Runs the model once, and gives the observers and who of them refused it."""
    refused: dict[str, NotDefined] = {}
    while True:
        left = [name for name in names if name not in refused]
        watched = _Watched(run, left, options)
        try:
            if left:
                with closing(run.batches()) as batches:
                    watched.run(batches)
        except NotDefined:
            # The pass ended with it. Who refused is found out; the others have the next pass.
            refusing = _refusing(run, left, options)
            if not refusing:
                raise
            refused |= refusing
            continue
        except KeyboardInterrupt:
            run.interrupted = True
            if not run.inputs:
                raise
        return watched, refused


def _refusing(run: _Run, names: Sequence[str], options: Options) -> dict[str, NotDefined]:
    """Gives analyses that refuse a model: those that do at sight, else one, or all of attention, on the first inputs."""
    of_attention = [name for name in names if name.startswith("attn-")]
    groups = [of_attention] if of_attention else []
    groups += [[name] for name in names if name not in of_attention]

    def refusal(group: Sequence[str], batches: Sequence[Tensor]) -> dict[str, NotDefined]:
        try:
            _Watched(run, group, options).run(batches)
        except NotDefined as error:
            return dict.fromkeys(group, error)
        return {}

    refused: dict[str, NotDefined] = {}
    for group in groups:
        refused |= refusal(group, [])
    if refused:
        return refused
    with closing(run.batches()) as batches:
        first = next(batches)
    return next((found for group in groups if (found := refusal(group, [first]))), {})


class _Watched:
    """The observers of some analyses, on one pass."""

    def __init__(self, run: _Run, names: Sequence[str], options: Options) -> None:
        self._run = run
        self._readers: dict[str, Any] = {}
        self._observers: dict[str, Any] = {}
        for name in names:
            if name == "attn-distance":
                self._readers[name] = DistanceReader()
            elif name == "attn-entropy":
                self._readers[name] = EntropyReader()
            elif name == "attn-rollout":
                as_picture = run.images.preprocessing.as_picture
                self._readers[name] = RolloutReader(as_picture, self._names(), most=options.most_maps)
            elif name == "token-similarity":
                self._observers[name] = TokenPair()
            elif name == "cka":
                self._observers[name] = Grams(parts=options.parts)
            else:
                self._observers[name] = ChannelMaps(names=options.layers)
        self._tap = attention.Tap(list(self._readers.values())) if self._readers else None

    def _names(self) -> Iterator[str]:
        while True:
            yield self._run.names.popleft()

    def run(self, batches: Iterable[Tensor]) -> None:
        """Runs the model on batches, all observers watching."""
        taps = [self._tap] if self._tap else []
        observing.run(self._run.of.model, batches, [*taps, *self._observers.values()])

    def finding(self, name: str) -> Any:
        """Gives what an analysis found."""
        if name in self._readers and self._tap is not None:
            return self._readers[name].finding(self._tap.left_out)
        return self._observers[name].finding()


def _batch_size(of: Subject, inputs: int) -> int:
    """Gives the batch size asked for.

    `auto` is the largest power of two of which a pass is predicted to fit, within reason; few inputs where nothing is predicted.
    """
    if of.ask.batch_size != "auto":
        return of.ask.batch_size
    most = min(_AUTO.get(of.device.type, _AUTO["elsewhere"]), max(1, inputs))
    batch: int = 1 << (most.bit_length() - 1)
    free = device.free(of.device)
    if len(of.setting.input_shape) == 4:
        batch = min(batch, 4)
    while batch > 1 and free is not None:
        setting = RunSetting(
            model=of.setting.model,
            input_shape=of.setting.input_shape,
            batch_size=batch,
            device=of.setting.device,
            dtype=of.ask.dtype,
        )
        try:
            peak = lifetimes.peak(of.model, setting)
        except Exception:
            # It needs numbers to run, or cannot take this input: that the pass itself will tell, in its own words.
            return min(batch, _UNPREDICTED)
        if int(peak.peak_bytes - peak.weights_bytes) <= _ROOM * free:
            break
        batch //= 2
    return batch
