"""FP8 tensors: how numbers are scaled and rounded to 8 bits and back, tensor by tensor and block by block."""

import math
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from tests.reference_kernels.names import DType

_TYPES = {
    DType.kByte: torch.uint8,
    DType.kInt32: torch.int32,
    DType.kFloat32: torch.float32,
    DType.kFloat16: torch.float16,
    DType.kBFloat16: torch.bfloat16,
    DType.kFloat8E4M3: torch.float8_e4m3fn,
    DType.kFloat8E5M2: torch.float8_e5m2,
}
_BLOCK = 128


def torch_type(number: int) -> torch.dtype:
    """torch's type for one of Transformer Engine's."""
    return _TYPES[int(number)]


def quantize(tensor: Tensor, quantizer: Any, out: Any = None, noop: Tensor | None = None) -> Any:
    """The tensor as FP8, by what the quantizer says: scaled by what was, by what is, or by blocks."""
    if noop is not None and bool(noop):
        return out
    kind = type(quantizer).__name__
    if out is None:
        out = quantizer.make_empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)
    tensor = tensor.detach().float()
    if kind == "Float8BlockQuantizer":
        _quantize_blocks(tensor, quantizer, out)
        return _as_storage(out) if quantizer.internal else out
    largest = tensor.abs().max() if tensor.numel() else tensor.new_zeros(())
    if kind == "Float8Quantizer":
        quantizer.amax.copy_(torch.maximum(quantizer.amax, largest))
        scale = quantizer.scale
    elif kind == "Float8CurrentScalingQuantizer":
        if quantizer.with_amax_reduction:
            dist.all_reduce(largest, dist.ReduceOp.MAX, group=quantizer.amax_reduction_group)
        scale = _scale(largest, quantizer.dtype, quantizer.amax_epsilon, quantizer.force_pow_2_scales)
    else:
        raise NotImplementedError(f"quantize for {kind}")
    data = _round(tensor * scale, quantizer.dtype)
    out._scale_inv.copy_(scale.reciprocal())
    if out._data is not None:
        out._data.copy_(data.view(out._data.shape))
    if out._transpose is not None:
        out._transpose.copy_(_transposed(data).view(out._transpose.shape))
        out._transpose_invalid = False
    return _as_storage(out) if quantizer.internal else out


def bgrad_quantize(gradient: Tensor, quantizer: Any) -> tuple[Tensor, Any]:
    """(gradient of the bias, the gradient as FP8)."""
    return gradient.flatten(0, -2).float().sum(0).to(gradient.dtype), quantize(gradient, quantizer)


def dequantize(tensor: Any, number: int) -> Tensor:
    """The numbers that an FP8 tensor stands for."""
    return (_decode(tensor._data, tensor._fp8_dtype) * tensor._scale_inv).to(torch_type(number))


def fp8_transpose(data: Tensor, number: int, out: Tensor | None = None) -> Tensor:
    """[.., n] bytes -> [n, ..]."""
    transposed = _transposed(data)
    return transposed if out is None else out.copy_(transposed.view(out.shape))


def swap_first_dims(tensor: Tensor, out: Tensor | None = None) -> Tensor:
    """[m, n, ..] -> [n, m, ..]."""
    swapped = tensor.transpose(0, 1)
    return swapped.contiguous() if out is None else out.copy_(swapped)


def rowwise(matrix: Any) -> Tensor:
    """[.., k] as fp32 [m, k], from the bytes that a product over k reads."""
    if not hasattr(matrix, "_fp8_dtype"):
        return matrix.detach().float().flatten(0, -2)
    if hasattr(matrix, "_rowwise_data"):
        assert matrix._rowwise_data is not None, "the rows of this FP8 tensor are not there"
        scales = matrix._rowwise_scale_inv
        return _decode_blocks(matrix._rowwise_data, scales, matrix._fp8_dtype, matrix._is_2D_scaled)
    assert matrix._data is not None, "the rows of this FP8 tensor are not there"
    return (_decode(matrix._data, matrix._fp8_dtype) * matrix._scale_inv).flatten(0, -2)


def columnwise(matrix: Any) -> Tensor:
    """[.., k] as fp32 [k, m], from the bytes that a product over m reads."""
    if not hasattr(matrix, "_fp8_dtype"):
        return matrix.detach().float().flatten(0, -2).T
    if hasattr(matrix, "_columnwise_data"):
        assert matrix._columnwise_data is not None, "the columns of this FP8 tensor are not there"
        # Scaled like the rows of the transposed matrix.
        data = matrix._columnwise_data.flatten(1)
        return _decode_blocks(data, matrix._columnwise_scale_inv, matrix._fp8_dtype, matrix._is_2D_scaled)
    assert matrix._transpose is not None and not matrix._transpose_invalid, "this FP8 tensor has no transposed copy"
    return (_decode(matrix._transpose, matrix._fp8_dtype) * matrix._scale_inv).flatten(1)


def _as_storage(tensor: Any) -> Any:
    """The same data without the tensor around it, as quantizers for inner use give."""
    storage = next(cls for cls in type(tensor).__mro__ if cls.__name__.endswith("Storage"))
    return storage(**tensor.get_metadata())


def _transposed(data: Tensor) -> Tensor:
    return data.flatten(0, -2).T.reshape(data.shape[-1], *data.shape[:-1]).contiguous()


def largest_number(number: int) -> float:
    """Of an FP8 type."""
    return float(torch.finfo(torch_type(number)).max)


def _scale(largest: Tensor, number: int, epsilon: float, power_of_two: bool) -> Tensor:
    """By what the numbers are multiplied, so that the largest becomes the largest of FP8; 1 where there is none."""
    largest = largest.clamp_min(epsilon)
    scale = largest_number(number) / largest
    scale = torch.where(scale.isinf(), torch.full_like(scale, torch.finfo(torch.float32).max), scale)
    if power_of_two:
        scale = torch.exp2(scale.log2().floor())
    return torch.where((largest > 0) & largest.isfinite(), scale, torch.ones_like(scale))


def _round(scaled: Tensor, number: int) -> Tensor:
    """fp32 -> FP8, too large ones to the largest, as bytes."""
    largest = largest_number(number)
    return scaled.clamp(-largest, largest).to(torch_type(number)).view(torch.uint8)


def _decode(data: Tensor, number: int) -> Tensor:
    return data.contiguous().view(torch_type(number)).float()


def _quantize_blocks(tensor: Tensor, quantizer: Any, out: Any) -> None:
    square = quantizer.block_scaling_dim == 2
    # Of 2.11 alone.
    compact = getattr(quantizer, "all_gather_usage", False)
    matrix = tensor.flatten(0, -2)
    for columns, data, scales in (
        (False, out._rowwise_data, out._rowwise_scale_inv),
        (True, out._columnwise_data, out._columnwise_scale_inv),
    ):
        if data is None:
            continue
        view = matrix.T.contiguous() if columns else matrix
        largest = _blocks(view.abs(), square)
        scale = _scale(largest, quantizer.dtype, quantizer.amax_epsilon, quantizer.force_pow_2_scales)
        rounded = _round(view * _spread(scale, view.shape, square), quantizer.dtype)
        # To be gathered over ranks, rows stay together: columns lie as rows do, and so do the scales of rows.
        data.copy_((rounded.T if columns and compact else rounded).reshape(data.shape))
        inverse = scale.reciprocal()
        inverse = inverse if square or (compact and not columns) else inverse.T
        scales.zero_()
        scales[: inverse.size(0), : inverse.size(1)] = inverse


def _blocks(matrix: Tensor, square: bool) -> Tensor:
    """[m, k] -> the largest number of each block: [m / 128, k / 128] of square ones, else [m, k / 128]."""
    rows, columns = matrix.shape
    height = _BLOCK if square else 1
    padded = F.pad(matrix, (0, -columns % _BLOCK, 0, -rows % height))
    return padded.view(padded.size(0) // height, height, padded.size(1) // _BLOCK, _BLOCK).amax((1, 3))


def _spread(scales: Tensor, shape: torch.Size, square: bool) -> Tensor:
    """One scale a block -> one an element, [m, k]."""
    rows, columns = shape
    if square:
        scales = scales.repeat_interleave(_BLOCK, 0)
    return scales[:rows].repeat_interleave(_BLOCK, 1)[:, :columns]


def _decode_blocks(data: Tensor, inverse: Tensor, number: int, square: bool) -> Tensor:
    decoded = _decode(data, number).flatten(0, -2)
    rows, columns = decoded.shape
    inverse = inverse if square else inverse.T
    inverse = inverse[: math.ceil(rows / _BLOCK) if square else rows, : math.ceil(columns / _BLOCK)]
    return decoded * _spread(inverse, decoded.shape, square)
