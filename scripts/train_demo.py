"""Trains `vit_demo`, the small model that comes with vitbench, from nothing: half an hour on one thread, minutes on a GPU.

    python scripts/train_demo.py --images DIR

DIR holds photographs, of any size and format that Pillow reads. The weights that come with the package were trained on the 197
photographs of Debian's package gcompris-qt-data 3.1-2 (animals, fishes, monuments, tools, sources of energy) whose authors put
them into the public domain or under CC0 1.0, cut to 224 x 224 pixels.

There are no labels: the model learns to predict patches that it does not see, as in section 4.6 and appendix B.1.2 of the ViT
paper (arXiv 2010.11929). Half of the patches are corrupted: of those, 80 % give way to a learnt mask token, 10 % to another
patch, and 10 % stay. A linear layer, which is not kept, predicts the corrupted patches' pixels; the loss is the mean absolute
error. So that the class token has something to look for, another layer tells from it which of the photographs it is.

What differs from the paper, because time is short: for most steps the model sees a random share of the patches only, so that
more images pass in the same time; position table and mask token, which begin at almost nothing, learn ten times as fast as the
rest; filters begin small and decay, so that what no image asked for fades from them.

With the same torch, machine, photographs and seed the same file comes out. What the position table and the attention have
learnt is printed on the way.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image, ImageOps
from safetensors.torch import save_file
from timm.layers import set_fused_attn
from torch import Tensor, nn
from torch.nn import functional

from vitbench import models
from vitbench.models.vit_demo import WEIGHTS

STORED = 224  # pixels of a side of the photographs in memory, from which crops are taken
CORRUPTED, MASKED, SWAPPED = 0.5, 0.8, 0.1  # of the patches; of the corrupted ones
SEEN = 0.4  # of the patches, until the last steps
SPARSE = 0.85  # of the steps
RATE, WARM_UP, FASTER = 1e-3, 200, 10.0
WEIGHT_OF_WHICH = 0.05  # of telling photographs, beside pixels, in the loss
DECAY, DECAY_OF_FILTERS = 0.05, 0.15


def read_photos(folder: Path) -> Tensor:
    """Gives the photographs of a folder and its subfolders, cut to squares: (n, 3, 224, 224), uint8."""
    endings = Image.registered_extensions()
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in endings)
    if not files:
        raise SystemExit(f"There are no photographs in {folder}.")
    squares = []
    for path in files:
        with Image.open(path) as image:
            square = ImageOps.fit(image.convert("RGB"), (STORED, STORED), Image.Resampling.BICUBIC)
        squares.append(torch.from_numpy(np.array(square)).permute(2, 0, 1))
    return torch.stack(squares)


def crop(photo: Tensor, side: int, generator: np.random.Generator) -> Tensor:
    """Gives a random part of a photograph, 15 % of it or more, perhaps mirrored: (3, side, side), uint8."""
    while True:
        area = STORED**2 * generator.uniform(0.15, 1.0)
        stretch = math.exp(generator.uniform(math.log(3 / 4), math.log(4 / 3)) / 2)
        height, width = round(math.sqrt(area) / stretch), round(math.sqrt(area) * stretch)
        if max(height, width) <= STORED:
            break
    top, left = generator.integers(0, STORED + 1 - height), generator.integers(0, STORED + 1 - width)
    part = photo[None, :, top : top + height, left : left + width]
    if generator.random() < 0.5:
        part = part.flip(-1)
    return functional.interpolate(part, (side, side), mode="bilinear", antialias=True)[0]


def normalized(images: Tensor) -> Tensor:
    """Gives uint8 images as the model takes them: from -1 to 1."""
    return images.float() / 127.5 - 1


class Training(nn.Module):
    """The model in training: predicts the pixels of corrupted patches, and which photograph it is."""

    def __init__(self, model: Any, photographs: int) -> None:
        super().__init__()
        self.model = model
        self.patch = model.patch_embed.patch_size[0]
        self.mask = nn.Parameter(torch.zeros(model.embed_dim))
        self.pixels = nn.Linear(model.embed_dim, 3 * self.patch**2)
        self.which = nn.Linear(model.embed_dim, photographs)

    def forward(self, images: Tensor, which: Tensor, draws: Tensor, others: Tensor, seen: int) -> tuple[Tensor, Tensor]:
        """Gives the mean absolute error of pixels and the cross-entropy of photographs.

        Args:
            images: (B, 3, H, W).
            which: (B,), each image's photograph.
            draws: (3, B, N), uniform in 0 .. 1: who is corrupted, how, and who is seen.
            others: (B * N), a permutation: whose embedding takes the place of a swapped patch's.
            seen: how many patches the model sees, corrupted ones included.
        """
        model = self.model
        embedded = model.patch_embed(images).float()
        B, N, C = embedded.shape
        corrupted = draws[0] < CORRUPTED
        masked = corrupted & (draws[1] < MASKED)
        swapped = corrupted & ~masked & (draws[1] < MASKED + SWAPPED)
        tokens = torch.where(swapped[..., None], embedded.reshape(B * N, C)[others].reshape(B, N, C), embedded)
        tokens = torch.where(masked[..., None], self.mask, tokens) + model.pos_embed[:, 1:]
        pixels = functional.pixel_unshuffle(images, self.patch).flatten(2).mT
        if seen < N:
            chosen = draws[2].argsort(dim=1)[:, :seen, None]
            tokens = tokens.gather(1, chosen.expand(-1, -1, C))
            pixels = pixels.gather(1, chosen.expand(-1, -1, pixels.shape[-1]))
            corrupted = corrupted.gather(1, chosen[..., 0])
        first = (model.cls_token + model.pos_embed[:, :1]).expand(B, -1, -1)
        features = model.norm(model.blocks(torch.cat([first, tokens], dim=1)))
        predicted = self.pixels(features[:, 1:][corrupted]).float()
        return (
            functional.l1_loss(predicted, pixels[corrupted]),
            functional.cross_entropy(self.which(features[:, 0]).float(), which),
        )


def initialize(training: Training) -> None:
    """Draws the weights: Xavier's, since timm's 0.02 is for wider models and would cost the first quarter of the time."""
    for name, parameter in training.named_parameters():
        if name.endswith("qkv.weight"):
            for part in parameter.data.chunk(3):
                nn.init.xavier_uniform_(part)
        elif name.endswith(("pos_embed", "cls_token", "mask", "pixels.weight", "which.weight")):
            nn.init.normal_(parameter, std=0.02)
        elif name.endswith("patch_embed.proj.weight"):
            nn.init.normal_(parameter, std=0.01)
        elif parameter.ndim == 2:
            nn.init.xavier_uniform_(parameter)


def optimizer(training: Training) -> torch.optim.Optimizer:
    """Gives AdamW with three groups: the position table and mask token, the filters, and the rest."""
    tables = [training.model.pos_embed, training.mask]
    filters = training.model.patch_embed.proj.weight
    rest = [parameter for parameter in training.parameters() if all(parameter is not one for one in (*tables, filters))]
    return torch.optim.AdamW(
        [
            {"params": tables, "weight_decay": 0.0, "faster": FASTER},
            {"params": [filters], "weight_decay": DECAY_OF_FILTERS},
            {"params": [parameter for parameter in rest if parameter.ndim > 1], "weight_decay": DECAY},
            {"params": [parameter for parameter in rest if parameter.ndim == 1], "weight_decay": 0.0},
        ],
        lr=RATE,
        betas=(0.9, 0.95),
        fused=True,
    )


@torch.no_grad()
def learnt(model: Any, images: Tensor) -> str:
    """Says in three lines or more what a model has learnt: positions, filters, and how far each head looks.

    Distances are in pixels, over the patches alone: the class token has no place.
    """
    rows, columns = model.patch_embed.grid_size
    places = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).float()
    apart = torch.cdist(places, places)
    table = functional.normalize(model.pos_embed[0, 1:].float().cpu(), dim=-1)
    cosine = table @ table.mT
    near = ", ".join(f"{cosine[apart == steps].mean():.2f} at {steps}" for steps in (1, 2, 4, 8))
    filters = model.patch_embed.proj.weight.flatten(1).float().cpu()
    variance = torch.linalg.svdvals(filters - filters.mean(dim=0)) ** 2
    lines = [
        f"  cosine of positions: {near}",
        f"  variance in the first 28 components of the filters: {variance[:28].sum() / variance.sum():.1%}",
    ]
    pixels = apart * model.patch_embed.patch_size[0]
    seen: list[Tensor] = []
    hooks = [
        block.attn.qkv.register_forward_hook(lambda module, inputs, output: seen.append(output))
        for block in model.blocks
    ]
    model.eval()
    model(images)
    model.train()
    for hook in hooks:
        hook.remove()
    for number, (block, output) in enumerate(zip(model.blocks, seen, strict=True)):
        query, key, _ = output.float().cpu().unflatten(-1, (3, block.attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
        attention = (query[:, :, 1:] @ key[:, :, 1:].mT * block.attn.scale).softmax(dim=-1)
        distances = sorted((attention * pixels).sum(dim=-1).mean(dim=(0, 2)).tolist())
        lines.append(f"  distance in block {number}: {' '.join(f'{distance:.1f}' for distance in distances)} px")
    return "\n".join([*lines, f"  distance if uniform: {pixels.mean():.1f} px"])


def train(
    photos: Tensor, *, steps: int, batch: int, seed: int, device: torch.device, every: int, say: Callable[[str], None]
) -> Any:
    """Gives the model after so many steps, saying on the way how it goes."""
    torch.manual_seed(seed)
    generator = np.random.default_rng(seed)
    models.register()
    model: Any = timm.create_model("vit_demo")
    training = Training(model, len(photos))
    initialize(training)
    training.to(device).train()
    descent = optimizer(training)
    patches = model.patch_embed.num_patches
    side = model.patch_embed.img_size[0]
    probe = functional.interpolate(photos[::6], (side, side), mode="bilinear", antialias=True)
    losses: list[Tensor] = []
    began = time.perf_counter()
    for step in range(steps):
        rate = RATE * min(1.0, (step + 1) / WARM_UP) * (1 + math.cos(math.pi * step / steps)) / 2
        for group in descent.param_groups:
            group["lr"] = rate * group.get("faster", 1.0)
        chosen = generator.choice(len(photos), batch, replace=len(photos) < batch)
        images = normalized(torch.stack([crop(photos[index], side, generator) for index in chosen]).to(device))
        which = torch.from_numpy(chosen).to(device)
        # Drawn on the CPU, so that every device sees the same.
        draws, others = torch.rand(3, batch, patches).to(device), torch.randperm(batch * patches).to(device)
        with torch.autocast(device.type, torch.bfloat16):
            loss, telling = training(
                images, which, draws, others, round(SEEN * patches) if step < SPARSE * steps else patches
            )
        (loss + WEIGHT_OF_WHICH * telling).backward()
        nn.utils.clip_grad_norm_(training.parameters(), 1.0)
        descent.step()
        descent.zero_grad()
        losses.append(torch.stack([loss, telling]).detach())
        if (step + 1) % every == 0 or step + 1 == steps:
            error, entropy = torch.stack(losses[-500:]).mean(dim=0)
            spent = time.perf_counter() - began
            say(
                f"step {step + 1}, {spent:.0f} s: error of pixels {error:.4f}, cross-entropy of photographs {entropy:.3f}"
            )
            say(learnt(model, normalized(probe).to(device)))
    return model


def save(model: Any, path: Path) -> None:
    """Writes the weights in half precision, as safetensors."""
    save_file({name: tensor.half().cpu().contiguous() for name, tensor in model.state_dict().items()}, path)


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains and writes the file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--images", type=Path, required=True, help="folder of photographs")
    parser.add_argument("--output", type=Path, default=WEIGHTS, help="the file to write; by default the package's own")
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--batch", type=int, default=8, help="images a step")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every", type=int, default=1000, help="steps between two looks at what was learnt")
    parser.add_argument("--threads", type=int, default=1, help="on a CPU; beside other work one is faster than two")
    asked = parser.parse_args(arguments)
    torch.set_num_threads(asked.threads)
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    # On a CPU, autocast to bf16 is three times as fast with the two products of attention apart.
    set_fused_attn(device.type != "cpu")
    photos = read_photos(asked.images)
    print(f"{len(photos)} photographs, {asked.steps} steps of {asked.batch} on {device}", flush=True)
    model = train(
        photos,
        steps=asked.steps,
        batch=asked.batch,
        seed=asked.seed,
        device=device,
        every=asked.every,
        say=lambda text: print(text, flush=True),
    )
    save(model, asked.output)
    print(f"{asked.output}: {asked.output.stat().st_size / 1e6:.2f} MB", flush=True)


if __name__ == "__main__":
    main()
