"""Begins a ViViT with the weights of a ViT trained on images.

Source: ViViT, arXiv 2103.15691, section 3.4; google-research/scenic at 4a38d47, projects/vivit/model_utils.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from vitbench.errors import BadInput
from vitbench.units import size

if TYPE_CHECKING:
    from timm.models import VisionTransformer

    from vitbench.models.vivit import ViViT


def central_frame(weight: Tensor, frames: int) -> Tensor:
    """Gives filters of tubelets that see the middle frame alone: (C, 3, h, w) -> (C, 3, frames, h, w). Source: equation 9."""
    zeros = torch.zeros_like(weight)
    return torch.stack([weight if frame == frames // 2 else zeros for frame in range(frames)], dim=2)


def inflated(weight: Tensor, frames: int) -> Tensor:
    """Gives filters of tubelets that average the frames: (C, 3, h, w) -> (C, 3, frames, h, w). Source: equation 8."""
    return (weight / frames)[:, :, None].repeat(1, 1, frames, 1, 1)


def vivit_state(
    image: VisionTransformer, video: ViViT, tubelets: Callable[[Tensor, int], Tensor] = central_frame
) -> dict[str, Tensor]:
    """Gives the state that a ViViT begins its training with.

    Every time has the image's table of positions, resampled if the grids differ in space. Model 2's spatial encoder is the ViT;
    its temporal encoder stays as it is. Model 3's temporal attention gives zero: its last projection is zero, where the paper has
    all its weights zero, which no gradient would ever change. The classifier stays as it is.

    Args:
        image: a ViT as timm has them, of the same width, depth and patch, with a class token.
        video: the model to begin with.
        tubelets: makes filters of tubelets from those of patches: `central_frame` or `inflated`.

    Raises:
        BadInput: the two do not fit together; the text says what differs.
    """
    state = {name: tensor.clone() for name, tensor in video.state_dict().items()}
    encoder = "encoder.spatial." if "encoder.spatial.pos_embed" in state else "encoder."
    theirs = image.state_dict()
    _check_plain(image, theirs, {name.removeprefix(encoder) for name in state})
    projection = video.patch_embed.proj
    if isinstance(projection, nn.Conv3d):
        theirs["patch_embed.proj.weight"] = tubelets(theirs["patch_embed.proj.weight"], projection.kernel_size[0])
    times, *grid = video.patch_embed.grid_size
    # Corner on corner, as the official zoom.
    places = theirs["pos_embed"][:, 1:].mT.unflatten(2, image.patch_embed.grid_size)
    places = functional.interpolate(places, grid, mode="bilinear", align_corners=True).flatten(2).mT
    first = theirs["pos_embed"][:, : int(f"{encoder}cls_token" in state)]
    theirs["pos_embed"] = torch.cat((first, places.repeat(1, 1 if "spatial" in encoder else times, 1)), dim=1)
    for name, tensor in state.items():
        source = name.removeprefix(encoder)
        if ".temporal_attn.proj." in name:
            state[name] = torch.zeros_like(tensor)
        elif name.startswith(("head.", "encoder.temporal.")) or ".temporal_" in name:
            continue
        elif source not in theirs:
            raise BadInput(f"The image model has no {source}; take a ViT as deep as the video model.")
        elif theirs[source].shape != tensor.shape:
            found, wanted = (size(tuple(one.shape)) for one in (theirs[source], tensor))
            raise BadInput(
                f"The image model's {source} is {found}, the video model's {wanted}; take a ViT of its size."
            )
        else:
            state[name] = theirs[source].clone()
    return state


def _check_plain(image: VisionTransformer, theirs: dict[str, Tensor], known: set[str]) -> None:
    """Refuses a ViT of which something would be left out, so that the video model would not begin as that ViT."""
    positions = theirs["pos_embed"].shape[1] if "pos_embed" in theirs else 0
    if "cls_token" not in theirs or positions != 1 + math.prod(image.patch_embed.grid_size):
        raise BadInput("The image model must have one class token and a table of positions of it and its patches.")
    more = [name for name in theirs if name not in {*known, "cls_token"} and not name.startswith("head.")]
    if more:
        raise BadInput(f"The image model also has {', '.join(more[:3])}, which the video model has no place for.")
