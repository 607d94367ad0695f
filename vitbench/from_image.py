"""Begins a ViViT with the weights of a ViT trained on images.

Source: ViViT, arXiv 2103.15691, section 3.4; google-research/scenic at 4a38d47, projects/vivit/model_utils.py.
"""

from __future__ import annotations

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
    its temporal encoder stays as it is. Model 3's temporal attention is zero. The classifier stays as it is.

    Args:
        image: a ViT as timm has them, of the same width, depth and patch, with a class token.
        video: the model to begin with.
        tubelets: makes filters of tubelets from those of patches: `central_frame` or `inflated`.

    Raises:
        BadInput: the two do not fit together; the text says what differs.
    """
    state = {name: tensor.clone() for name, tensor in video.state_dict().items()}
    encoder = "encoder.spatial." if "encoder.spatial.pos_embed" in state else "encoder."
    grid = video.patch_embed.grid_size
    theirs = image.state_dict()
    if isinstance(video.patch_embed.proj, nn.Conv3d):
        theirs["patch_embed.proj.weight"] = tubelets(
            theirs["patch_embed.proj.weight"], video.patch_embed.proj.kernel_size[0]
        )
    places = theirs["pos_embed"][:, 1:].mT.unflatten(2, image.patch_embed.grid_size)
    # Corner on corner, as the official zoom.
    places = functional.interpolate(places, grid[1:], mode="bilinear", align_corners=True).flatten(2).mT
    times = 1 if encoder == "encoder.spatial." else grid[0]
    own = theirs["pos_embed"][:, :1] if f"{encoder}cls_token" in state else theirs["pos_embed"][:, :0]
    theirs["pos_embed"] = torch.cat((own, places.repeat(1, times, 1)), dim=1)
    for name, tensor in state.items():
        known = name.removeprefix(encoder)
        if ".temporal_attn." in name:
            state[name] = torch.zeros_like(tensor)
        elif name.startswith(("head.", "encoder.temporal.")) or ".temporal_norm1." in name:
            continue
        elif known not in theirs:
            raise BadInput(
                f"The image model has no {known}; take a ViT with a class token, as deep as the video model."
            )
        elif theirs[known].shape != tensor.shape:
            found, wanted = (size(tuple(one.shape)) for one in (theirs[known], tensor))
            raise BadInput(f"The image model's {known} is {found}, the video model's {wanted}; take a ViT of its size.")
        else:
            state[name] = theirs[known].clone()
    return state
