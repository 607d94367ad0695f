"""Compact Transformers: "Escaping the Big Data Paradigm with Compact Transformers", Hassani et al., arXiv 2104.05704.

Three of them: CCT, whose tokens come from convolutions; CVT, from patches, with sequence pooling (`compact_cvt_*` here, since
CvT is another paper's); and ViT-Lite, from patches, with a class token. After the name: blocks, kernel or patch x layers, pixels.

Agrees with the official code, SHI-Labs/Compact-Transformers at cd11f09: names of tensors, parameters, logits, rates of dropping.

Differences: attention is one fused call, and the position table is added to a new tensor. The official constructors of
CCT and CVT with sinusoidal positions build learnable ones, as they never pass the choice on; here they are sinusoidal.

Shapes: B batch, H W rows and columns, N tokens, C channels, h heads, d channels of one head.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import DropPath, resample_abs_pos_embed
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn
from torch.nn import functional

from vitbench.parts.blocks import Blocks, Recomputing

# Training regularisation that the official constructors set; their other dropouts are 0.
_ATTENTION_DROPOUT = 0.1
_STOCHASTIC_DEPTH = 0.1


def learnable(tokens: int, dim: int) -> nn.Parameter:
    """Gives a position table to be learnt, (1, tokens, C)."""
    return nn.Parameter(nn.init.trunc_normal_(torch.empty(1, tokens, dim), std=0.2))


def sinusoidal(tokens: int, dim: int) -> nn.Parameter:
    """Gives the fixed position table of sines and cosines, (1, tokens, C). Source: arXiv 1706.03762, section 3.5."""
    channel = torch.arange(dim, dtype=torch.float64)
    frequency = 10000.0 ** -(2 * (channel // 2) / dim)
    angle = (torch.arange(tokens, dtype=torch.float64)[:, None] * frequency).float()
    table = torch.where(channel % 2 == 0, angle.sin(), angle.cos())
    return nn.Parameter(table[None], requires_grad=False)


class Tokenizer(nn.Module):
    """Turns an image into tokens by layers whose windows, of a kernel, stride and padding each, slide over it."""

    def __init__(self, windows: Sequence[tuple[int, int, int]], layers: Iterable[nn.Module]) -> None:
        super().__init__()
        self.windows = tuple(windows)
        self.conv_layers = nn.Sequential(*layers)

    def tokens_along(self, extent: int) -> int:
        """Gives the number of tokens along a side of so many pixels."""
        for kernel, stride, padding in self.windows:
            extent = (extent + 2 * padding - kernel) // stride + 1
        return extent

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, N, C)."""
        features: Tensor = self.conv_layers(x)
        return features.flatten(2).transpose(1, 2)


class ConvTokenizer(Tokenizer):
    """Tokens from layers of convolution, ReLU and max pooling; neighbouring tokens overlap.

    Source: the paper's convolutional block, x_0 = MaxPool(ReLU(Conv2d(x))); official src/utils/tokenizer.py.
    All layers but the last have 64 channels.
    """

    def __init__(self, in_chans: int, dim: int, layers: int, kernel_size: int) -> None:
        convolution = (kernel_size, max(1, kernel_size // 2 - 1), kernel_size // 2)
        pooling = (3, 2, 1)
        widths = [in_chans, *[64] * (layers - 1), dim]
        super().__init__(
            (convolution, pooling) * layers,
            (
                nn.Sequential(nn.Conv2d(*ends, *convolution, bias=False), nn.ReLU(), nn.MaxPool2d(*pooling))
                for ends in pairwise(widths)
            ),
        )


class PatchTokenizer(Tokenizer):
    """Tokens from square patches, each projected on its own.

    Source: official src/cvt.py and src/vit.py: one convolution with bias, no activation, no pooling.
    """

    def __init__(self, in_chans: int, dim: int, patch_size: int) -> None:
        projection = nn.Conv2d(in_chans, dim, patch_size, patch_size)
        super().__init__([(patch_size, patch_size, 0)], [nn.Sequential(projection)])

    def tokens_along(self, extent: int) -> int:
        """Gives the number of patches along a side of so many pixels.

        Raises:
            ValueError: patches do not tile it.
        """
        patch, _, _ = self.windows[0]
        if extent % patch:
            raise ValueError(f"Patches of {patch} pixels do not tile a side of {extent}; take a multiple of {patch}.")
        return extent // patch


class Attention(nn.Module):
    """Multi-head self-attention without bias in its first projection."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        B, N, C = x.shape
        # (B, N, 3, h, d) -> three of (B, h, N, d)
        q, k, v = self.qkv(x).reshape(B, N, 3, self.num_heads, C // self.num_heads).permute(2, 0, 3, 1, 4)
        dropout = _ATTENTION_DROPOUT if self.training else 0.0
        x = functional.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
        out: Tensor = self.proj(x.transpose(1, 2).reshape(B, N, C))
        return out


class Block(nn.Module):
    """An encoder block whose second norm stands on the residual stream itself, not on the branch of the MLP.

    Source: official src/utils/transformers.py, TransformerEncoderLayer.
    """

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, drop_path: float) -> None:
        super().__init__()
        hidden = int(dim * mlp_ratio)
        self.pre_norm = nn.LayerNorm(dim)
        self.self_attn = Attention(dim, num_heads)
        self.linear1 = nn.Linear(dim, hidden)
        self.norm1 = nn.LayerNorm(dim)
        self.linear2 = nn.Linear(hidden, dim)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        x = x + self.drop_path(self.self_attn(self.pre_norm(x)))
        x = self.norm1(x)
        out: Tensor = x + self.drop_path(self.linear2(functional.gelu(self.linear1(x))))
        return out


class SequencePool(nn.Linear):
    """Averages the tokens with weights that it reads from them, in place of a class token.

    Source: the paper's SeqPool, z = softmax(g(x_L)^T) x_L, where g is a linear layer of one output.
    """

    def __init__(self, dim: int) -> None:
        super().__init__(dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, C)."""
        weights = super().forward(x).softmax(dim=1)
        return (weights.transpose(1, 2) @ x).squeeze(1)


class Transformer(nn.Module, ABC):
    """What follows the tokenizer: position table, blocks, norm, a way of pooling and the last layer.

    Source: official src/utils/transformers.py, TransformerClassifier.
    """

    num_prefix_tokens = 0

    def __init__(
        self,
        tokens: int,
        dim: int,
        depth: int,
        num_heads: int,
        mlp_ratio: float,
        num_classes: int,
        positions: Callable[[int, int], nn.Parameter],
    ) -> None:
        super().__init__()
        self.positional_emb = positions(self.num_prefix_tokens + tokens, dim)
        rates = [_STOCHASTIC_DEPTH * number / max(1, depth - 1) for number in range(depth)]
        self.blocks = Blocks(*(Block(dim, num_heads, mlp_ratio, rate) for rate in rates))
        self.norm = nn.LayerNorm(dim)
        self.fc = _last_layer(dim, num_classes)

    @abstractmethod
    def pool(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, C)."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C), before pooling."""
        out: Tensor = self.norm(self.blocks(x + self.positional_emb))
        return out


class SequencePooled(Transformer):
    """The Transformer of CCT and CVT: no class token, sequence pooling."""

    def __init__(self, tokens: int, dim: int, *others: Any) -> None:
        super().__init__(tokens, dim, *others)
        self.attention_pool = SequencePool(dim)

    def pool(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, C)."""
        out: Tensor = self.attention_pool(x)
        return out


class ClassToken(Transformer):
    """The Transformer of ViT-Lite: a class token before the others, read at the end."""

    num_prefix_tokens = 1

    def __init__(self, tokens: int, dim: int, *others: Any) -> None:
        super().__init__(tokens, dim, *others)
        self.class_emb = nn.Parameter(torch.zeros(1, 1, dim))

    def pool(self, x: Tensor) -> Tensor:
        """(B, 1 + N, C) -> (B, C)."""
        return x[:, 0]

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, 1 + N, C), before pooling."""
        return super().forward(torch.cat((self.class_emb.expand(len(x), -1, -1), x), dim=1))


class CompactTransformer(Recomputing):
    """A tokenizer and a Transformer, with timm's contract.

    Args:
        img_size: H and W, square if one number.
        in_chans: channels of the image.
        num_classes: classes; 0 leaves the last layer out.
        tokenizer: makes the tokenizer, from the channels of the image and the width of a token.
        embed_dim: width of a token, C.
        depth: number of blocks.
        num_heads: heads of attention, h.
        mlp_ratio: width of the MLP's hidden layer over C.
        transformer: what follows the tokenizer, which decides on the pooling.
        positions: makes the position table, from the number of tokens and their width.

    Raises:
        ValueError: the image is so small that it gives no token, or patches do not tile it.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int],
        in_chans: int,
        num_classes: int,
        *,
        tokenizer: Callable[[int, int], Tokenizer],
        embed_dim: int,
        depth: int,
        num_heads: int,
        mlp_ratio: float,
        transformer: type[Transformer] = SequencePooled,
        positions: Callable[[int, int], nn.Parameter] = learnable,
    ) -> None:
        super().__init__()
        height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
        self.num_classes = num_classes
        self.num_features = self.head_hidden_size = self.embed_dim = embed_dim
        self.tokenizer = tokenizer(in_chans, embed_dim)
        self.grid_size = rows, columns = self.tokenizer.tokens_along(height), self.tokenizer.tokens_along(width)
        if min(self.grid_size) < 1:
            raise ValueError(f"An image of {height} x {width} pixels gives no tokens; take a larger img_size.")
        self.classifier = transformer(rows * columns, embed_dim, depth, num_heads, mlp_ratio, num_classes, positions)
        self.num_prefix_tokens = transformer.num_prefix_tokens
        self.apply(_init_weights)

    def get_classifier(self) -> nn.Module:
        """Gives the last layer."""
        return self.classifier.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replaces the last layer; 0 classes leave it out.

        Raises:
            ValueError: another pooling was asked for.
        """
        if global_pool:
            raise ValueError(
                f"Compact Transformers have a pooling of their own; {global_pool!r} cannot take its place."
            )
        self.num_classes = num_classes
        self.classifier.fc = _last_layer(self.num_features, num_classes).to(self.classifier.positional_emb)

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, N, C), normed, with the class token first where there is one."""
        if (self.tokenizer.tokens_along(x.shape[2]), self.tokenizer.tokens_along(x.shape[3])) != self.grid_size:
            raise ValueError(
                f"The model has positions of {self.grid_size} tokens; build it with the img_size of the images."
            )
        out: Tensor = self.classifier(self.tokenizer(x))
        return out

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """(B, N, C) -> (B, classes), or (B, C) before the last layer."""
        x = self.classifier.pool(x)
        return x if pre_logits else self.classifier.fc(x)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, classes)."""
        return self.forward_head(self.forward_features(x))


def _last_layer(dim: int, num_classes: int) -> nn.Module:
    return nn.Linear(dim, num_classes) if num_classes > 0 else nn.Identity()


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight)


def checkpoint_filter_fn(state_dict: dict[str, Tensor], model: CompactTransformer) -> dict[str, Tensor]:
    """Gives a state dict whose position table fits the model's grid; the official names are ours.

    A learnt table of as many tokens is taken to be of the same grid, any other to be of a square one. A sinusoidal one needs no
    resampling: the model has its own. (The official loader takes that at every size; here a file's of the same size is loaded.)

    Source: official src/utils/helpers.py, resize_pos_embed, which resamples between square grids the same way.
    """
    name = "classifier.positional_emb"
    table, own = state_dict.get(name), model.classifier.positional_emb
    if table is None or table.shape == own.shape:
        return state_dict
    if not own.requires_grad:
        return {**state_dict, name: own.detach().clone()}
    prefix, grid = model.num_prefix_tokens, list(model.grid_size)
    table = resample_abs_pos_embed(table, grid, num_prefix_tokens=prefix, interpolation="bilinear", antialias=False)
    return {**state_dict, name: table}


# Classes, mean and standard deviation of the data; source: official configs/datasets.
_DATA = {
    "cifar10": (10, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": (100, (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "flowers102": (102, (0.4353, 0.3773, 0.2872), (0.2966, 0.2455, 0.2698)),
    "in1k": (1000, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD),
}


def _cfg(pixels: int, data: str, file: str = "") -> dict[str, Any]:
    classes, mean, std = _DATA[data]
    return {
        "url": file and f"https://shi-labs.com/projects/cct/checkpoints/{file}.pth",
        "num_classes": classes,
        "input_size": (3, pixels, pixels),
        "fixed_input_size": True,
        "crop_pct": 0.9 if data == "in1k" else 1.0,
        "interpolation": "bicubic",
        "mean": mean,
        "std": std,
        "first_conv": "tokenizer.conv_layers.0.0",
        "classifier": "classifier.fc",
    }


# The official weights: by entry point the data they were trained on, and the file.
_WEIGHTS = {
    "cct_7_3x1_32": {
        "cifar10": "pretrained/cct_7_3x1_32_cifar10_300epochs",
        "cifar100": "pretrained/cct_7_3x1_32_cifar100_300epochs",
    },
    "cct_7_3x1_32_sine": {
        "cifar10": "pretrained/cct_7_3x1_32_sine_cifar10_5000epochs",
        "cifar100": "pretrained/cct_7_3x1_32_sine_cifar100_5000epochs",
    },
    "cct_7_7x2_224_sine": {"flowers102": "pretrained/cct_7_7x2_224_flowers102"},
    "cct_14_7x2_224": {"in1k": "pretrained/cct_14_7x2_224_imagenet"},
    "cct_14_7x2_384": {
        "in1k": "finetuned/cct_14_7x2_384_imagenet",
        "flowers102": "finetuned/cct_14_7x2_384_flowers102",
    },
}
# Sizes by the number of blocks; source: the official constructors.
_SIZES: dict[int, dict[str, Any]] = {
    depth: {"depth": depth, "embed_dim": dim, "num_heads": heads, "mlp_ratio": ratio}
    for depth, dim, heads, ratio in (
        (2, 128, 2, 1.0),
        (4, 128, 2, 1.0),
        (6, 256, 4, 2.0),
        (7, 256, 4, 2.0),
        (14, 384, 6, 3.0),
    )
}


def _cct(depth: int, kernel_size: int, layers: int, pixels: int) -> tuple[str, dict[str, Any]]:
    tokenizer = partial(ConvTokenizer, layers=layers, kernel_size=kernel_size)
    return f"cct_{depth}_{kernel_size}x{layers}_{pixels}", {"tokenizer": tokenizer, **_SIZES[depth]}


def _of_patches(name: str, transformer: type[Transformer], depth: int, patch: int) -> tuple[str, dict[str, Any]]:
    tokenizer = partial(PatchTokenizer, patch_size=patch)
    return f"{name}_{depth}_{patch}_32", {"tokenizer": tokenizer, "transformer": transformer, **_SIZES[depth]}


# Images of 32, 224 and 384 pixels are those of CIFAR-10, Flowers-102 and ImageNet, except that CCT-14 begins at 224.
_SMALL = (
    *(_cct(depth, 3, layers, 32) for depth, layers in ((2, 2), (4, 2), (6, 1), (6, 2), (7, 1), (7, 2))),
    _cct(7, 7, 2, 224),
    *(_of_patches("compact_cvt", SequencePooled, *sizes) for sizes in ((2, 4), (4, 4), (6, 4), (7, 4), (7, 8))),
    *(_of_patches("vit_lite", ClassToken, *sizes) for sizes in ((2, 4), (4, 4), (6, 4), (7, 4), (7, 8), (7, 16))),
)
_ENTRY_POINTS = {
    **dict(_SMALL),
    **{f"{name}_sine": {**arguments, "positions": sinusoidal} for name, arguments in _SMALL},
    **dict((_cct(14, 7, 2, 224), _cct(14, 7, 2, 384))),
}


def _cfgs(name: str) -> dict[str, dict[str, Any]]:
    pixels = int(name.removesuffix("_sine").rpartition("_")[2])
    data = "in1k" if name.startswith("cct_14") else "cifar10" if pixels == 32 else "flowers102"
    files = _WEIGHTS.get(name, {"untrained": ""})
    return {f"{name}.{tag}": _cfg(pixels, data if tag == "untrained" else tag, file) for tag, file in files.items()}


default_cfgs = generate_default_cfgs({tag: cfg for name in _ENTRY_POINTS for tag, cfg in _cfgs(name).items()})


def _register(name: str, arguments: dict[str, Any]) -> None:
    def entry_point(pretrained: bool = False, **options: Any) -> CompactTransformer:
        return build_model_with_cfg(
            CompactTransformer, name, pretrained, pretrained_filter_fn=checkpoint_filter_fn, **arguments | options
        )

    entry_point.__name__ = name
    register_model(entry_point)


for _name, _arguments in _ENTRY_POINTS.items():
    _register(_name, _arguments)
