"""What timm expects of a model besides its forward pass, for the native ones: a classifier that can be replaced."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn

from vitbench.parts.blocks import Recomputing
from vitbench.units import size


class Classifier(Recomputing, ABC):
    """Features of a clip or an image of one size, and a linear layer that classifies one vector of them.

    Args:
        extents: T, H and W of the clips, or H and W of the images.
        dim: width of a token, C.
        num_classes: classes; 0 leaves the last layer out.
        drop_rate: share of the classifier's input left out in training.
    """

    def __init__(self, extents: tuple[int, ...], dim: int, num_classes: int, drop_rate: float) -> None:
        super().__init__()
        self.extents = extents
        self.num_frames = extents[0] if len(extents) == 3 else None
        self.num_classes = num_classes
        self.num_features = self.head_hidden_size = self.embed_dim = dim
        self.head_drop = nn.Dropout(drop_rate)
        self.head = _last_layer(dim, num_classes)

    def get_classifier(self) -> nn.Module:
        """Gives the last layer."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replaces the last layer; 0 classes leave it out.

        Raises:
            ValueError: another pooling was asked for.
        """
        if global_pool is not None:
            raise ValueError(
                f"What {type(self).__name__} classifies is part of the model, so it cannot be {global_pool!r}."
            )
        self.num_classes = num_classes
        self.head = _last_layer(self.num_features, num_classes).to(next(self.parameters()))

    def check(self, x: Tensor) -> None:
        """Refuses an input of another size than the model's tables.

        Raises:
            ValueError: the input is of another size.
        """
        if x.shape[2:] != self.extents:
            raise ValueError(
                f"The model has positions for inputs of {size(self.extents)}, not {size(tuple(x.shape[2:]))}; build it with "
                "the img_size and num_frames of the inputs."
            )

    @abstractmethod
    def forward_features(self, x: Tensor) -> Tensor:
        """Clips or images, (B, 3, T, H, W) or (B, 3, H, W) -> (B, tokens, C), normed."""

    def pool(self, x: Tensor) -> Tensor:
        """(B, tokens, C) -> (B, C), what is classified: the first token."""
        return x[:, 0]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """(B, tokens, C) -> (B, classes), or (B, C) before the last layer."""
        x = self.head_drop(self.pool(x))
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        """Clips or images, (B, 3, T, H, W) or (B, 3, H, W) -> (B, classes)."""
        return self.forward_head(self.forward_features(x))


def resampled_square(name: str, table: Tensor, grid: tuple[int, int], prefix: int, mode: str) -> Tensor:
    """Gives a table of a square grid for another one: (1, prefix + places, C) -> (1, prefix + rows x columns, C).

    Args:
        name: of the table, for the error.
        table: as found in a file.
        grid: rows and columns.
        prefix: entries before the places, which stay.
        mode: torch's, such as "bilinear".

    Raises:
        ValueError: the table is of no square grid.
    """
    # Not above: timm's import registers the native models, which need this module whole.
    from timm.layers import resample_abs_pos_embed

    places = table.shape[1] - prefix
    if math.isqrt(places) ** 2 != places:
        raise ValueError(f"{name} holds {places} places, which no square grid gives")
    options: dict[str, Any] = {"num_prefix_tokens": prefix, "interpolation": mode, "antialias": False}
    resampled: Tensor = resample_abs_pos_embed(table, list(grid), **options)
    return resampled


def _last_layer(dim: int, num_classes: int) -> nn.Module:
    return nn.Linear(dim, num_classes) if num_classes > 0 else nn.Identity()
