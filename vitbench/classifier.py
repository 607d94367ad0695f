"""What timm expects of a model besides its forward pass, for the native ones: a classifier that can be replaced, and loading."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from vitbench import checkpoints
from vitbench.units import size


class Classifier(nn.Module, ABC):
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

    def load_pretrained(self, path: str) -> None:
        """Loads an official file, for timm; see `load_official`."""
        load_official(self, path)

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


def _last_layer(dim: int, num_classes: int) -> nn.Module:
    return nn.Linear(dim, num_classes) if num_classes > 0 else nn.Identity()


def load_official(model: Any, path: str) -> None:
    """Loads a file that holds more than timm's own loading accepts; a classifier of another size stays out.

    Args:
        model: with `num_classes`, a last layer called "head", and `checkpoint_filter_fn` in its file.
        path: of the file.

    Raises:
        BadInput: the file cannot be read.
        RuntimeError: its tensors are not the model's.
    """
    convert = sys.modules[type(model).__module__].checkpoint_filter_fn
    state = convert(checkpoints.read(Path(path)), model)
    if "head.weight" in state and len(state["head.weight"]) != model.num_classes:
        own = {name: tensor for name, tensor in model.state_dict().items() if name.startswith("head.")}
        state = {name: tensor for name, tensor in state.items() if not name.startswith("head.")} | own
    model.load_state_dict(state)
