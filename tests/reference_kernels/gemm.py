"""Matrix products, of plain and of FP8 matrices, under the conditions that Hopper's tensor cores put on them."""

from typing import Any

import torch
from torch import Tensor

from tests.reference_kernels.quantize import columnwise, quantize, rowwise, torch_type

_FP8_MULTIPLE = 16
"""cuBLAS multiplies FP8 matrices whose sides are multiples of this."""


def generic_gemm(
    a: Any,
    transpose_a: bool,
    b: Any,
    transpose_b: bool,
    out: Tensor | None,
    quantizer: Any,
    out_type: int | None,
    bias: Tensor | None,
    bias_type: int,
    gelu: bool,
    gelu_input: Tensor | None,
    gradient: bool,
    workspace: Tensor,
    workspace_size: int,
    accumulate: bool,
    use_split_accumulator: bool,
    **overlap: Any,
) -> tuple[Any, Tensor | None, None, None]:
    """op(b) @ op(a), matrices as their rows lie in memory: what cuBLAS calls op(a) op(b) of columns.

    Sums in fp32. Returns (product, gradient of the bias, None, None).
    """
    if gelu or overlap.get("comm_overlap") is not None:
        raise NotImplementedError("generic_gemm with gelu or with communication")
    # Hopper multiplies FP8 only with both operands along their rows: the others must be there transposed.
    left = columnwise(b) if transpose_b else rowwise(b)
    right = rowwise(a) if transpose_a else columnwise(a)
    if _is_fp8(a) or _is_fp8(b):
        assert _is_fp8(a) and _is_fp8(b), "FP8 is multiplied with FP8 alone"
        sides = (*left.shape, *right.shape)
        assert all(side % _FP8_MULTIPLE == 0 for side in sides), f"FP8 matrices have sides {sides}"
    product = left @ right.T
    bias_gradient = None
    if bias is not None and gradient:
        bias_gradient = left.sum(1).to(bias.dtype)
    elif bias is not None:
        product = product + bias.float()
    shape = product.shape if transpose_b else (*_shape(b)[:-1], product.size(1))
    product = product.view(shape).mul_(overlap.get("alpha", 1.0))
    if out is not None:
        out.copy_((out.float() if accumulate else 0) + product.view(out.shape))
        return out, bias_gradient, None, None
    dtype = torch_type(out_type) if out_type is not None else a.dtype
    product = product.to(dtype)
    return (product if quantizer is None else quantize(product, quantizer)), bias_gradient, None, None


def _is_fp8(matrix: Any) -> bool:
    return hasattr(matrix, "_fp8_dtype")


def _shape(matrix: Any) -> torch.Size:
    size: torch.Size = matrix.size()
    return size
