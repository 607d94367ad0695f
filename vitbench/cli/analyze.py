"""`vitbench attn-distance` and its sisters: what is inside a model, as the papers drew it. Each writes a CSV and a picture."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import typer.core
from rich.console import Console

from vitbench import catalog, results
from vitbench.analyses import ANALYSES
from vitbench.cli.options import (
    SOME_FAILED,
    Extents,
    FramesOption,
    InputOption,
    complete_model,
    emit,
    parse_size,
    status,
)
from vitbench.errors import BadInput, CannotWrite, NotSupported
from vitbench.records import Column, Table
from vitbench.reports import REPORTS

if TYPE_CHECKING:
    from vitbench.analyze import Ask, Outcome, Subject
    from vitbench.inputs.images import Batch, Images

_LONGEST_STEM = 120


class FigureFormat(StrEnum):
    """What a picture can be written as."""

    png = "png"
    svg = "svg"


class DtypeChoice(StrEnum):
    """Types of weights and activations."""

    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


class Mode(StrEnum):
    """What becomes of attention on tokens without a place."""

    paper = "paper"
    renorm = "renorm"


class Style(StrEnum):
    """How a rollout is drawn."""

    paper = "paper"
    heat = "heat"
    mask = "mask"


class Variant(StrEnum):
    """Which definition of the effective receptive field."""

    raghu = "raghu"
    replknet = "replknet"


class Also(StrEnum):
    """What may come from the same pass as attention distances."""

    entropy = "entropy"


class PathsCommand(typer.core.TyperCommand):
    """A command whose `--images` and `--video` take all paths that follow them, as a shell makes them of `*.jpg`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Repeats the option before each further path: one that is there, and is no model of that name."""
        words: list[str] = []
        option, given = "", False  # whose paths follow, and whether it has one
        for word in args:
            if word.partition("=")[0] in ("--images", "--video"):
                option, equals, _ = word.partition("=")
                given = bool(equals)
            elif word.startswith("-") or (given and not self._is_path(word)):
                option, given = "", False
            elif option:
                words += [option] if given else []
                given = True
            words.append(word)
        return super().parse_args(ctx, words)

    @staticmethod
    def _is_path(word: str) -> bool:
        try:
            return word not in catalog.VARIANTS and Path(word).exists()
        except OSError:  # longer than a name can be
            return False


def _parse_batch(text: str) -> str:
    if text != "auto" and not (text.isascii() and text.isdigit() and int(text) > 0):
        raise typer.BadParameter(f"{text!r} is neither auto nor a whole number above zero.")
    return text


Models = Annotated[
    list[str],
    typer.Argument(
        metavar="MODEL...",
        help="Names of the catalog, names of timm, or package.module:factory.",
        autocompletion=complete_model,
        show_default=False,
    ),
]
Weights = Annotated[
    list[str] | None,
    typer.Option(
        "--weights",
        metavar="pretrained|random|FILE",
        help="pretrained, the default, asks timm's hub or its cache; a factory's model it takes as it comes. "
        "One for all models, or repeated, one for each.",
    ),
]
ImgSize = Annotated[
    Extents | None,
    typer.Option(
        "--img-size", metavar="N or HxW", help="Image size; position tables and windows follow.", parser=parse_size
    ),
]
ImagePaths = Annotated[
    list[str] | None,
    typer.Option(
        "--images",
        metavar="PATH...",
        help="Folders, searched through; images; a tar; or a data set of timm, such as torch/cifar10. May be repeated.",
        show_default=False,
    ),
]
VideoPaths = Annotated[
    list[str] | None,
    typer.Option("--video", metavar="PATH...", help="Videos or folders of them, for models of clips. May be repeated."),
]
Limit = Annotated[
    int, typer.Option("--limit", min=1, help="Of more images, a seeded sample of so many; the ViT paper has 128.")
]
Seed = Annotated[
    int, typer.Option("--seed", min=0, max=2**63 - 1, help="Of the sample of images, and of random weights.")
]
DeviceOption = Annotated[
    str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, xpu or mps; auto is the accelerator if there is one.")
]
DtypeOption = Annotated[
    DtypeChoice, typer.Option("--dtype", help="Of weights and activations; attention itself is read in fp32.")
]
BatchSize = Annotated[
    str,
    typer.Option(
        "--batch-size", "-b", metavar="N or auto", help="Inputs a pass; auto: what memory holds.", callback=_parse_batch
    ),
]
OutputFolder = Annotated[
    Path,
    typer.Option("--output", "-o", metavar="DIR", help="Folder for the CSV and the picture; it is made if need be."),
]
Figures = Annotated[FigureFormat, typer.Option("--figure-format", help="What the picture is written as.")]


def embedding_filters(
    models: Models,
    weights: Weights = None,
    components: Annotated[int, typer.Option("--components", min=1, help="How many to show.")] = 28,
    center: Annotated[
        bool, typer.Option("--center/--no-center", help="Whether the mean filter is taken off first.")
    ] = True,
    seed: Seed = 0,
    output: OutputFolder = Path(),
    figure_format: Figures = FigureFormat.png,
) -> None:
    """Principal components of the patch embedding: ViT's Fig. 7 left."""
    options = {"components": components, "center": center}
    _run(["embedding-filters"], models, _Asked(weights=weights, seed=seed), output, figure_format, options=options)


def posemb_similarity(
    models: Models,
    weights: Weights = None,
    img_size: ImgSize = None,
    num_frames: FramesOption = None,
    seed: Seed = 0,
    output: OutputFolder = Path(),
    figure_format: Figures = FigureFormat.png,
) -> None:
    """Similarity of position embeddings: ViT's Fig. 7 centre; with --img-size, before and after the table is resampled."""
    asked = _Asked(weights=weights, seed=seed, img_size=img_size, num_frames=num_frames)
    _run(["posemb-similarity"], models, asked, output, figure_format)


def position_bias(
    models: Models,
    weights: Weights = None,
    img_size: ImgSize = None,
    seed: Seed = 0,
    output: OutputFolder = Path(),
    figure_format: Figures = FigureFormat.png,
) -> None:
    """Relative position bias of each head, and how local it makes attention by itself: Swin, CoAtNet, MaxViT, BEiT."""
    asked = _Asked(weights=weights, seed=seed, img_size=img_size)
    _run(["position-bias"], models, asked, output, figure_format)


def attn_distance(
    models: Models,
    images: ImagePaths = None,
    video: VideoPaths = None,
    weights: Weights = None,
    mode: Annotated[
        Mode,
        typer.Option(
            "--mode",
            help="Drawn: paper drops the weight on class tokens, renorm makes up for it. The CSV has both.",
        ),
    ] = Mode.paper,
    sorted: Annotated[
        bool,
        typer.Option(
            "--sorted", help="Draw the heads of the lowest and highest layers in order: Raghu et al., Fig. 3."
        ),
    ] = False,
    also: Annotated[Also | None, typer.Option("--also", help="From the same passes, also this.")] = None,
    img_size: ImgSize = None,
    num_frames: FramesOption = None,
    input: InputOption = None,
    limit: Limit = 128,
    seed: Seed = 0,
    device: DeviceOption = "auto",
    dtype: DtypeOption = DtypeChoice.fp32,
    batch_size: BatchSize = "auto",
    output: OutputFolder = Path(),
    figure_format: Figures = FigureFormat.png,
) -> None:
    """How far each head of each layer looks: ViT's Fig. 7 right; several models side by side."""
    asked = _Asked(weights, seed, img_size, num_frames, input, device, dtype.value, batch_size, images, video, limit)
    names = ["attn-distance", *(["attn-entropy"] if also is Also.entropy else [])]
    drawn = {"attn-distance": {"mode": mode.value, "by_head": sorted}}
    _run(names, models, asked, output, figure_format, drawn=drawn)


def attn_entropy(
    models: Models,
    images: ImagePaths = None,
    video: VideoPaths = None,
    weights: Weights = None,
    img_size: ImgSize = None,
    num_frames: FramesOption = None,
    input: InputOption = None,
    limit: Limit = 128,
    seed: Seed = 0,
    device: DeviceOption = "auto",
    dtype: DtypeOption = DtypeChoice.fp32,
    batch_size: BatchSize = "auto",
    output: OutputFolder = Path(),
    figure_format: Figures = FigureFormat.png,
) -> None:
    """How many places each head of each layer looks at."""
    asked = _Asked(weights, seed, img_size, num_frames, input, device, dtype.value, batch_size, images, video, limit)
    _run(["attn-entropy"], models, asked, output, figure_format)


def attn_rollout(
    models: Models,
    images: ImagePaths = None,
    video: VideoPaths = None,
    weights: Weights = None,
    style: Annotated[
        Style, typer.Option("--style", help="paper: the picture where the attention is; heat: in colour; mask: alone.")
    ] = Style.paper,
    img_size: ImgSize = None,
    num_frames: FramesOption = None,
    input: InputOption = None,
    limit: Limit = 128,
    seed: Seed = 0,
    device: DeviceOption = "auto",
    dtype: DtypeOption = DtypeChoice.fp32,
    batch_size: BatchSize = "auto",
    output: OutputFolder = Path(),
    figure_format: Figures = FigureFormat.png,
) -> None:
    """Where in the input the output looks, through all layers: ViT's Figs. 6 and 14; frame by frame for clips."""
    asked = _Asked(weights, seed, img_size, num_frames, input, device, dtype.value, batch_size, images, video, limit)
    _run(["attn-rollout"], models, asked, output, figure_format, drawn={"attn-rollout": {"style": style.value}})


def token_similarity(
    models: Models,
    images: ImagePaths = None,
    weights: Weights = None,
    img_size: ImgSize = None,
    input: InputOption = None,
    limit: Limit = 128,
    seed: Seed = 0,
    device: DeviceOption = "auto",
    dtype: DtypeOption = DtypeChoice.fp32,
    batch_size: BatchSize = "auto",
    output: OutputFolder = Path(),
    figure_format: Figures = FigureFormat.png,
) -> None:
    """How alike a distilled DeiT's class and distillation tokens are, layer by layer."""
    asked = _Asked(weights, seed, img_size, None, input, device, dtype.value, batch_size, images, None, limit)
    _run(["token-similarity"], models, asked, output, figure_format)


def cka(
    model_a: Annotated[str, typer.Argument(help="A model.", autocompletion=complete_model, show_default=False)],
    model_b: Annotated[
        str | None,
        typer.Argument(help="Another, on the same images.", autocompletion=complete_model, show_default=False),
    ] = None,
    images: ImagePaths = None,
    video: VideoPaths = None,
    weights: Weights = None,
    parts: Annotated[
        bool, typer.Option("--parts/--blocks", help="Norms, attentions and MLPs too, as in the paper, or blocks alone.")
    ] = True,
    img_size: ImgSize = None,
    num_frames: FramesOption = None,
    input: InputOption = None,
    limit: Limit = 128,
    seed: Seed = 0,
    device: DeviceOption = "auto",
    dtype: DtypeOption = DtypeChoice.fp32,
    batch_size: BatchSize = "auto",
    output: OutputFolder = Path(),
    figure_format: Figures = FigureFormat.png,
) -> None:
    """Similarity of all pairs of layers, of one model or of two, by unbiased CKA: Raghu et al., Figs. 1 and 2."""
    asked = _Asked(weights, seed, img_size, num_frames, input, device, dtype.value, batch_size, images, video, limit)
    if model_b is None:
        _run(["cka"], [model_a], asked, output, figure_format, options={"parts": parts})
    else:
        _compare(model_a, model_b, asked, output, figure_format, {"parts": parts})


def receptive_field(
    models: Models,
    images: ImagePaths = None,
    video: VideoPaths = None,
    weights: Weights = None,
    variant: Annotated[
        Variant,
        typer.Option(
            "--variant",
            help="Raghu et al.'s of every layer, or RepLKNet's of the last, for --img-size 1024.",
        ),
    ] = Variant.raghu,
    channels: Annotated[
        int | None,
        typer.Option("--channels", min=1, help="Gradients of so many random channels, not of the mean of all."),
    ] = None,
    layer: Annotated[list[str] | None, typer.Option("--layer", help="This layer alone; may be repeated.")] = None,
    img_size: ImgSize = None,
    num_frames: FramesOption = None,
    input: InputOption = None,
    limit: Annotated[
        int | None,
        typer.Option("--limit", min=1, help="Of more images, a seeded sample; by default 32, of replknet 50."),
    ] = None,
    seed: Seed = 0,
    device: DeviceOption = "auto",
    dtype: DtypeOption = DtypeChoice.fp32,
    output: OutputFolder = Path(),
    figure_format: Figures = FigureFormat.png,
) -> None:
    """Which pixels the middle of each layer's map depends on: effective receptive fields, Raghu et al., Fig. 6."""
    from vitbench.analyses.receptive_field import IMAGES

    most = limit or IMAGES[variant.value]
    asked = _Asked(weights, seed, img_size, num_frames, input, device, dtype.value, "1", images, video, most)
    options = {"variant": variant.value, "channels": channels, "layers": tuple(layer) if layer else None, "limit": most}
    _run(["receptive-field"], models, asked, output, figure_format, options=options)


def feature_maps(
    models: Models,
    images: ImagePaths = None,
    video: VideoPaths = None,
    weights: Weights = None,
    layer: Annotated[
        list[str] | None, typer.Option("--layer", help="Draw this one; may be repeated. By default three.")
    ] = None,
    img_size: ImgSize = None,
    num_frames: FramesOption = None,
    input: InputOption = None,
    limit: Limit = 128,
    seed: Seed = 0,
    device: DeviceOption = "auto",
    dtype: DtypeOption = DtypeChoice.fp32,
    batch_size: BatchSize = "auto",
    output: OutputFolder = Path(),
    figure_format: Figures = FigureFormat.png,
) -> None:
    """Channels of early, middle and late layers as pictures, and the share that is dead: T2T-ViT's Fig. 2, at --img-size 1024."""
    asked = _Asked(weights, seed, img_size, num_frames, input, device, dtype.value, batch_size, images, video, limit)
    _run(["feature-maps"], models, asked, output, figure_format, options={"layers": tuple(layer) if layer else None})


def analyze(
    model: Annotated[str, typer.Argument(help="A model.", autocompletion=complete_model, show_default=False)],
    images: ImagePaths = None,
    video: VideoPaths = None,
    weights: Weights = None,
    img_size: ImgSize = None,
    num_frames: FramesOption = None,
    input: InputOption = None,
    limit: Limit = 128,
    seed: Seed = 0,
    device: DeviceOption = "auto",
    dtype: DtypeOption = DtypeChoice.fp32,
    batch_size: BatchSize = "auto",
    output: OutputFolder = Path("analyses"),
    figure_format: Figures = FigureFormat.png,
) -> None:
    """All analyses that apply, in as few forward passes as possible, and why the others do not."""
    asked = _Asked(weights, seed, img_size, num_frames, input, device, dtype.value, batch_size, images, video, limit)
    _run(list(ANALYSES.names), [model], asked, output, figure_format, options={"most_maps": 6}, whole=True)


@dataclass(frozen=True, slots=True)
class _Asked:
    """The options that commands share, as the user gave them."""

    weights: list[str] | None
    seed: int
    img_size: Extents | None = None
    num_frames: int | None = None
    input: Extents | None = None
    device: str = "cpu"
    dtype: str = "fp32"
    batch_size: str = "1"
    images: list[str] | None = None
    video: list[str] | None = None
    limit: int = 128

    def of(self, models: Sequence[str]) -> list[Ask]:
        """Gives what is asked of each model; one named twice with the same weights is one.

        Raises:
            BadInput: there are several weights, and not one for each model.
        """
        weights = self.weights or ["pretrained"]
        if len(weights) not in (1, len(models)):
            raise BadInput(
                f"There are {len(weights)} --weights for {len(models)} models: give one for all, or one for each in their order."
            )
        each = weights * len(models) if len(weights) == 1 else weights
        return [self._one(model, own) for model, own in dict.fromkeys(zip(models, each, strict=True))]

    def _one(self, model: str, weights: str) -> Ask:
        from vitbench.analyze import Ask

        return Ask(
            model=model,
            weights=weights,
            img_size=None if self.img_size is None else (self.img_size[0], self.img_size[1]),
            num_frames=self.num_frames,
            input_shape=self.input,
            device=self.device,
            dtype=self.dtype,  # type: ignore[arg-type]  # one of DtypeChoice
            batch_size="auto" if self.batch_size == "auto" else int(self.batch_size),
            seed=self.seed,
        )

    def found(self, subject: Subject) -> Images:
        """Gives the images or clips for a model, and says what they go through.

        Raises:
            BadInput: there are none, or they are not what the model takes.
        """
        from vitbench import analyze
        from vitbench.inputs import images

        clips = subject.takes_clips
        if clips and not self.video:
            raise BadInput(f"{subject.ask.model} takes clips: give videos with --video FILE or --video DIR.")
        if not clips and not self.images:
            raise BadInput(f"{subject.ask.model} takes images: give them with --images DIR or --images FILE.")
        prepared = analyze.preprocessing(subject)
        if clips:
            found = images.open_videos(self.video or (), prepared, limit=self.limit, seed=self.seed)
        else:
            found = images.open_images(self.images or (), prepared, limit=self.limit, seed=self.seed)
        what = f"{'clip' if clips else 'image'}{'' if len(found) == 1 else 's'}"
        status(f"{subject.title}: {len(found)} {what} of {found.source}; {prepared.text}.")
        return found


class _Findings:
    """What the analyses of a command have found so far, by analysis and title, and where it was written."""

    def __init__(self, folder: Path, ending: str, drawn: Mapping[str, Mapping[str, Any]]) -> None:
        self._folder, self._ending, self._drawn = folder, ending, drawn
        self._found: dict[str, dict[str, Any]] = {}
        self._rows: dict[str, list[dict[str, Any]]] = {}
        self._models: dict[str, list[str]] = {}
        self._replaced: set[Path] = set()
        self.refused: list[Outcome] = []

    def add(self, outcome: Outcome) -> None:
        """Keeps an outcome."""
        from vitbench import analyze

        if outcome.finding is None:
            self.refused.append(outcome)
            return
        found = self._found.setdefault(outcome.analysis, {})
        alike = sum(title.startswith(outcome.subject.title) for title in found)  # files of one name in two folders
        found[f"{outcome.subject.title} [{alike + 1}]" if outcome.subject.title in found else outcome.subject.title] = (
            outcome.finding
        )
        self._rows.setdefault(outcome.analysis, []).extend(analyze.rows(outcome))
        models = [one.ask.model for one in (outcome.subject, outcome.other) if one is not None]
        self._models.setdefault(outcome.analysis, []).extend(models)

    def __bool__(self) -> bool:
        return bool(self._found)

    def write(self, *, shown: bool = True, summary: Table | None = None) -> None:
        """Writes a CSV and a picture an analysis, prints the tables, and says which files there are.

        Args:
            shown: print the tables also where all could be written.
            summary: what is printed then in the place of the tables.

        Raises:
            CannotWrite: a file cannot be written; the tables are printed, so that the numbers are not lost.
        """
        from vitbench.drawing.pictures import rendered

        files: dict[str, list[Path]] = {}
        try:
            # Numbers before pictures, which can be drawn again.
            for analysis, rows in self._rows.items():
                text = REPORTS.load("csv").render(Table(rows=rows, columns=()))
                files[analysis] = [self._written(analysis, ".csv", text)]
            for analysis, findings in self._found.items():
                figure = ANALYSES.load(analysis).draw(findings, **self._drawn.get(analysis, {}))
                files[analysis].append(self._written(analysis, self._ending, rendered(figure, self._ending)))
        except CannotWrite:
            self._print()
            raise
        if shown and summary is not None:
            emit(summary, None, None)
        elif shown:
            self._print()
        for paths in files.values():
            older = ", in the place of older ones" if self._replaced & set(paths) else ""
            status(f"Wrote {' and '.join(str(path) for path in paths)}{older}.")

    def _written(self, analysis: str, ending: str, content: str | bytes) -> Path:
        path = self._folder / f"{analysis}-{_stem(self._models[analysis])}{ending}"
        if path.exists():
            self._replaced.add(path)
        results.write(path, content)
        return path

    def _print(self) -> None:
        for analysis, findings in self._found.items():
            emit(ANALYSES.load(analysis).table(findings), None, None)

    def notes(self) -> list[str]:
        """Gives what each analysis has to say of what it found, such as which layers it left out."""
        return [
            f"{analysis}: {note}"
            for analysis, findings in self._found.items()
            for finding in findings.values()
            for note in finding.notes
        ]

    def counts(self) -> dict[str, int]:
        """Gives how many rows each analysis found."""
        return {analysis: len(rows) for analysis, rows in self._rows.items()}


def _stem(models: Sequence[str]) -> str:
    """Gives a part of a file's name from models' names, which may hold anything."""
    whole = "+".join(re.sub(r"[^A-Za-z0-9_.-]+", "_", model).strip(".") or "_" for model in models)
    return whole if len(whole) <= _LONGEST_STEM else f"{whole[:_LONGEST_STEM]}-and-more"


def _run(
    names: Sequence[str],
    models: Sequence[str],
    asked: _Asked,
    folder: Path,
    figure_format: FigureFormat,
    *,
    options: Mapping[str, Any] | None = None,
    drawn: Mapping[str, Mapping[str, Any]] | None = None,
    whole: bool = False,
) -> None:
    """Runs analyses on models, writes and prints what they find.

    Args:
        names: of the analyses.
        models: as the user gave them.
        asked: the options that commands share.
        folder: for the files.
        figure_format: of the pictures.
        options: fields of `analyze.Options`.
        drawn: keyword arguments of an analysis's `draw`, by its name.
        whole: an analysis that is not defined is a line of the summary, not an error.
    """
    from vitbench import analyze

    asks = asked.of(models)
    for ask in asks:
        analyze.check(ask)
    analyze.settle(asks[0])
    _make(folder)
    found = _Findings(folder, f".{figure_format.value}", drawn or {})
    skipped = _Skipped()
    needs_images = any(name not in analyze.OF_WEIGHTS for name in names)
    try:
        for ask in asks:
            subject = analyze.subject(ask)
            images = asked.found(subject) if needs_images else None
            for outcome in analyze.look(
                subject, names, images, options=analyze.Options(**(options or {})), along=_along
            ):
                found.add(outcome)
                skipped.note(images)
    except BaseException:
        # Ctrl-C, or a model that failed after others: what they gave is not lost.
        skipped.say()
        if found:
            found.write(shown=False)
        raise
    skipped.say()
    if not found:
        raise NotSupported("\n".join(outcome.refusal for outcome in found.refused))
    found.write(summary=_summary(found) if whole else None)
    if found.refused and not whole:
        for outcome in found.refused:
            status(outcome.refusal)
        raise typer.Exit(SOME_FAILED)


def _compare(
    model_a: str, model_b: str, asked: _Asked, folder: Path, figure_format: FigureFormat, options: Mapping[str, Any]
) -> None:
    """Compares two models by CKA."""
    from vitbench import analyze

    asks = asked.of([model_a, model_b])
    asks = asks if len(asks) == 2 else asks * 2
    for ask in asks:
        analyze.check(ask)
    analyze.settle(asks[0])
    _make(folder)
    found = _Findings(folder, f".{figure_format.value}", {})
    first, second = (analyze.subject(ask) for ask in asks)
    opened = asked.found(first), asked.found(second)
    skipped = _Skipped()
    try:
        for outcome in analyze.compared(first, second, opened, options=analyze.Options(**options), along=_along):
            found.add(outcome)
            skipped.note(opened[0])  # the other reads the same files
    except BaseException:
        skipped.say()
        if found:
            found.write(shown=False)
        raise
    skipped.say()
    found.write()


def _make(folder: Path) -> None:
    """Makes the folder for the files, before anything is computed.

    Raises:
        CannotWrite: it cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CannotWrite(f"Cannot make the folder {folder}: {error.strerror}.") from error
    results.check_writable(folder / "analysis.csv")


def _summary(found: _Findings) -> Table:
    """Gives a line an analysis: what it found out, in how many rows, or why it is not defined."""
    rows = [
        *({"analysis": analysis, "result": f"{count} rows"} for analysis, count in found.counts().items()),
        *({"analysis": outcome.analysis, "result": outcome.refusal} for outcome in found.refused),
    ]
    order = {name: place for place, name in enumerate(ANALYSES.names)}
    rows.sort(key=lambda row: order[row["analysis"]])
    return Table(
        rows=rows,
        notes=found.notes(),
        columns=[
            Column(heading="Analysis", text=lambda row: row["analysis"]),
            Column(heading="Result", text=lambda row: row["result"], folds=True),
        ],
    )


class _Skipped:
    """What could not be read, or not to its end, in all passes."""

    def __init__(self) -> None:
        self._reasons: dict[str, str] = {}
        self._padded: dict[str, None] = {}
        self._tried: dict[str, int] = {}

    def note(self, images: Images | None) -> None:
        """Keeps what the last pass over images could not read."""
        if images is not None:
            self._reasons |= dict(images.skipped)
            self._padded |= dict.fromkeys(images.padded)
            self._tried[images.source] = len(images)

    def say(self) -> None:
        """Names the first few."""
        if self._reasons:
            some = [f"{name} ({reason})" for name, reason in self._reasons.items()]
            status(f"Skipped {len(some)} of {sum(self._tried.values())} that could not be read: {_first_few(some)}.")
        if self._padded:
            status(f"Shorter than a clip, with the last frame repeated: {_first_few([*self._padded])}.")


def _first_few(names: Sequence[str]) -> str:
    return "; ".join([*names[:5], *([f"and {len(names) - 5} more"] if len(names) > 5 else [])])


def _along(batches: Iterable[Batch], total: int) -> Iterator[Batch]:
    """Passes batches on, with a bar and images a second on standard error where that is a terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield from batches
        return
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    shown = (
        TextColumn("Looking"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*shown, console=console, transient=True) as bar:
        task = bar.add_task("", total=total, rate="")
        for batch in batches:
            yield batch
            bar.advance(task, len(batch.names))
            speed = bar.tasks[0].speed
            bar.update(task, rate=f"{speed:.1f}/s" if speed else "")
