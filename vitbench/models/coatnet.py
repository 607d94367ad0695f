"""CoAtNet: "CoAtNet: Marrying Convolution and Attention for All Data Sizes", Dai et al., arXiv 2106.04803.

There is no official code. The blocks are timm's, set as the paper's text and tables say; timm's own `coatnet_N_224` shrink the
map in the depth-wise convolution and pool by averages, which is the layout of the paper's table 9, not of its main table.

Differences from the paper: the last stage of CoAtNet-6 has width 3072, not the 2048 of table 12, which would make 1.35 G
parameters where the paper has 1.47 G. Where the paper says nothing, timm's choice stays: a hidden layer with tanh before the
classifier (without it the parameters of the main table are missed), the eps of norms, the initial weights.

Shapes: B batch, H W rows and columns of the image, h w of the last map, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from timm.data import IMAGENET_INCEPTION_MEAN, IMAGENET_INCEPTION_STD
from timm.layers import LayerNorm2d, NormMlpClassifierHead, RelPosBias
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.maxxvit import MaxxVitConvCfg, MaxxVitTransformerCfg, MbConvBlock, Stem, TransformerBlock2d
from timm.models.vision_transformer_relpos import VisionTransformerRelPos
from torch import Tensor, nn
from torch.nn import functional

from vitbench.parts.blocks import Blocks, Recomputing

# Equation 5: the stride is in the 1x1 expansion. The pooling of the identity branch is that of Transformer blocks, by maxima.
_MBCONV = MaxxVitConvCfg(stride_mode="1x1", pool_type="max2", expand_ratio=4, attn_ratio=0.25)


class Place(NamedTuple):
    """Where a block stands.

    Attributes:
        in_chans: channels of the map it is given.
        dim: channels of the map it gives, C.
        stride: 2 if it halves the map.
        grid: rows and columns of the map it gives.
        head_size: channels of one head of attention.
        drop_path: share of branches left out in training.
    """

    in_chans: int
    dim: int
    stride: int
    grid: tuple[int, int]
    head_size: int
    drop_path: float


def convolution(place: Place) -> nn.Module:
    """Gives an MBConv block with squeeze and excitation, pre-activated, (B, in, H, W) -> (B, C, H / stride, W / stride).

    Source: appendix A.1, equation 5, x = Proj(Pool(x)) + Conv(DepthConv(Conv(Norm(x), stride = 2))); table 3.
    """
    return MbConvBlock(place.in_chans, place.dim, place.stride, cfg=_MBCONV, drop_path=place.drop_path)


def transformer(place: Place) -> nn.Module:
    """Gives a Transformer block with relative attention, (B, in, H, W) -> (B, C, H / stride, W / stride).

    Attention's products get, before the softmax, a learnt scalar for each head and relative offset, whatever the input.

    Source: equation 3, y_pre; appendix A.1, equation 4, x = Proj(Pool(x)) + Attention(Pool(Norm(x))); table 3.
    """
    cfg = MaxxVitTransformerCfg(dim_head=place.head_size, pool_type="max2", expand_ratio=4)
    widens = place.stride == 1 and place.in_chans != place.dim
    block = TransformerBlock2d(
        place.in_chans,
        place.dim,
        2 if widens else place.stride,
        rel_pos_cls=partial(RelPosBias, window_size=place.grid),
        cfg=cfg,
        drop_path=place.drop_path,
    )
    if widens:
        # Inside a stage, as S3 of CoAtNet-6 and 7, equation 4 loses its pooling and keeps its projection.
        block.shortcut.pool = nn.Identity()
        block.norm1.down = nn.Identity()
    return block


class Stage(NamedTuple):
    """A row of the paper's tables 3, 11 and 12: blocks of one kind and width; the first halves the map if stride is 2."""

    block: Callable[[Place], nn.Module]
    depth: int
    dim: int
    stride: int = 2


class CoAtNet(Recomputing):
    """A stem of two convolutions (S0), stages of blocks (S1 to S4), and a classifier over the pooled map.

    Source: figure 4.

    Args:
        img_size: H and W, square if one number.
        in_chans: channels of the image.
        num_classes: classes; 0 leaves the last layer out.
        stem_width: channels of the stem.
        stages: the stages after it.
        head_size: channels of one head of attention.
        drop_rate: share of features left out in training before the last layer.
        drop_path_rate: share of branches left out in training in the last block; it grows from 0 in the first.

    Raises:
        ValueError: the stages cannot halve an image of this size each time.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        *,
        stem_width: int,
        stages: tuple[Stage, ...],
        head_size: int = 32,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
        total_stride = 2 ** (1 + sum(stage.stride == 2 for stage in stages))
        if height % total_stride or width % total_stride or min(height, width) < 1:
            raise ValueError(
                f"CoAtNet halves images whose sides are multiples of {total_stride} pixels, not {height} x {width}."
            )
        self.img_size = (height, width)
        self.num_classes = num_classes
        self.stem = Stem(in_chans, stem_width)
        grid, width_in = (height // 2, width // 2), stem_width
        depth = sum(stage.depth for stage in stages)
        rates = iter(drop_path_rate * number / max(1, depth - 1) for number in range(depth))
        self.stages = nn.Sequential()
        for stage in stages:
            grid = (grid[0] // stage.stride, grid[1] // stage.stride)
            blocks = Blocks()
            for number in range(stage.depth):
                stride = 1 if number else stage.stride
                blocks.append(stage.block(Place(width_in, stage.dim, stride, grid, head_size, next(rates))))
                width_in = stage.dim
            self.stages.append(nn.Sequential())
            self.stages[-1].add_module("blocks", blocks)
        self.num_features = self.embed_dim = self.head_hidden_size = width_in
        self.head = NormMlpClassifierHead(
            width_in, num_classes, hidden_size=width_in, drop_rate=drop_rate, norm_layer=partial(LayerNorm2d, eps=1e-6)
        )
        for module in self.modules():
            if isinstance(module, (Stem, MbConvBlock, TransformerBlock2d)):
                module.init_weights("vit_eff")

    def get_classifier(self) -> nn.Module:
        """Gives the last layer."""
        last: nn.Module = self.head.fc
        return last

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replaces the last layer; 0 classes leave it out. `global_pool` is timm's name of a pooling."""
        self.num_classes = num_classes
        self.head.reset(num_classes, global_pool)
        self.head.to(self.head.norm.weight)

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, C, h, w)."""
        if x.shape[2:] != self.img_size:
            raise ValueError(
                f"The model has relative positions for {self.img_size} pixels; build it with the img_size of the images."
            )
        if x.device.type == "cpu":
            # Norms and attention want channels last in memory, and convolutions keep them there: 1.2 times as fast on a CPU.
            # Elsewhere the caller decides.
            x = x.contiguous(memory_format=torch.channels_last)
        out: Tensor = self.stages(self.stem(x))
        return out

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """(B, C, h, w) -> (B, classes), or (B, C) before the last layer."""
        out: Tensor = self.head(x, pre_logits=pre_logits)
        return out

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, classes)."""
        return self.forward_head(self.forward_features(x))


def checkpoint_filter_fn(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Gives a state dict whose tables of relative positions fit the model's maps, resampled bilinearly (appendix A.1).

    A table of as many offsets is taken to be of the same map, any other to be of a square one.
    """
    state = dict(state_dict)
    for name, module in model.named_modules():
        key = f"{name}.relative_position_bias_table"
        if not isinstance(module, RelPosBias) or key not in state:
            continue
        table, own = state[key], module.relative_position_bias_table
        side = round(len(table) ** 0.5)
        if len(table) != len(own) and side**2 == len(table):
            offsets = tuple(2 * extent - 1 for extent in module.window_size)
            image = table.T.reshape(1, -1, side, side)
            image = functional.interpolate(image, offsets, mode="bilinear", align_corners=False)
            state[key] = image.flatten(2)[0].T.contiguous()
    return state


def _layout(kinds: str, depths: tuple[int, ...], dims: tuple[int, ...]) -> tuple[Stage, ...]:
    """Gives stages by their letters, C or T, as the paper writes them (section 2.2)."""
    blocks = {"C": convolution, "T": transformer}
    return tuple(Stage(blocks[kind], *size) for kind, *size in zip(kinds, depths, dims, strict=True))


def _scaled(dims: tuple[int, ...]) -> tuple[Stage, ...]:
    """Gives the stages of CoAtNet-6 and 7: two thirds of S2's convolutions are in S3, before its Transformers."""
    s1, s2, s3_convolution, s3_transformer, s4 = dims
    return (
        Stage(convolution, 2, s1),
        Stage(convolution, 4, s2),
        Stage(convolution, 8, s3_convolution),
        Stage(transformer, 42, s3_transformer, stride=1),
        Stage(transformer, 2, s4),
    )


_DIMS = (96, 192, 384, 768)
# Source: tables 3, 11 and 12. The layouts of section 2.2 have no published sizes, only "similar parameter size and computational
# cost": their widths are CoAtNet-0's, their depths bring each within 4 % of its parameters and multiply-accumulates.
_ENTRY_POINTS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "coatnet_0": {"stem_width": 64, "stages": _layout("CCTT", (2, 3, 5, 2), _DIMS)},
        "coatnet_1": {"stem_width": 64, "stages": _layout("CCTT", (2, 6, 14, 2), _DIMS)},
        "coatnet_2": {"stem_width": 128, "stages": _layout("CCTT", (2, 6, 14, 2), (128, 256, 512, 1024))},
        "coatnet_3": {"stem_width": 192, "stages": _layout("CCTT", (2, 6, 14, 2), (192, 384, 768, 1536))},
        "coatnet_4": {"stem_width": 192, "stages": _layout("CCTT", (2, 12, 28, 2), (192, 384, 768, 1536))},
        "coatnet_5": {
            "stem_width": 192,
            "stages": _layout("CCTT", (2, 12, 28, 2), (256, 512, 1280, 2048)),
            "head_size": 64,
        },
        "coatnet_6": {"stem_width": 192, "stages": _scaled((192, 384, 768, 1536, 3072)), "head_size": 128},
        "coatnet_7": {"stem_width": 192, "stages": _scaled((256, 512, 1024, 2048, 3072)), "head_size": 128},
        "coatnet_0_cccc": {"stem_width": 64, "stages": _layout("CCCC", (2, 5, 7, 2), _DIMS)},
        "coatnet_0_ccct": {"stem_width": 64, "stages": _layout("CCCT", (2, 6, 5, 2), _DIMS)},
        "coatnet_0_cctt": {"stem_width": 64, "stages": _layout("CCTT", (2, 3, 5, 2), _DIMS)},
        "coatnet_0_cttt": {"stem_width": 64, "stages": _layout("CTTT", (2, 1, 5, 2), _DIMS)},
    }
)


def _cfg(first_conv: str, classifier: str) -> dict[str, Any]:
    return {
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "fixed_input_size": True,
        "crop_pct": 0.95,
        "interpolation": "bicubic",
        "mean": IMAGENET_INCEPTION_MEAN,
        "std": IMAGENET_INCEPTION_STD,
        "first_conv": first_conv,
        "classifier": classifier,
    }


default_cfgs = generate_default_cfgs(
    {
        **{f"{name}.untrained": _cfg("stem.conv1", "head.fc") for name in _ENTRY_POINTS},
        "vit_rel.untrained": _cfg("patch_embed.proj", "head"),
    }
)


def _register(name: str, arguments: Mapping[str, Any]) -> None:
    def entry_point(pretrained: bool = False, **options: Any) -> CoAtNet:
        return build_model_with_cfg(
            CoAtNet, name, pretrained, pretrained_filter_fn=checkpoint_filter_fn, **{**arguments, **options}
        )

    entry_point.__name__ = name
    register_model(entry_point)


for _name, _arguments in _ENTRY_POINTS.items():
    _register(_name, _arguments)


class ViTRel(VisionTransformerRelPos):
    """ViT_REL of section 2.2: ViT's stem of patches, relative attention, pooling by average."""


@register_model
def vit_rel(pretrained: bool = False, **options: Any) -> ViTRel:
    """ViT_REL with patches of 16 x 16 pixels.

    Of the sizes that such a stem allows, ViT-S's is nearest to CoAtNet-0: 12 % fewer parameters, 10 % more multiply-accumulates.
    """
    sizes: dict[str, Any] = {
        "patch_size": 16,
        "embed_dim": 384,
        "depth": 12,
        "num_heads": 12,
        "rel_pos_type": "bias",
        "init_values": None,
    }
    return build_model_with_cfg(
        ViTRel, "vit_rel", pretrained, pretrained_filter_fn=checkpoint_filter_fn, **sizes | options
    )
