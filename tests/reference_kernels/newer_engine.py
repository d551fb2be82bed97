"""What a later Transformer Engine (2.20) asks of its compiled half otherwise than 2.11 does."""

import sys
from enum import IntEnum
from importlib.metadata import version
from types import ModuleType
from typing import Any

import torch
from packaging.version import Version
from torch import Tensor

from tests.reference_kernels import attention, packed_context

_AS_IN_2_11 = Version("2.12")


def adapt_to_engine(extension: ModuleType) -> None:
    """Give the functions and names that differ the form that the installed Transformer Engine calls them in."""
    if Version(version("transformer-engine")) < _AS_IN_2_11:
        return
    changed = {
        "NVTE_Fused_Attn_Backend": Backend,
        "get_fused_attn_backend": get_fused_attn_backend,
        "fused_attn_fwd": fused_attn_fwd,
        "fused_attn_bwd": fused_attn_bwd,
        "thd_out_correction": thd_out_correction,
        "create_empty_quantized_tensor": create_empty_quantized_tensor,
    }
    for name, value in changed.items():
        setattr(extension, name, value)


Backend = IntEnum("Backend", "NVTE_No_Backend NVTE_F16_arbitrary_seqlen NVTE_FP8", start=0)


def get_fused_attn_backend(parameters: Any) -> tuple[Any, str]:
    """(backend, why there is none)."""
    found = attention.get_fused_attn_backend(
        parameters.is_training, parameters.qkv_dtype, parameters.qkv_dtype, parameters.qkv_layout
    )
    return Backend[found.name], "" if found.name != "NVTE_No_Backend" else "its numbers have not 16 bits"


def fused_attn_fwd(*arguments: Any) -> Any:
    """Without the formats of output and scales, and without where a sliding window begins."""
    before, (bias, mask, softmax, window, _), after = arguments[:7], arguments[9:14], arguments[14:]
    return attention.fused_attn_fwd(*before, bias, mask, softmax, window, *after)


def fused_attn_bwd(*arguments: Any) -> Any:
    """Without formats and layouts of gradients and scales; the gradients' type is that of the numbers."""
    before, (bias, mask, softmax, window, _), after = arguments[:6], arguments[11:16], arguments[16:]
    return attention.fused_attn_bwd(*before, bias, mask, softmax, window, *after[:9], None, *after[9:])


def thd_out_correction(
    output: Tensor, part: Tensor, before: Tensor, sums: Tensor, part_sums: Tensor, ends: Tensor, *rest: bool
) -> None:
    """Adds a part to an output that is normalised by the sums `before` it [a, t]: rows without a part keep theirs."""
    output.copy_(output.float() * (before - sums).exp().T.unsqueeze(-1))
    packed_context.thd_out_correction(output, part, sums, part_sums, ends, *rest)


def create_empty_quantized_tensor(
    quantizer: Any, shape: list[int], dtype: torch.dtype, device: torch.device, pin_memory: bool
) -> Any:
    """Of the sizes that the quantizer names, with nothing in it yet."""
    size = tuple(shape)
    kind = type(quantizer)
    if kind.__name__ == "Float8Quantizer":
        # It names none; its tensors are those of scaling by what is, instead of by what was.
        kind = sys.modules[kind.__module__].Float8CurrentScalingQuantizer
    inner = quantizer.internal
    quantizer.internal = False
    described = kind.storage_metadata(quantizer, dtype)
    quantizer.internal = inner
    parts = {
        name: torch.empty(part, dtype=part_dtype)
        for name, (part, part_dtype) in kind.inner_tensor_specs(quantizer, size).items()
    }
    context = {**described, "is_tensor": True, "requires_grad": False}
    return described["cls"].__tensor_unflatten__(parts, context, size, None)
