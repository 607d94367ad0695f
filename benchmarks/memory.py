"""Measures how the memory of a forward pass grows with the frames of a clip, with fused attention and with explicit weights.

Each pass has a process of its own, of whose peak memory what it held before the pass is taken off; Linux keeps both. One clip,
on a CPU, in inference mode, float32. Explicit attention is torch's own: products with a softmax between.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, fields
from multiprocessing import get_context
from pathlib import Path

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from vitbench import create_model
from vitbench.running import environment

MODELS = ("timesformer_joint", "vivit_b_16x2_m1", "timesformer_divided", "mvitv2_s_16x4")
FRAMES = (8, 16, 32, 64)
FUSED, EXPLICIT = "fused", "explicit softmax"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """The memory of one forward pass."""

    model: str
    frames: int
    attention: str
    tokens: int
    peak_bytes: int
    versions: str
    cpu: str


def held(what: str) -> int:
    """Gives bytes of this process: VmRSS, what it holds, or VmHWM, the most it has held since that was last forgotten."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{what}:"))


@torch.inference_mode()
def forward(name: str, frames: int, attention: str) -> tuple[int, int]:
    """Gives the tokens that the first block sees, and how much the process grew in a forward pass."""
    model = create_model(name, num_frames=frames).eval()
    x = torch.randn(1, 3, frames, 224, 224)
    tokens = 0

    def watch(block: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        nonlocal tokens
        tokens = tokens or args[0].shape[1]

    for module in model.modules():
        if "Block" in type(module).__name__:
            module.register_forward_pre_hook(watch)
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # forgets the peak; man 5 proc
    before = held("VmRSS")
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION if attention == FUSED else SDPBackend.MATH):
        model(x)
    return tokens, held("VmHWM") - before


def measure(name: str, frames: int, attention: str) -> Pass:
    """Measures one pass in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        tokens, grown = pool.submit(forward, name, frames, attention).result()
    here = environment.describe()
    versions = f"torch {here.torch}, timm {here.timm}"
    return Pass(
        model=name, frames=frames, attention=attention, tokens=tokens, peak_bytes=grown, versions=versions, cpu=here.cpu
    )


def markdown(passes: Sequence[Pass]) -> str:
    """Gives the table, a line a model and kind of attention."""
    frames = sorted({one.frames for one in passes})
    lines = [f"| model | attention | {' | '.join(f'{number} frames' for number in frames)} |"]
    lines.append("|---|---|" + "---:|" * len(frames))
    for key in dict.fromkeys((one.model, one.attention) for one in passes):
        found = {one.frames: f"{one.peak_bytes / 1e6:,.0f} MB" for one in passes if (one.model, one.attention) == key}
        lines.append(f"| {key[0]} | {key[1]} | {' | '.join(found.get(number, '') for number in frames)} |")
    return "\n".join(lines)


def main() -> None:
    """Parses the options, measures, writes and prints."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0] if __doc__ else "")
    parser.add_argument("--models", nargs="+", default=MODELS, metavar="NAME")
    parser.add_argument("--frames", nargs="+", type=int, default=FRAMES)
    parser.add_argument("--explicit-up-to", type=int, default=32, help="frames; more may not fit into memory")
    parser.add_argument("--output", type=Path, default=Path("results/memory.csv"))
    options = parser.parse_args()
    passes: list[Pass] = []
    with options.output.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Pass)], lineterminator="\n")
        writer.writeheader()
        for name in options.models:
            for attention in (FUSED, EXPLICIT):
                for frames in options.frames:
                    if attention == FUSED or frames <= options.explicit_up_to:
                        passes.append(measure(name, frames, attention))
                        writer.writerow(asdict(passes[-1]))
                        file.flush()
    print(markdown(passes))


if __name__ == "__main__":
    main()
