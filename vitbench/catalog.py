"""The architectures: one row a variant, in the words of the papers.

A row joins the published figures by its `published_ids` and input. Rows that share an id are one model at several sizes whose
window, weights or stem differ: asking one of them for the other's size gives the other row.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Any, Literal

from vitbench.errors import UnknownName

IMAGENET_CLASSES = 1000
CIFAR10_CLASSES = 10
FLOWERS102_CLASSES = 102
KINETICS400_CLASSES = 400
IMAGENET_22K_CLASSES = 21841
IMAGENET_21K_P_CLASSES = 19168


@dataclass(frozen=True, slots=True, kw_only=True)
class Paper:
    """A paper, by its arXiv id; the year is that of the first version, the repository its authors'."""

    title: str
    arxiv: str
    year: int
    repository: str = ""

    @property
    def cited_as(self) -> tuple[str, ...]:
        """How a source of a published figure names the paper and its authors' repository, best first."""
        return (self.arxiv, self.repository) if self.repository else (self.arxiv,)


_PAPERS = {
    "resnet": Paper(title="Deep Residual Learning for Image Recognition", arxiv="1512.03385", year=2015),
    "noisy_student": Paper(
        title="Self-training with Noisy Student improves ImageNet classification", arxiv="1911.04252", year=2019
    ),
    "bit": Paper(
        title="Big Transfer (BiT): General Visual Representation Learning",
        arxiv="1912.11370",
        year=2019,
        repository="google-research/big_transfer",
    ),
    "regnet": Paper(title="Designing Network Design Spaces", arxiv="2003.13678", year=2020),
    "vit": Paper(
        title="An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale",
        arxiv="2010.11929",
        year=2020,
        repository="google-research/vision_transformer",
    ),
    "deit": Paper(
        title="Training data-efficient image transformers & distillation through attention",
        arxiv="2012.12877",
        year=2020,
        repository="facebookresearch/deit",
    ),
    "swin": Paper(
        title="Swin Transformer: Hierarchical Vision Transformer using Shifted Windows",
        arxiv="2103.14030",
        year=2021,
        repository="microsoft/Swin-Transformer",
    ),
    "pvt": Paper(
        title="Pyramid Vision Transformer: A Versatile Backbone for Dense Prediction without Convolutions",
        arxiv="2102.12122",
        year=2021,
        repository="whai362/PVT",
    ),
    "cvt": Paper(
        title="CvT: Introducing Convolutions to Vision Transformers",
        arxiv="2103.15808",
        year=2021,
        repository="microsoft/CvT",
    ),
    "compact": Paper(
        title="Escaping the Big Data Paradigm with Compact Transformers",
        arxiv="2104.05704",
        year=2021,
        repository="SHI-Labs/Compact-Transformers",
    ),
    "scaling_vit": Paper(title="Scaling Vision Transformers", arxiv="2106.04560", year=2021),
    "coatnet": Paper(
        title="CoAtNet: Marrying Convolution and Attention for All Data Sizes", arxiv="2106.04803", year=2021
    ),
    "augreg": Paper(
        title="How to train your ViT? Data, Augmentation, and Regularization in Vision Transformers",
        arxiv="2106.10270",
        year=2021,
        repository="google-research/vision_transformer",
    ),
    "pvt_v2": Paper(
        title="PVT v2: Improved Baselines with Pyramid Vision Transformer",
        arxiv="2106.13797",
        year=2021,
        repository="whai362/PVT",
    ),
    "swinv2": Paper(
        title="Swin Transformer V2: Scaling Up Capacity and Resolution",
        arxiv="2111.09883",
        year=2021,
        repository="microsoft/Swin-Transformer",
    ),
    "mvitv2": Paper(
        title="MViTv2: Improved Multiscale Vision Transformers for Classification and Detection",
        arxiv="2112.01526",
        year=2021,
        repository="facebookresearch/mvit",
    ),
    "vivit": Paper(
        title="ViViT: A Video Vision Transformer", arxiv="2103.15691", year=2021, repository="google-research/scenic"
    ),
    "timesformer": Paper(
        title="Is Space-Time Attention All You Need for Video Understanding?",
        arxiv="2102.05095",
        year=2021,
        repository="facebookresearch/TimeSformer",
    ),
    "mvit": Paper(
        title="Multiscale Vision Transformers", arxiv="2104.11227", year=2021, repository="facebookresearch/SlowFast"
    ),
    "deit3": Paper(
        title="DeiT III: Revenge of the ViT", arxiv="2204.07118", year=2022, repository="facebookresearch/deit"
    ),
    "t2t_vit": Paper(
        title="Tokens-to-Token ViT: Training Vision Transformers from Scratch on ImageNet",
        arxiv="2101.11986",
        year=2021,
        repository="yitu-opensource/T2T-ViT",
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One architecture at one default input.

    Attributes:
        name: short name, as the papers speak.
        family: the group it is listed under.
        paper: where it was published.
        timm_name: the entry point registered with timm, with the tag of the weights where timm has several.
        input_shape: channels x height x width, or channels x frames x height x width for clips.
        num_classes: classes of the official variant's classifier.
        frame_stride: of a clip, frames of the video from one of the clip to the next, as the paper samples Kinetics-400.
        options: keyword arguments that make the entry point this architecture; it has no weights for it then.
        published_ids: ids under which published.csv has its figures.
        note: what a reader must know not to take it for another model.
    """

    name: str
    family: str
    paper: Paper
    timm_name: str
    input_shape: tuple[int, ...]
    num_classes: int = IMAGENET_CLASSES
    frame_stride: int | None = None
    options: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}), hash=False)
    published_ids: tuple[str, ...] = ()
    note: str = ""

    @property
    def modality(self) -> Literal["image", "video"]:
        """Whether it takes images or clips."""
        return "video" if len(self.input_shape) == 4 else "image"


def _image(
    family: str,
    paper: str,
    name: str,
    timm_name: str,
    size: int = 224,
    *,
    published: str | tuple[str, ...] = "",
    num_classes: int = IMAGENET_CLASSES,
    options: Mapping[str, Any] = MappingProxyType({}),
    note: str = "",
) -> Variant:
    ids = (published,) if isinstance(published, str) else published
    return Variant(
        name=name,
        family=family,
        paper=_PAPERS[paper],
        timm_name=timm_name,
        input_shape=(3, size, size),
        num_classes=num_classes,
        options=options,
        published_ids=tuple(one or name for one in ids),
        note=note,
    )


def _clip(
    family: str,
    paper: str,
    name: str,
    frames: int,
    stride: int,
    size: int = 224,
    *,
    published: tuple[str, ...] = ("",),
    note: str = "",
) -> Variant:
    return Variant(
        name=name,
        family=family,
        paper=_PAPERS[paper],
        timm_name=name,
        input_shape=(3, frames, size, size),
        num_classes=KINETICS400_CLASSES,
        frame_stride=stride,
        published_ids=tuple(one or name for one in published),
        note=note,
    )


def _vivit(size: str, tubelet: str) -> tuple[Variant, ...]:
    """Gives ViViT's four models of one size and tubelet."""
    name = f"vivit_{size}_{tubelet}"
    long = {"vivit_l_16x2_fe": ("", "vivit_l_16x2_fe_128f")}
    return tuple(
        _clip("vivit", "vivit", f"{name}_{model}", 32, 2, published=long.get(f"{name}_{model}", ("",)), note=note)
        for model, note in _VIVIT_MODELS.items()
    )


def _compact(
    family: str, name: str, note: str, *, size: int = 32, num_classes: int = CIFAR10_CLASSES
) -> tuple[Variant, Variant]:
    """Gives a Compact Transformer with learnt positions, which the papers' figures are of, and with sinusoidal ones."""
    learnt = _image(
        family,
        "compact",
        name,
        name,
        size,
        published=name.removesuffix(f"_{size}"),
        num_classes=num_classes,
        note=note,
    )
    sine = f"{name}_sine"
    return learnt, _image(
        family, "compact", sine, sine, size, num_classes=num_classes, note=f"{note}; sinusoidal positions"
    )


# Sizes of the Transformer (ViT paper, Table 1), for hybrids that timm has the parts of and no entry point for.
_BASE = MappingProxyType({"embed_dim": 768, "depth": 12, "num_heads": 12})
_LARGE = MappingProxyType({"embed_dim": 1024, "depth": 24, "num_heads": 16})
_DWSTRIDE = "timm's layout: stages shrink in the strided depth-wise convolution, as in the paper's Table 9, not Table 4"
_LAYOUT = "the paper's layout study gives no sizes; these are CoAtNet-0's widths, at about its parameters and cost"
_CVT = "Convolutional vision Transformer; not the CVT of Compact Transformers, which is compact_cvt here"
_COMPACT_CVT = "Compact Vision Transformer (CVT) of the Compact Transformers paper; not CvT, which is cvt here"
_CCT = "Compact Convolutional Transformer; the figures after the depth are the tokenizer's kernel and layers"
_VIT_LITE = "a small ViT; the figures after the name are its depth, its patch and the image"
_RW = "redesigned by timm's author, not the paper's model"
_IN22K = "the official weights of this window are those of ImageNet-22k: 21841 classes"
_IN21K = "the official weights are those of ImageNet-21k: 19168 classes"

_VIVIT_MODELS = {
    "m1": "Model 1: spatio-temporal attention",
    "fe": "Model 2: factorised encoder",
    "fsa": "Model 3: factorised self-attention",
    "fdp": "Model 4: factorised dot-product attention",
}
_DIVIDED = "divided attention, time then space: what the paper calls TimeSformer"
_SMALL_MVIT = (
    "after the paper's table 3(c): there is no official configuration, and strides of keys and values are not printed"
)

_ROWS = (
    # ViT. Ti and S come from the AugReg paper; g and G from Scaling Vision Transformers.
    _image("vit", "augreg", "vit_ti16", "vit_tiny_patch16_224"),
    _image("vit", "augreg", "vit_ti16_384", "vit_tiny_patch16_384", 384, published="vit_ti16"),
    _image("vit", "augreg", "vit_s16", "vit_small_patch16_224"),
    _image("vit", "augreg", "vit_s16_384", "vit_small_patch16_384", 384, published="vit_s16"),
    _image("vit", "augreg", "vit_s32", "vit_small_patch32_224"),
    _image("vit", "augreg", "vit_s32_384", "vit_small_patch32_384", 384, published="vit_s32"),
    _image(
        "vit",
        "t2t_vit",
        "vit_s16_legacy_8x768",
        "vit_base_patch16_224",
        options={"depth": 8, "num_heads": 8, "mlp_ratio": 3.0, "qkv_bias": False},
        note="the ViT-S of the T2T-ViT and PVT tables: 8 layers of width 768, not the ViT-S of DeiT and AugReg",
    ),
    _image("vit", "deit3", "vit_m16", "deit3_medium_patch16_224", note="the medium size that DeiT III adds"),
    _image("vit", "vit", "vit_b16", "vit_base_patch16_224"),
    _image("vit", "vit", "vit_b16_384", "vit_base_patch16_384", 384, published="vit_b16"),
    _image("vit", "vit", "vit_b32", "vit_base_patch32_224"),
    _image("vit", "vit", "vit_b32_384", "vit_base_patch32_384", 384, published="vit_b32"),
    _image("vit", "vit", "vit_l16", "vit_large_patch16_224"),
    _image("vit", "vit", "vit_l16_384", "vit_large_patch16_384", 384, published="vit_l16"),
    _image("vit", "vit", "vit_l32", "vit_large_patch32_224"),
    _image("vit", "vit", "vit_l32_384", "vit_large_patch32_384", 384, published="vit_l32"),
    _image("vit", "vit", "vit_h14", "vit_huge_patch14_224"),
    _image("vit", "scaling_vit", "vit_g14", "vit_gigantic_patch14_224", note="ViT-G/14, width 1664 (capital G)"),
    _image(
        "vit", "scaling_vit", "vit_g14_lowercase", "vit_giant_patch14_224", note="ViT-g/14, width 1408 (lower-case g)"
    ),
    # ViT on a ResNet's feature map.
    _image(
        "vit_hybrid", "augreg", "r_vit_ti16", "vit_tiny_r_s16_p8_224", note="the ResNet's stem only, then patches of 8"
    ),
    _image("vit_hybrid", "augreg", "r_vit_ti16_384", "vit_tiny_r_s16_p8_384", 384, published="r_vit_ti16"),
    _image("vit_hybrid", "augreg", "r26_vit_s32", "vit_small_r26_s32_224"),
    _image("vit_hybrid", "augreg", "r26_vit_s32_384", "vit_small_r26_s32_384", 384, published="r26_vit_s32"),
    _image("vit_hybrid", "augreg", "r26_vit_b32", "vit_base_r26_s32_224"),
    _image("vit_hybrid", "vit", "r50_vit_b16", "vit_base_r50_s16_224", note="this R50 has three stages, 3-4-9 blocks"),
    _image("vit_hybrid", "vit", "r50_vit_b16_384", "vit_base_r50_s16_384", 384, published="r50_vit_b16"),
    _image("vit_hybrid", "vit", "r50_vit_b32", "vit_large_r50_s32_224", options=_BASE),
    _image(
        "vit_hybrid",
        "vit",
        "r50_vit_l16",
        "vit_base_r50_s16_224",
        options=_LARGE,
        note="this R50 has three stages, 3-4-9 blocks",
    ),
    _image("vit_hybrid", "vit", "r50_vit_l32", "vit_large_r50_s32_224"),
    _image("vit_hybrid", "vit", "r50_vit_l32_384", "vit_large_r50_s32_384", 384, published="r50_vit_l32"),
    # BiT: ResNet v2 with group norm and weight standardisation.
    _image("bit", "bit", "bit_r50x1", "resnetv2_50x1_bit.goog_in21k_ft_in1k", 448),
    _image("bit", "vit", "bit_r50x2", "bit_r50x2", 448),
    _image("bit", "bit", "bit_r50x3", "resnetv2_50x3_bit", 448),
    _image("bit", "bit", "bit_r101x1", "resnetv2_101x1_bit", 448),
    _image("bit", "bit", "bit_r101x3", "resnetv2_101x3_bit", 448),
    _image("bit", "vit", "bit_r152x1", "bit_r152x1", 448),
    _image("bit", "bit", "bit_r152x2", "resnetv2_152x2_bit.goog_in21k_ft_in1k", 448),
    _image("bit", "bit", "bit_r152x4", "resnetv2_152x4_bit", 480),
    _image("bit", "vit", "bit_r200x3", "bit_r200x3", 448),
    # Convolutional baselines.
    _image("resnet", "resnet", "resnet50", "resnet50", note="v1.5: the stride is in the 3x3 convolution"),
    _image("resnet", "resnet", "resnet101", "resnet101", note="v1.5: the stride is in the 3x3 convolution"),
    _image("resnet", "resnet", "resnet152", "resnet152", note="v1.5: the stride is in the 3x3 convolution"),
    _image("regnet", "regnet", "regnety_16gf", "regnety_160.deit_in1k", note="DeiT's teacher"),
    _image("efficientnet", "noisy_student", "efficientnet_l2", "tf_efficientnet_l2.ns_jft_in1k", 800),
    _image(
        "efficientnet",
        "noisy_student",
        "efficientnet_l2_475",
        "tf_efficientnet_l2.ns_jft_in1k_475",
        475,
        published="efficientnet_l2",
    ),
    # DeiT.
    _image("deit", "deit", "deit_ti16", "deit_tiny_patch16_224"),
    _image("deit", "deit", "deit_s16", "deit_small_patch16_224"),
    _image("deit", "deit", "deit_b16", "deit_base_patch16_224"),
    _image("deit", "deit", "deit_b16_384", "deit_base_patch16_384", 384, published="deit_b16"),
    _image("deit", "deit", "deit_ti16_dist", "deit_tiny_distilled_patch16_224"),
    _image("deit", "deit", "deit_s16_dist", "deit_small_distilled_patch16_224"),
    _image("deit", "deit", "deit_b16_dist", "deit_base_distilled_patch16_224"),
    _image("deit", "deit", "deit_b16_dist_384", "deit_base_distilled_patch16_384", 384, published="deit_b16_dist"),
    # Swin: the window grows with the image.
    _image("swin", "swin", "swin_t", "swin_tiny_patch4_window7_224"),
    _image("swin", "swin", "swin_s", "swin_small_patch4_window7_224"),
    _image("swin", "swin", "swin_b", "swin_base_patch4_window7_224"),
    _image("swin", "swin", "swin_b_384", "swin_base_patch4_window12_384", 384, published="swin_b", note="window 12"),
    _image("swin", "swin", "swin_l", "swin_large_patch4_window7_224"),
    _image("swin", "swin", "swin_l_384", "swin_large_patch4_window12_384", 384, published="swin_l", note="window 12"),
    # Swin V2: w is the window.
    _image("swinv2", "swinv2", "swinv2_t_w8", "swinv2_tiny_window8_256", 256),
    _image("swinv2", "swinv2", "swinv2_t_w16", "swinv2_tiny_window16_256", 256),
    _image("swinv2", "swinv2", "swinv2_s_w8", "swinv2_small_window8_256", 256),
    _image("swinv2", "swinv2", "swinv2_s_w16", "swinv2_small_window16_256", 256),
    _image("swinv2", "swinv2", "swinv2_b_w8", "swinv2_base_window8_256", 256),
    _image(
        "swinv2",
        "swinv2",
        "swinv2_b_w12",
        "swinv2_base_window12_192",
        192,
        num_classes=IMAGENET_22K_CLASSES,
        note=_IN22K,
    ),
    _image("swinv2", "swinv2", "swinv2_b_w16", "swinv2_base_window16_256", 256),
    _image(
        "swinv2",
        "swinv2",
        "swinv2_b_w24",
        "swinv2_base_window12to24_192to384",
        384,
        published=("swinv2_b_w24", "swinv2_b"),
    ),
    _image(
        "swinv2",
        "swinv2",
        "swinv2_l_w12",
        "swinv2_large_window12_192",
        192,
        num_classes=IMAGENET_22K_CLASSES,
        note=_IN22K,
    ),
    _image("swinv2", "swinv2", "swinv2_l_w16", "swinv2_large_window12to16_192to256", 256),
    _image(
        "swinv2",
        "swinv2",
        "swinv2_l_w24",
        "swinv2_large_window12to24_192to384",
        384,
        published=("swinv2_l_w24", "swinv2_l"),
    ),
    # PVT v2.
    _image("pvt_v2", "pvt_v2", "pvt_v2_b0", "pvt_v2_b0"),
    _image("pvt_v2", "pvt_v2", "pvt_v2_b1", "pvt_v2_b1"),
    _image("pvt_v2", "pvt_v2", "pvt_v2_b2", "pvt_v2_b2"),
    _image("pvt_v2", "pvt_v2", "pvt_v2_b2_li", "pvt_v2_b2_li", note="linear spatial-reduction attention"),
    _image("pvt_v2", "pvt_v2", "pvt_v2_b3", "pvt_v2_b3"),
    _image("pvt_v2", "pvt_v2", "pvt_v2_b4", "pvt_v2_b4"),
    _image("pvt_v2", "pvt_v2", "pvt_v2_b5", "pvt_v2_b5"),
    # MViTv2, image models.
    _image("mvitv2", "mvitv2", "mvitv2_t", "mvitv2_tiny"),
    _image("mvitv2", "mvitv2", "mvitv2_s", "mvitv2_small"),
    _image("mvitv2", "mvitv2", "mvitv2_b", "mvitv2_base"),
    _image("mvitv2", "mvitv2", "mvitv2_l", "mvitv2_large"),
    _image(
        "mvitv2",
        "mvitv2",
        "mvitv2_h",
        "mvitv2_huge_cls",
        note="with class token, as the only official weights of this size",
    ),
    _image("mvitv2", "mvitv2", "mvitv2_b_cls", "mvitv2_base_cls", num_classes=IMAGENET_21K_P_CLASSES, note=_IN21K),
    _image("mvitv2", "mvitv2", "mvitv2_l_cls", "mvitv2_large_cls", num_classes=IMAGENET_21K_P_CLASSES, note=_IN21K),
    _image("mvitv2", "mvitv2", "mvitv2_h_cls", "mvitv2_huge_cls", num_classes=IMAGENET_21K_P_CLASSES, note=_IN21K),
    # CvT: any size goes in; at 384 with weights of their own.
    _image("cvt", "cvt", "cvt_13", "cvt_13", note=_CVT),
    _image("cvt", "cvt", "cvt_13_384", "cvt_13.in1k_384", 384, published="cvt_13", note=_CVT),
    _image("cvt", "cvt", "cvt_21", "cvt_21", note=_CVT),
    _image("cvt", "cvt", "cvt_21_384", "cvt_21.in1k_384", 384, published="cvt_21", note=_CVT),
    _image("cvt", "cvt", "cvt_w24", "cvt_w24", 384, note=_CVT),
    # T2T-ViT: t is for the Transformer, in place of the Performer, in the tokens-to-token module.
    *(_image("t2t_vit", "t2t_vit", name, name) for name in ("t2t_vit_7", "t2t_vit_10", "t2t_vit_12", "t2t_vit_14")),
    _image("t2t_vit", "t2t_vit", "t2t_vit_14_384", "t2t_vit_14.in1k_384", 384, published="t2t_vit_14"),
    *(_image("t2t_vit", "t2t_vit", name, name) for name in ("t2t_vit_19", "t2t_vit_24")),
    *(
        _image("t2t_vit", "t2t_vit", f"t2t_vit_t_{depth}", f"t2t_vit_t_{depth}", note="Transformer tokens-to-token")
        for depth in (14, 19, 24)
    ),
    _image("t2t_vit", "t2t_vit", "t2t_vit_resnext", "t2t_vit_resnext", note="T2T-ViT-14 with 32 heads"),
    _image("t2t_vit", "t2t_vit", "t2t_vit_wide", "t2t_vit_wide", note="4 layers of width 768"),
    _image("t2t_vit", "t2t_vit", "t2t_vit_se", "t2t_vit_se", note="T2T-ViT-14 with squeeze and excitation"),
    _image("t2t_vit", "t2t_vit", "t2t_vit_ghost", "t2t_vit_ghost", note="16 layers with GhostNet's cheap operations"),
    _image("t2t_vit", "t2t_vit", "t2t_vit_dense", "t2t_vit_dense", note="19 layers with DenseNet's connections"),
    # PVT v1.
    *(_image("pvt", "pvt", f"pvt_{size}", f"pvt_{size}") for size in ("tiny", "small", "medium", "large")),
    # CoAtNet: the paper's main table, its layout study, and what timm builds.
    *(_image("coatnet", "coatnet", f"coatnet_{n}", f"coatnet_{n}") for n in range(8)),
    *(
        _image(
            "coatnet",
            "coatnet",
            f"coatnet_0_{layout}",
            f"coatnet_0_{layout}",
            published=f"coatnet_layout_{layout}",
            note=_LAYOUT,
        )
        for layout in ("cccc", "ccct", "cctt", "cttt")
    ),
    _image(
        "coatnet",
        "coatnet",
        "vit_rel",
        "vit_rel",
        published="coatnet_layout_vit_rel",
        note="the layout study's ViT stem with relative attention; the paper gives no size, this is ViT-S's",
    ),
    *(_image("coatnet", "coatnet", f"coatnet_{n}_dwstride", f"coatnet_{n}_224", note=_DWSTRIDE) for n in range(6)),
    *(_image("coatnet", "coatnet", f"coatnet_{n}_rw", f"coatnet_{n}_rw_224", note=_RW) for n in range(4)),
    # Compact Transformers: CCT, CVT and ViT-Lite, each with learnt and with sinusoidal positions.
    *_compact("cct", "cct_2_3x2_32", _CCT),
    *_compact("cct", "cct_4_3x2_32", _CCT),
    *_compact("cct", "cct_6_3x1_32", _CCT),
    *_compact("cct", "cct_6_3x2_32", _CCT),
    *_compact("cct", "cct_7_3x1_32", _CCT),
    *_compact("cct", "cct_7_3x2_32", _CCT),
    *_compact("cct", "cct_7_7x2_224", _CCT, size=224, num_classes=FLOWERS102_CLASSES),
    _image("cct", "compact", "cct_14_7x2_224", "cct_14_7x2_224", published="cct_14_7x2", note=_CCT),
    _image("cct", "compact", "cct_14_7x2_384", "cct_14_7x2_384", 384, published="cct_14_7x2", note=_CCT),
    *_compact("compact_cvt", "compact_cvt_2_4_32", _COMPACT_CVT),
    *_compact("compact_cvt", "compact_cvt_4_4_32", _COMPACT_CVT),
    *_compact("compact_cvt", "compact_cvt_6_4_32", _COMPACT_CVT),
    *_compact("compact_cvt", "compact_cvt_7_4_32", _COMPACT_CVT),
    *_compact("compact_cvt", "compact_cvt_7_8_32", _COMPACT_CVT),
    *_compact("vit_lite", "vit_lite_2_4_32", _VIT_LITE),
    *_compact("vit_lite", "vit_lite_4_4_32", _VIT_LITE),
    *_compact("vit_lite", "vit_lite_6_4_32", _VIT_LITE),
    *_compact("vit_lite", "vit_lite_7_4_32", _VIT_LITE),
    *_compact("vit_lite", "vit_lite_7_8_32", _VIT_LITE),
    *_compact("vit_lite", "vit_lite_7_16_32", _VIT_LITE),
    # ViViT: the sides of a tubelet and its frames, then the model.
    *(row for size in "blh" for tubelet in ("16x2", "14x2", "16x4", "16x8") for row in _vivit(size, tubelet)),
    _clip(
        "vivit", "vivit", "vivit_b_16x2_avgpool", 32, 2, note="Model 2 without temporal encoder: an average over time"
    ),
    _clip("vivit", "vivit", "vivit_b_16x4_m1_uniform", 32, 2, note="Model 1 on patches of 8 frames, sampled uniformly"),
    # TimeSformer.
    _clip("timesformer", "timesformer", "timesformer_space", 8, 32, note="every frame by itself"),
    _clip("timesformer", "timesformer", "timesformer_joint", 8, 32, note="every patch of the clip"),
    _clip("timesformer", "timesformer", "timesformer_divided", 8, 32, note=_DIVIDED),
    _clip("timesformer", "timesformer", "timesformer", 8, 32, published=("timesformer_divided",), note=_DIVIDED),
    _clip("timesformer", "timesformer", "timesformer_lg", 8, 32, note="sparse local, then sparse global attention"),
    _clip("timesformer", "timesformer", "timesformer_axial", 8, 32, note="attention over time, width, height"),
    _clip("timesformer", "timesformer", "timesformer_hr", 16, 16, 448, note=_DIVIDED),
    _clip("timesformer", "timesformer", "timesformer_l", 96, 4, published=("", "timesformer_l_64f"), note=_DIVIDED),
    # MViT: frames and the distance between them.
    _clip("mvit", "mvit", "mvit_s_16x4", 16, 4, note=_SMALL_MVIT),
    _clip("mvit", "mvit", "mvit_b_16x4", 16, 4),
    _clip("mvit", "mvit", "mvit_b_32x3", 32, 3),
    _clip("mvit", "mvit", "mvit_b_64x3", 64, 3),
    _clip("mvit", "mvit", "mvit_b_24_32x3", 32, 3, note="24 layers; pooling kernels of a stride and one more"),
    _image("mvit", "mvit", "mvit_b_16_image", "mvit_b_16_image"),
    _image("mvit", "mvit", "mvit_b_24_image", "mvit_b_24_image", note="24 layers"),
    _image("mvit", "mvit", "mvit_b_24_wide_image", "mvit_b_24_wide_image", 320, note="24 layers, from 112 channels"),
    # MViTv2, clips.
    _clip("mvitv2", "mvitv2", "mvitv2_s_16x4", 16, 4),
    _clip("mvitv2", "mvitv2", "mvitv2_b_32x3", 32, 3),
    _clip("mvitv2", "mvitv2", "mvitv2_l_40x3", 40, 3, 312, published=("", "mvitv2_l_32x3")),
)

# What a family's name alone would let a reader take for another.
FAMILY_NOTES: Mapping[str, str] = MappingProxyType(
    {
        "cvt": "cvt is CvT, the Convolutional vision Transformer; the CVT of Compact Transformers is compact_cvt.",
        "compact_cvt": "compact_cvt is CVT, the Compact Vision Transformer of Compact Transformers; CvT is cvt.",
    }
)

VARIANTS: Mapping[str, Variant] = MappingProxyType({row.name: row for row in _ROWS})

# No paper has it and nothing is published of it, so it is in no table of the catalog; it is found by its name.
DEMO = _image(
    "demo",
    "vit",
    "vit_demo",
    "vit_demo",
    112,
    num_classes=0,
    note="not of the paper, but its architecture made small; trained weights come with vitbench, for trying analyses out",
)


def families() -> tuple[str, ...]:
    """Gives the names of the families, in the order of the catalog."""
    return tuple(dict.fromkeys(row.family for row in _ROWS))


def find(name: str) -> Variant:
    """Gives the row of a name, `DEMO`'s too.

    Raises:
        UnknownName: the catalog has no such row; the error suggests near ones.
    """
    if name == DEMO.name:
        return DEMO
    try:
        return VARIANTS[name]
    except KeyError:
        raise UnknownName("model", name, VARIANTS, hint="`vitbench list` shows all.") from None


def match(pattern: str) -> tuple[Variant, ...]:
    """Gives the rows whose name fits a glob, in catalog order; none fitting gives an empty tuple."""
    return tuple(row for row in _ROWS if fnmatchcase(row.name, pattern))


def of_family(family: str) -> tuple[Variant, ...]:
    """Gives the rows of a family.

    Raises:
        UnknownName: there is no such family.
    """
    if family not in families():
        raise UnknownName("family", family, families(), hint=f"Known are {', '.join(families())}.")
    return tuple(row for row in _ROWS if row.family == family)


def at_size(variant: Variant, size: Iterable[int]) -> Variant:
    """Gives the row of the same published model whose own input has this height and width; else the row itself."""
    wanted = tuple(size)
    for row in _ROWS:
        if row.published_ids[0] == variant.published_ids[0] and row.input_shape[-2:] == wanted:
            return row
    return variant
