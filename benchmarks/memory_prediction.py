"""Holds predicted memory against measured memory, for a model of every family of the catalog.

Each measurement has a process of its own. A CPU's peak is resident memory, an accelerator's what its allocator handed out.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, fields
from multiprocessing import get_context
from pathlib import Path

import torch

from vitbench.build import Plan, plan
from vitbench.findings import Measured
from vitbench.metrics import memory
from vitbench.records import Dtype, Mode, RunSetting
from vitbench.running import device, environment, passes
from vitbench.units import size

BOUNDS: dict[tuple[str, Mode], float] = {
    ("cpu", "infer"): 0.10,
    ("cpu", "train"): 0.15,
    ("accelerator", "infer"): 0.05,
    ("accelerator", "train"): 0.10,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What is run: a batch of 8, where a process's fixed costs do not drown it, of images or clips that fit into 8 GiB."""

    model: str
    batch_size: int = 8
    img_size: int | None = None
    num_frames: int | None = None
    dtype: Dtype = "fp32"

    def plan(self) -> Plan:
        """Gives the model's plan."""
        return plan(self.model, img_size=self.img_size, num_frames=self.num_frames)


CASES = (
    Case(model="vit_s16"),
    Case(model="r_vit_ti16"),
    Case(model="bit_r50x1", img_size=224),
    Case(model="resnet50"),
    Case(model="regnety_16gf"),
    Case(model="efficientnet_l2_475", batch_size=8, img_size=64),
    Case(model="deit_ti16_dist"),
    Case(model="swin_t"),
    Case(model="swinv2_t_w8"),
    Case(model="pvt_v2_b0"),
    Case(model="pvt_v2_b2_li"),
    Case(model="mvitv2_t"),
    Case(model="cvt_13"),
    Case(model="t2t_vit_7"),
    Case(model="t2t_vit_t_14"),
    Case(model="pvt_tiny"),
    Case(model="coatnet_0"),
    Case(model="cct_7_3x2_32", batch_size=256),
    Case(model="cct_7_7x2_224"),
    Case(model="compact_cvt_7_4_32", batch_size=256),
    Case(model="vit_lite_7_4_32", batch_size=256),
    Case(model="vivit_b_16x2_fe", num_frames=4),
    Case(model="timesformer", num_frames=2),
    Case(model="mvit_s_16x4", img_size=112),
    Case(model="vit_s16", dtype="bf16"),
    Case(model="resnet50", dtype="bf16"),
    Case(model="swin_t", dtype="bf16"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One prediction against one measurement."""

    model: str
    family: str
    input_shape: str
    batch_size: int
    mode: Mode
    dtype: str
    device: str
    predicted_weights_bytes: int
    measured_weights_bytes: int
    predicted_gradients_bytes: int
    measured_gradients_bytes: int
    predicted_optimizer_bytes: int
    measured_optimizer_bytes: int
    predicted_activations_bytes: int
    measured_activations_bytes: int
    predicted_workspace_bytes: int
    predicted_peak_bytes: int
    measured_peak_bytes: int
    predicted_over_measured: float | None
    measured_reserved_bytes: int | None
    measured_driver_bytes: int | None
    prediction_s: float
    threads: int
    versions: str
    cpu: str


def measure(case: Case, setting: RunSetting) -> Measured:
    """Measures a case, in the process that it is called in."""
    device.prepare(torch.device(setting.device), setting.dtype, setting.threads)
    return memory.measure(case.plan().build, setting)


def lines(cases: Sequence[Case], modes: Sequence[Mode], where: str) -> Iterator[Line]:
    """Yields a line a case and mode, as each is known."""
    here = environment.describe()
    for case in cases:
        for mode in modes:
            planned = case.plan()
            assert planned.input_shape is not None
            assert planned.variant is not None
            setting = RunSetting(
                model=case.model,
                input_shape=planned.input_shape,
                batch_size=case.batch_size,
                device=where,
                dtype=case.dtype,
                mode=mode,
                threads=torch.get_num_threads(),
            )
            on_meta = planned.build("meta")
            start = time.perf_counter()
            predicted = memory.predict(on_meta, setting)
            prediction_s = time.perf_counter() - start
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                measured = pool.submit(measure, case, setting).result()
            yield Line(
                model=case.model,
                family=planned.variant.family,
                input_shape=size(planned.input_shape),
                batch_size=case.batch_size,
                mode=mode,
                dtype=case.dtype,
                device=where,
                **asdict(predicted),
                **asdict(measured),
                **asdict(memory.compare(predicted, measured)),
                prediction_s=round(prediction_s, 3),
                threads=setting.threads,
                versions=f"vitbench {here.vitbench}, torch {here.torch}, timm {here.timm}",
                cpu=here.cpu,
            )


def markdown(found: Sequence[Line]) -> str:
    """Gives the table, a row a line, with those outside of their bound marked."""
    rows = [
        "| family | model | input | batch | mode | dtype | predicted | measured | predicted / measured |",
        "|---|---|---|---:|---|---|---:|---:|---:|",
    ]
    for line in found:
        bound = BOUNDS["cpu" if line.device == "cpu" else "accelerator", line.mode]
        assert line.predicted_over_measured is not None  # these are no tiny models
        outside = " (!)" if abs(line.predicted_over_measured - 1) > bound else ""
        rows.append(
            f"| {line.family} | {line.model} | {line.input_shape} | {line.batch_size} | {line.mode} | {line.dtype} "
            f"| {line.predicted_peak_bytes / 2**20:,.1f} MiB | {line.measured_peak_bytes / 2**20:,.1f} MiB "
            f"| {line.predicted_over_measured:.3f}{outside} |"
        )
    return "\n".join(rows)


def main() -> None:
    """Parses the options, predicts, measures, writes and prints."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0] if __doc__ else "")
    parser.add_argument(
        "--models", nargs="+", metavar="NAME", help="names of the catalog; one or two a family by default"
    )
    parser.add_argument("--modes", nargs="+", choices=("infer", "train"), default=("infer", "train"))
    parser.add_argument("--batch-size", type=int, help="8 by default, 256 where images have 32 pixels")
    parser.add_argument("--dtype", choices=passes.DTYPES, help="fp32 by default, and bf16 besides for three models")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, default=Path("results/memory_prediction.csv"))
    options = parser.parse_args()
    cases = [case for case in CASES if options.models is None or case.model in options.models]
    known = {case.model for case in cases}
    cases += [Case(model=name) for name in options.models or () if name not in known]
    if options.dtype:
        cases = [Case(**asdict(case) | {"dtype": options.dtype}) for case in cases if case.dtype == "fp32"]
    if options.batch_size:
        cases = [Case(**asdict(case) | {"batch_size": options.batch_size}) for case in cases]
    found: list[Line] = []
    with options.output.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Line)], lineterminator="\n")
        writer.writeheader()
        for line in lines(cases, options.modes, str(device.resolve(options.device))):
            found.append(line)
            writer.writerow(asdict(line))
            file.flush()
    print(markdown(found))


if __name__ == "__main__":
    main()
