"""Has a pass on meta call the kernels that a real device would choose, where they hold other memory.

On meta, `scaled_dot_product_attention` is taken apart into two products with a softmax between. Devices have fused kernels that
hold no weights, only one number a row of them for the backward pass. Their operators exist on meta, with shapes for results
and gradients, and are called here by name. Dropout differs too: accelerators keep a mask of one byte an element, a CPU one of
the input's dtype. And on a CPU convolutions copy what they are given.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  # torch's own name for it
from torch import Tensor
from torch.autograd.graph import _engine_run_backward
from torch.nn.attention import SDPBackend
from torch.overrides import TorchFunctionMode

aten = torch.ops.aten


def kernels_of(device_kind: str) -> TorchFunctionMode:
    """Gives the mode under which a pass on meta calls a device's kernels: "cpu", or an accelerator as torch names it."""
    return _Cpu() if device_kind == "cpu" else _Accelerator(device_kind)


class _Kernels(TorchFunctionMode):
    """Hands the functions that have a method here to it."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            return self.attend(*args, **(kwargs or {}))
        if func is F.dropout:
            return self.drop(*args, **(kwargs or {}))
        if func is Tensor.backward:
            # Its body runs without this mode, and so would a forward pass that is recomputed there; autograd's engine takes
            # over the modes of whoever calls it.
            with self:
                return _engine_run_backward(
                    (args[0],),
                    (torch.ones_like(args[0]),),
                    False,
                    False,
                    (),
                    allow_unreachable=True,
                    accumulate_grad=True,
                )
        return func(*args, **(kwargs or {}))

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        """Does what `F.scaled_dot_product_attention` does, by the device's kernel."""
        kernel = self.choice(query, key, value, attn_mask, dropout_p, is_causal, enable_gqa)
        if kernel == SDPBackend.MATH:
            weighted, _ = aten._scaled_dot_product_attention_math(
                query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
            )
            return weighted  # type: ignore[no-any-return]  # operators are untyped
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill_(~attn_mask, -math.inf)
        return self.fuse(kernel, query, key, value, attn_mask, dropout_p, is_causal, scale)

    def choice(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        dropout_p: float,
        is_causal: bool,
        enable_gqa: bool,
    ) -> SDPBackend:
        """Gives the kernel that the device chooses."""
        raise NotImplementedError  # abstract: `_Cpu` and `_Accelerator` have it

    def fuse(
        self,
        kernel: SDPBackend,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        dropout_p: float,
        is_causal: bool,
        scale: float | None,
    ) -> Tensor:
        """Calls a fused kernel; a mask is added to the logits."""
        raise NotImplementedError  # abstract: `_Cpu` and `_Accelerator` have it

    def drop(self, inputs: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        """Does what `F.dropout` does."""
        return F.dropout(inputs, p, training, inplace)


class _Cpu(_Kernels):
    def choice(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        dropout_p: float,
        is_causal: bool,
        enable_gqa: bool,
    ) -> SDPBackend:
        """Asks torch itself, with small tensors on the CPU that have the same dtypes, strides, channels and gradients."""
        small = (_small(query, channels=True), _small(key, channels=True), _small(value, channels=True))
        small_mask = None if mask is None else _small(mask, channels=False)
        return SDPBackend(torch._fused_sdp_choice(*small, small_mask, dropout_p, is_causal, enable_gqa=enable_gqa))

    def fuse(
        self,
        kernel: SDPBackend,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        dropout_p: float,
        is_causal: bool,
        scale: float | None,
    ) -> Tensor:
        """Calls the CPU's only fused kernel."""
        weighted, _ = aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, dropout_p, is_causal, attn_mask=mask, scale=scale
        )
        return weighted  # type: ignore[no-any-return]  # operators are untyped


def _small(tensor: Tensor, *, channels: bool) -> Tensor:
    """Gives a tensor on the CPU that is like another for the choice of a kernel, with extents of at most 2."""
    extents = [min(extent, 2) for extent in tensor.shape]
    if channels:
        extents[-1] = tensor.shape[-1]
    small = torch.empty(extents, dtype=tensor.dtype, device="cpu")
    if tensor.stride(-1) != 1:
        small = torch.empty([*extents, 2], dtype=tensor.dtype, device="cpu")[..., 0]
    return small.requires_grad_(tensor.requires_grad and torch.is_grad_enabled())


class _Accelerator(_Kernels):
    """CUDA's rules, in CUDA's order; for other accelerators they are an approximation that nobody has measured.

    Source: sdp_utils.cpp and attention.cu in aten/src/ATen/native/transformers/cuda. Where cuDNN's kernel is preferred (Hopper,
    Blackwell) it holds what flash attention holds.
    """

    def __init__(self, device_kind: str) -> None:
        super().__init__()
        self._fused = device_kind != "mps"  # whose attention that trains is two products with a softmax between

    def choice(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        dropout_p: float,
        is_causal: bool,
        enable_gqa: bool,
    ) -> SDPBackend:
        """Takes flash attention for half precision without a mask, else memory-efficient attention, where they can be had."""
        channels = query.shape[-1]
        same = channels == key.shape[-1] == value.shape[-1]
        half = query.dtype in (torch.float16, torch.bfloat16)
        if not self._fused or query.dim() != 4 or enable_gqa:
            return SDPBackend.MATH
        if half and mask is None and same and channels <= 256:
            return SDPBackend.FLASH_ATTENTION
        # Its rows of queries, keys and values must be multiples of 16 bytes.
        multiple = 16 // query.element_size()
        if query.dtype == torch.float64 or channels % multiple or value.shape[-1] % multiple:
            return SDPBackend.MATH
        return SDPBackend.EFFICIENT_ATTENTION

    def fuse(
        self,
        kernel: SDPBackend,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        dropout_p: float,
        is_causal: bool,
        scale: float | None,
    ) -> Tensor:
        """Calls flash or memory-efficient attention, with the paddings that they need."""
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        if kernel == SDPBackend.FLASH_ATTENTION:
            channels = query.shape[-1]
            padded = [F.pad(one, (0, -channels % 8)) if channels % 8 else one for one in (query, key, value)]
            weighted = aten._scaled_dot_product_flash_attention(*padded, dropout_p, is_causal, False, scale=scale)[0]
            return weighted[..., :channels]  # type: ignore[no-any-return]  # operators are untyped
        if mask is not None:
            keys = mask.shape[-1]
            mask = F.pad(mask, (0, -keys % 16))[..., :keys] if keys % 16 else mask
            mask = mask.expand(*query.shape[:-1], keys)
        grows = torch.is_grad_enabled() and any(one.requires_grad for one in (query, key, value))
        return aten._scaled_dot_product_efficient_attention(  # type: ignore[no-any-return]  # operators are untyped
            query, key, value, mask, grows, dropout_p, is_causal, scale=scale
        )[0]

    def drop(self, inputs: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        """Calls the kernel that keeps a mask of booleans, where autograd would keep one."""
        if not training or not 0 < p < 1 or inplace:
            return F.dropout(inputs, p, training, inplace)
        return torch.native_dropout(inputs, p, True)[0]


def scratch(func: Any, args: Any, result: Any) -> int:
    """Gives the bytes that an operator takes on a CPU beside its results, and gives back before it returns: convolutions do.

    oneDNN computes on blocks of channels. Of images that lie plane by plane it copies the input, unless that has as few channels
    as a picture, and the result comes as a copy too, when that of the input is gone; and it makes blocks of the weights. In the
    backward pass input and gradient of the output are copied. Images whose channels lie together are taken as they are.

    Source: measured, convolution by convolution; benchmarks/README.md has the figures.
    """
    if func is aten.convolution.default:
        inputs, weight, parameters = args[0], args[1], args[3:9]
    elif func is aten.convolution_backward.default:
        inputs, weight, parameters = args[1], args[2], args[4:10]
    else:
        return 0
    if not _by_blocks(inputs, weight, parameters):
        return 0
    copied = inputs.nbytes if inputs.shape[1] > _CHANNELS_OF_PICTURES else 0
    together = torch.channels_last if inputs.dim() == 4 else torch.channels_last_3d
    plain = inputs.is_contiguous() or not inputs.is_contiguous(memory_format=together)
    if func is aten.convolution_backward.default:
        return int(copied + args[0].nbytes) if plain else 0
    return int(weight.nbytes + (max(copied, result.nbytes) if plain else 0))


_CHANNELS_OF_PICTURES = 3


def _by_blocks(inputs: Tensor, weight: Tensor, parameters: Any) -> bool:
    """Says whether torch gives a convolution to oneDNN: asked of torch itself, with tensors on the CPU that take no memory."""
    if inputs.dim() not in (4, 5):
        return False
    one = torch.empty(1, dtype=inputs.dtype, device="cpu")
    backend = torch._C._select_conv_backend(one.expand(inputs.shape), one.expand(weight.shape), None, *parameters)
    return bool(backend.name == "Mkldnn")
