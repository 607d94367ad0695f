"""What the metrics and the analyses find: a record for each, whose fields are columns of every table and file.

Declared here, apart from the code that finds it, so that results are read, compared and drawn without torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from vitbench.records import Within, column

Agreed = Literal["agrees", "explained", "differs", "failed"]
Method = Literal["predicted", "measured"]
Scope = Literal["window", "grid", "map"]
Axis = Literal["space", "time"]

# What another processor or another order of summing changes.
_SAME = Within(relative=1e-3, absolute=1e-6)


def _peak(row: Mapping[str, Any]) -> Within:
    """An accelerator's allocator hands out blocks of 2 MiB; resident memory on a CPU has pages and holes."""
    if str(row.get("device") or "cpu") == "cpu":
        return Within(relative=0.03, absolute=16 * 2**20)
    return Within(relative=0.01, absolute=2 * 2**20)


def _rounding(row: Mapping[str, Any]) -> Within:
    """Half precisions round more, in an order that depends on the machine; TF32 rounds what goes into a product."""
    return Within(relative={"fp32": 1e-5, "tf32": 1e-2}.get(str(row.get("dtype")), 2e-2))


def _if_measured(row: Mapping[str, Any]) -> Within:
    return Within(relative=0.02) if row.get("max_batch_method") == "measured" else Within()


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One line of a breakdown; the lines sum to the whole."""

    part: str = column("Part", key=True, meaning="path of a module, empty for the model itself, or name of an operator")
    params: int | None = column("Params", better="lower", meaning="parameters of the module; empty for operators")
    macs: int = column("MACs", better="lower", meaning="multiply-accumulates")
    flops: int = column("FLOPs = 2 x MACs", meaning="2 x macs")
    activations: int = column("Activations", better="lower", meaning="elements written by products and convolutions")
    uncounted_elements: int = column("Not counted", better="lower", meaning="elements written by all other operators")
    share: float = column("Share", meaning="part of the model's macs, 0 to 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Flops:
    """What one forward pass of a model costs, on any machine.

    Left out of `macs`, and listed in `uncounted`: everything that is no matrix product, convolution or attention, such as
    normalisation, softmax, activation functions, additions, pooling and copies.
    """

    params: int = column("Params", better="lower", meaning="parameters, each counted once however often it is used")
    params_trainable: int = column("Trainable", better="lower", meaning="parameters that require a gradient")
    macs: int = column(
        "MACs", better="lower", meaning="multiply-accumulates of matrix products, convolutions and attention, per batch"
    )
    flops: int = column("FLOPs = 2 x MACs", meaning="2 x macs")
    activations: int | None = column(
        "Activations",
        better="lower",
        meaning="elements written by matrix products, convolutions and attention's two products, as fvcore defines them",
    )
    uncounted_elements: int | None = column(
        "Not counted", better="lower", meaning="elements written by operators that macs leaves out"
    )
    uncounted: Mapping[str, int] | None = column("Not counted, by operator", meaning="uncounted_elements, by operator")
    operators: Mapping[str, int] | None = column(
        "Operators", better="equal", meaning="how often each operator is called, counted in macs or not"
    )
    modules: list[list[Any]] | None = column(
        "Modules",
        meaning="path, params and macs of each module, two names of a path deep, in the order of the pass; they sum to the whole",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class CrossCount:
    """The second counter's answer beside the first's."""

    macs_fvcore: int = column(
        "MACs (fvcore)", better="lower", meaning="products, convolutions and attention as fvcore's trace counts them"
    )
    macs_disagreement: int = column("Disagree", better="equal", meaning="macs minus macs_fvcore")


@dataclass(frozen=True, slots=True, kw_only=True)
class Beside:
    """The published figures beside ours."""

    published_params: float | None = column("Published", meaning="published parameters of this model at this input")
    params_difference: float | None = column("Difference", meaning="params over published_params, minus 1")
    published_macs: float | None = column(
        "Published",
        meaning="published multiply-accumulates of one input, or view of a video; halved where the source counts two for each",
    )
    macs_difference: float | None = column("Difference", meaning="macs of one input over published_macs, minus 1")
    published_source: str = column("Source", meaning="where the published figures stand")
    published_reason: str = column("Reason", meaning="why a right count differs from them by more than the tolerance")


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One published figure beside our counts of the same model at the same input."""

    model: str = column("Model", key=True, meaning="name in the catalog")
    input_shape: tuple[int, ...] = column("Input", key=True, meaning="without the batch")
    source: str = column("Source", key=True, meaning="where the figure stands")
    params: int | None = column("Params", better="lower", meaning="our parameters")
    published_params: float | None = column("Published", meaning="theirs; empty where the source gives none")
    params_difference: float | None = column("Difference", meaning="params over published_params, minus 1")
    macs: int | None = column("MACs", better="lower", meaning="our multiply-accumulates of one input")
    published_macs: float | None = column(
        "Published",
        meaning="theirs, of one view of a video; halved where they count two for each, empty where they leave something out",
    )
    macs_difference: float | None = column("Difference", meaning="macs over published_macs, minus 1")
    verdict: Agreed = column(
        "Verdict",
        meaning="agrees: within 1 % (macs), 0.6 % (params) or the rounding; explained: outside, with a reason",
    )
    reason: str = column("Reason", meaning="why the two differ")
    convention: str = column("Convention", meaning="what the source counts")


@dataclass(frozen=True, slots=True, kw_only=True)
class Throughput:
    """How fast a model runs. Times are of a whole batch, the device being idle before and after."""

    throughput_per_s: float = column(
        "Inputs/s", better="higher", timed=True, meaning="images or clips a second: batch_size over latency_median_ms"
    )
    latency_median_ms: float = column(
        "Median",
        meaning="milliseconds a batch (training: a step), median; of several processes, the mean of their medians",
    )
    latency_low_ms: float | None = column(
        "Low",
        meaning="lower end of the 95 % interval of the median: between two samples, or, of several processes, Student's; empty "
        "for fewer than six samples",
    )
    latency_high_ms: float | None = column("High", meaning="its upper end")
    latency_p90_ms: float | None = column("p90", meaning="90th percentile")
    latency_p95_ms: float | None = column("p95", meaning="95th percentile; empty for fewer than 100 samples")
    latency_p99_ms: float | None = column("p99", meaning="99th percentile; empty for fewer than 500 samples")
    forward_median_ms: float | None = column(
        "Forward", better="lower", timed=True, meaning="of a training step: forward pass and loss"
    )
    backward_median_ms: float | None = column(
        "Backward", better="lower", timed=True, meaning="of a training step: backward pass"
    )
    optimizer_median_ms: float | None = column(
        "Optimizer", better="lower", timed=True, meaning="of a training step: AdamW's step"
    )
    first_call_ms: float = column("First call", meaning="the first call, of the first process; not among the samples")
    compile_s: float | None = column(
        "Compile",
        meaning="seconds that compiling took: the first call less latency_median_ms; empty for eager",
    )
    samples: int = column("Samples", meaning="runs that were measured")
    warmup: int = column("Warm-up", meaning="runs thrown away after the first, until the times settled")
    repeats: int = column("Repeats", meaning="processes that measured, one after another")
    clock: str = column("Clock", meaning="host: the processor's, the device waited for; events: the accelerator's")
    achieved_flops_per_s: float | None = column(
        "FLOP/s", meaning="2 x macs of the forward pass, three times that in training, over latency_median_ms"
    )
    peak_flops_per_s: float = column(
        "Peak FLOP/s", meaning="fastest product of two square matrices of that dtype, in the same process"
    )
    utilization: float | None = column("Of peak", meaning="achieved_flops_per_s over peak_flops_per_s")
    other_cores: float = column("Other load", meaning="processors kept busy by others meanwhile, on average")
    quiet: bool = column("Quiet", meaning="whether none of the warnings of the machine's other work or clock applies")
    warnings: tuple[str, ...] = column("Warnings", meaning="names of doubts about the row, explained in the README")
    samples_ms: list[list[float]] = column("Samples", meaning="milliseconds of each run, a list a process")
    phases_ms: list[list[list[float]]] = column(
        "Phases",
        meaning="milliseconds of each part of a run, a list a process and part: the whole, or forward, backward, optimizer",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Roofline:
    """Where a forward pass lies under what the machine can do at most; its speed and the products' peak are `Throughput`'s.

    Source: Williams, Waterman and Patterson, Roofline: an insightful visual performance model (2009).
    """

    traffic_bytes: int = column(
        "Traffic",
        better="lower",
        meaning="bytes that the operators of a pass read and write, each tensor once a call, as if nothing stayed in a cache",
    )
    intensity_flops_per_byte: float = column(
        "FLOP/byte", meaning="flops of a pass over traffic_bytes: its place on the roofline"
    )
    bandwidth_bytes_per_s: float = column(
        "Bandwidth", meaning="fastest copy, or sum in place, of two arrays of 256 MiB: bytes read and written"
    )
    roof_flops_per_s: float = column(
        "Roof",
        meaning="the lower of peak_flops_per_s and intensity_flops_per_byte x bandwidth_bytes_per_s",
    )
    roof_share: float = column("Of roof", meaning="achieved_flops_per_s over roof_flops_per_s")
    blocks: list[list[Any]] = column(
        "Blocks",
        meaning="path, flops, bytes and median seconds of each module, two names of a path deep, in the order of the pass",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Fingerprint:
    """What a model computes, whatever the time it takes."""

    output: tuple[float, ...] = column(
        "Output",
        better="equal",
        within=_rounding,
        meaning="16 projections of the output for weights and an input drawn from seed 0; their norm is about the output's",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Predicted:
    """What a pass would hold on a device that need not be here; the parts peak at different times and need not sum."""

    predicted_weights_bytes: int = column("Weights", better="lower", meaning="predicted: parameters and buffers")
    predicted_gradients_bytes: int = column(
        "Gradients", better="lower", meaning="predicted: all gradients of parameters, when the backward pass ends"
    )
    predicted_optimizer_bytes: int = column("Optimizer", better="lower", meaning="predicted: AdamW's state")
    predicted_activations_bytes: int = column(
        "Activations",
        better="lower",
        meaning="predicted: the most that inputs, activations, their gradients and temporaries held at once, before the "
        "optimizer's step",
    )
    predicted_workspace_bytes: int = column(
        "Workspace", better="lower", meaning="predicted: what cuBLAS keeps on a CUDA device, once for each thread"
    )
    predicted_peak_bytes: int = column(
        "Peak", better="lower", meaning="predicted: the most that all of them held at once"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What a pass held. On a CPU the peak is resident memory, on an accelerator what its allocator had handed out."""

    measured_weights_bytes: int = column(
        "Weights, measured", better="lower", within=_peak, meaning="growth while the model was built"
    )
    measured_gradients_bytes: int = column(
        "Gradients, measured",
        better="lower",
        within=_peak,
        meaning="the gradients that the parameters had after a backward pass",
    )
    measured_optimizer_bytes: int = column(
        "Optimizer, measured", better="lower", within=_peak, meaning="the tensors that AdamW kept between steps"
    )
    measured_activations_bytes: int = column(
        "Activations, measured",
        better="lower",
        within=_peak,
        meaning="the largest growth before the optimizer's step, less weights, optimizer state and the gradients until then; "
        "on an accelerator cuBLAS's workspaces are in it",
    )
    measured_peak_bytes: int = column(
        "Peak, measured",
        better="lower",
        within=_peak,
        meaning="CPU: peak of resident memory above that before the model was built; accelerator: peak of allocated memory",
    )
    measured_reserved_bytes: int | None = column(
        "Reserved",
        better="lower",
        within=Within(relative=0.05),
        meaning="peak of what an accelerator's allocator took from the driver; empty on a CPU",
    )
    measured_driver_bytes: int | None = column(
        "Driver",
        meaning="what an accelerator's driver says is in use after the pass, contexts and other processes included; empty on "
        "a CPU, or where the driver does not say",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """A prediction against a measurement of the same pass."""

    predicted_over_measured: float | None = column(
        "Predicted / measured", meaning="predicted peak over measured peak; empty where less than a page was measured"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class MaxBatch:
    """The largest batch of which a pass fits into a memory, 0 if not even one input does."""

    max_batch: int = column(
        "Max batch",
        better="higher",
        within=_if_measured,
        meaning="the largest batch that fits; 0: not even one input does",
    )
    max_batch_method: Method = column("Method", meaning="predicted, or measured on the accelerator")
    limit_bytes: int | None = column(
        "Memory", meaning="what the pass must fit into; measured: all that the driver says the device has"
    )
    peak_bytes: int | None = column(
        "Peak",
        better="lower",
        within=_if_measured,
        meaning="peak of allocated memory at that batch, without the driver's own; empty if none fits",
    )
    next_peak_bytes: int | None = column("Peak, one more", meaning="the same with one input more; empty if measured")
    weights_bytes: int | None = column(
        "Weights", better="lower", within=_if_measured, meaning="parameters and buffers; empty if measured"
    )
    gradients_bytes: int | None = column(
        "Gradients", better="lower", within=_if_measured, meaning="of all parameters; empty if measured"
    )
    optimizer_bytes: int | None = column(
        "Optimizer", better="lower", within=_if_measured, meaning="AdamW's state; empty if measured"
    )
    activations_bytes: int | None = column(
        "Activations",
        better="lower",
        within=_if_measured,
        meaning="the most that all else held at that batch; empty if measured",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadDistance:
    """How far one head of one layer attends."""

    layer: str = column(
        "Layer", key=True, meaning="name of the attention's module; in brackets, which of its ways of attending"
    )
    depth: int = column("Depth", meaning="number of the layer, from 0, in the order in which they run")
    head: int = column("Head", key=True, meaning="number of the head, from 0")
    distance_px: float | None = column(
        "Distance",
        better="equal",
        within=_SAME,
        meaning="mode renorm: the weights of the tokens that have a place are made to sum to 1; pixels of the input",
    )
    distance_paper_px: float | None = column(
        "Distance (paper)",
        better="equal",
        within=_SAME,
        meaning="mode paper: as the ViT paper drew it, keys without a place dropped and nothing made up for them",
    )
    sem_px: float | None = column("s.e.m.", meaning="standard error of distance_px over the inputs; empty with one")
    sem_paper_px: float | None = column("s.e.m. (paper)", meaning="standard error of distance_paper_px over the inputs")
    std_px: float | None = column("Std", meaning="standard deviation of distance_px over the inputs")
    distance_frames: float | None = column(
        "In time",
        better="equal",
        within=_SAME,
        meaning="mode renorm: mean distance along a clip, in frames of the input; empty for images",
    )
    distance_paper_frames: float | None = column(
        "In time (paper)", better="equal", within=_SAME, meaning="the same in mode paper"
    )
    sem_frames: float | None = column("s.e.m. in time", meaning="standard error of distance_frames over the inputs")
    prefix_mass: float = column(
        "Prefix mass",
        better="equal",
        within=_SAME,
        meaning="share of attention on class, distillation, register and padding tokens",
    )
    uniform_px: float | None = column("Uniform", meaning="distance_px of attention that is the same everywhere allowed")
    uniform_paper_px: float | None = column("Uniform (paper)", meaning="distance_paper_px of such attention")
    uniform_frames: float | None = column("Uniform in time", meaning="distance_frames of such attention")
    least_px: float | None = column("Least", meaning="mean distance to the nearest key: above 0 where keys are pooled")
    most_px: float | None = column("Most", meaning="mean distance to the farthest key")
    rows_left_out: int = column(
        "Rows left out",
        meaning="queries that attend to tokens without a place alone, to the last digit, so that distance_px has none",
    )
    query_grid: tuple[int, ...] = column("Grid", meaning="rows and columns of queries, for clips frames before them")
    key_grid: tuple[int, ...] = column("Key grid", meaning="rows and columns of keys, for clips frames before them")
    pitch_px: tuple[float, ...] = column("Pitch", meaning="pixels from one query to the next, down and across")


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadEntropy:
    """How spread out the attention of one head of one layer is."""

    layer: str = column(
        "Layer", key=True, meaning="name of the attention's module; in brackets, which of its ways of attending"
    )
    depth: int = column("Depth", meaning="number of the layer, from 0, in the order in which they run")
    head: int = column("Head", key=True, meaning="number of the head, from 0")
    entropy_nats: float | None = column(
        "Entropy",
        better="equal",
        within=_SAME,
        meaning="mean over queries that have a place, and inputs, of a whole row's entropy",
    )
    sem_nats: float | None = column("s.e.m.", meaning="standard error of entropy_nats over the inputs; empty with one")
    entropy_share: float | None = column(
        "Of uniform",
        better="equal",
        within=_SAME,
        meaning="the same, each row's over the logarithm of the keys that it may attend to: 0 to 1",
    )
    entropy_placed_nats: float | None = column(
        "Entropy (placed)",
        better="equal",
        within=_SAME,
        meaning="over the tokens that have a place, whose weights are made to sum to 1",
    )
    uniform_nats: float | None = column(
        "Uniform", meaning="entropy_nats of attention that is the same everywhere allowed"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutMap:
    """What one output token has from the places of one frame of one input."""

    input: int = column("Input", key=True, meaning="number of the image or clip, from 0")
    name: str = column("File", meaning="its name")
    token: str = column(
        "Token",
        key=True,
        meaning="class, distillation, both (their mean), or average: of the tokens that have a place, where no other is read",
    )
    frame: int = column("Frame", key=True, meaning="number of the frame of tokens, from 0; 0 for images")
    placed_mass: float = column(
        "Mass on places",
        better="equal",
        within=_SAME,
        meaning="share of the row on tokens that have a place, all frames; the rest is on class tokens",
    )
    frame_share: float = column(
        "Frame's share", better="equal", within=_SAME, meaning="the frame's part of that share; 1 for images"
    )
    tile_height: int = column("Rows", meaning="rows of tokens")
    tile_width: int = column("Columns", meaning="columns of tokens")
    values: tuple[float, ...] = column(
        "Weights", better="equal", within=_SAME, meaning="the row's weights, in reading order"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Similarity:
    """How alike two layers are: one cell of the picture."""

    index_a: int = column("Layer", key=True, meaning="number of the layer of the first model, from 0 at the input")
    layer_a: str = column("Name", key=True, meaning="the layer of the first model")
    index_b: int = column("Other layer", key=True, meaning="number of the layer of the second model, or of the same")
    layer_b: str = column("Other name", key=True, meaning="the layer of the second model, or of the same")
    cka: float = column(
        "CKA",
        better="equal",
        within=_SAME,
        meaning="unbiased centred kernel alignment: 1 for equal up to rotation and scale, about 0, also below, for unrelated",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class FilterTile:
    """One frame of one component; an image's filters have one frame."""

    layer: str = column("Layer", key=True, meaning="path of the layer, the first that sees pixels")
    kind: str = column("What it is", meaning="patches, tubelets or a convolution, with kernel and stride")
    filters: int = column("Filters", meaning="output channels of the layer: the samples of the principal components")
    component: int = column("Component", key=True, meaning="from 1, in falling order of variance")
    explained_variance_ratio: float = column(
        "Variance", better="equal", within=_SAME, meaning="its share of the filters' variance"
    )
    cumulative_ratio: float = column(
        "Cumulative", better="equal", within=_SAME, meaning="share of it and all components before"
    )
    frame: int | None = column(
        "Frame", key=True, default=None, meaning="frame of the tubelet, from 0; empty for images"
    )
    tile_height: int = column("Tile height", meaning="rows of the tile")
    tile_width: int = column("Tile width", meaning="columns of the tile")
    values: tuple[float, ...] = column(
        "Values",
        meaning="red, green and blue of each pixel, in reading order; a component has length 1, its largest entry is positive; "
        "the picture shows 0.5 + 0.5 x value / largest magnitude in the component",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureMap:
    """One channel of one layer on the first image: one tile of the picture."""

    index: int = column("Layer", key=True, meaning="number of the layer among all of the model's, from 0 at the input")
    layer: str = column("Name", key=True, meaning="the layer: a path in the model, or what goes into one")
    channels: int = column("Channels", meaning="channels of the layer, of which the first 36 are drawn")
    dead_share: float = column(
        "Dead", better="lower", within=_SAME, meaning="part of all its channels that are dead, mean over the images"
    )
    large_share: float = column(
        "Too large",
        better="lower",
        within=_SAME,
        meaning="part of all its channels that are too large, mean over the images",
    )
    images: int = column("Images", meaning="images or clips that the shares are of")
    channel: int = column("Channel", key=True, meaning="number of the channel, from 0")
    dead: bool = column("Is dead", meaning="whether the channel is dead on the first image")
    large: bool = column("Is too large", meaning="whether the channel is too large on the first image")
    low: float = column("Low", meaning="its smallest value, drawn black")
    high: float = column("High", meaning="its largest value, drawn white")
    frame: int | None = column("Frame", meaning="of a clip, the temporal index that is drawn; empty for images")
    tile_height: int = column("Height", meaning="rows of the tile")
    tile_width: int = column("Width", meaning="columns of the tile")
    values: tuple[float, ...] = column("Values", meaning="the map, before scaling")


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadBias:
    """The bias of one head of one layer."""

    layer: int = column("Layer", key=True, meaning="number of the layer among those with a bias, from 0")
    module: str = column("Module", key=True, meaning="path of the module that holds the bias")
    head: int = column("Head", key=True, meaning="from 0")
    scope: Scope = column(
        "Scope", meaning="window of neighbours, grid of tokens spread over the map (MaxViT), or the whole map"
    )
    window_height: int = column("Window height", meaning="rows of tokens that attend to each other")
    window_width: int = column("Window width", meaning="columns of them")
    distance_tokens: float = column(
        "Distance, tokens",
        better="equal",
        within=_SAME,
        meaning="mean over queries of the mean distance to the keys, weighted by softmax(bias): the attention distance of "
        "queries and keys that are zero",
    )
    uniform_tokens: float = column("Uniform, tokens", meaning="the same without any bias")
    distance_px: float | None = column(
        "Distance",
        better="equal",
        within=_SAME,
        default=None,
        meaning="distance_tokens in pixels; empty where the pitch is not known",
    )
    uniform_px: float | None = column("Uniform", default=None, meaning="uniform_tokens in pixels")
    tile_height: int = column("Tile height", meaning="rows of offsets, 2 x window_height - 1")
    tile_width: int = column("Tile width", meaning="columns of offsets, 2 x window_width - 1")
    values: tuple[float, ...] = column(
        "Values",
        better="equal",
        within=_SAME,
        meaning="bias by where the key lies from the query, which is in the middle, in reading order; the picture shows it less "
        "its mean, since a constant changes no softmax",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class PositionTile:
    """How similar one position is to all others, of its frame in space, or of its place in time."""

    table: str = column("Table", key=True, meaning="which of the model's tables of positions")
    version: str = column(
        "Version", key=True, meaning="before or after resampling to another input size; empty where there is only one"
    )
    kernel: str = column("Kernel", meaning="how the table after became of that before; empty for others")
    axis: Axis = column(
        "Axis",
        key=True,
        meaning="space: similarity within a frame; time: of one place in all frames; of a table over both, each is the mean over "
        "the other",
    )
    origin: str = column("Origin", meaning="learnt, or fixed: sines and cosines, or another table that is not trained")
    prefix_rows: int = column("Prefix rows", meaning="rows of the table that belong to class tokens and the like")
    frame: int | None = column(
        "Frame", key=True, default=None, meaning="position in time of the tile, from 1; empty in space"
    )
    patch_row: int | None = column(
        "Row", key=True, default=None, meaning="patch row of the tile, from 1; empty in time"
    )
    patch_column: int | None = column(
        "Column", key=True, default=None, meaning="patch column of the tile, from 1; empty in time"
    )
    tile_height: int = column("Tile height", meaning="rows of the tile; 1 in time")
    tile_width: int = column("Tile width", meaning="columns of the tile; in time, frames")
    values: tuple[float, ...] = column(
        "Values", better="equal", within=_SAME, meaning="cosine similarity to each position, -1 to 1, in reading order"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """The field of one layer: one tile of the picture."""

    index: int = column("Layer", key=True, meaning="number of the layer, from 0 at the input")
    layer: str = column("Name", key=True, meaning="the layer: a path in the model, or what goes into one")
    side_20_px: float | None = column(
        "20 %",
        better="equal",
        within=_SAME,
        meaning="side of the smallest square around the middle with 20 % of the field; it may reach over the border",
    )
    side_30_px: float | None = column("30 %", better="equal", within=_SAME, meaning="the same with 30 %")
    side_50_px: float | None = column("50 %", better="equal", within=_SAME, meaning="the same with 50 %")
    side_99_px: float | None = column("99 %", better="equal", within=_SAME, meaning="the same with 99 %")
    grid: tuple[int, ...] = column("Grid", meaning="rows and columns of the layer's map, for clips frames before them")
    middle: tuple[int, ...] = column("Middle", meaning="the place in the grid whose gradient it is, counted from 0")
    images: int = column("Images", meaning="images or clips that were averaged over")
    variant: str = column("Variant", key=True, meaning="raghu or replknet")
    over_channels: str = column(
        "Channels",
        key=True,
        meaning="gradient of the mean (or sum) of all channels, or mean of the gradients of so many random ones",
    )
    frame_shares: tuple[float, ...] = column(
        "Frames", meaning="part of the field in each frame of a clip; empty for images"
    )
    tile_height: int = column("Height", meaning="rows of the tile, pixels of the input")
    tile_width: int = column("Width", meaning="columns of the tile, pixels of the input")
    values: tuple[float, ...] = column(
        "Values", meaning="raghu: mean absolute gradient, summed over colours and frames; replknet: scaled, 0 to 1"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenCosine:
    """The two tokens at one depth: one dot of the picture."""

    index: int = column(
        "Layer", key=True, meaning="0: the learned tokens; 1: with positions, as blocks get them; then after each block"
    )
    layer: str = column("Name", key=True, meaning="the layer: a path in the model, or what goes into one")
    cosine: float = column(
        "Cosine", better="equal", within=_SAME, meaning="cosine of class and distillation token, mean over images"
    )
    cosine_sem: float | None = column(
        "s.e.m.", meaning="standard error of that mean over images; empty where it does not depend on the image"
    )
    images: int = column("Images", meaning="images that were averaged over")


RECORDS: tuple[type[Any], ...] = (
    Part,
    Flops,
    CrossCount,
    Beside,
    Check,
    Throughput,
    Roofline,
    Fingerprint,
    Predicted,
    Measured,
    Agreement,
    MaxBatch,
    HeadDistance,
    HeadEntropy,
    RolloutMap,
    Similarity,
    FilterTile,
    FeatureMap,
    HeadBias,
    PositionTile,
    Field,
    TokenCosine,
)
"""All of them."""
