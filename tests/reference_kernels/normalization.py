"""RMSNorm (arXiv 1910.07467), forward and backward."""

from typing import Any

import torch
from torch import Tensor

from tests.reference_kernels.quantize import quantize, torch_type


def rmsnorm_fwd(
    inputs: Tensor,
    weight: Tensor,
    epsilon: float,
    out: Tensor | None,
    quantizer: Any,
    out_type: int | torch.dtype,
    sm_margin: int,
    zero_centered: bool,
) -> tuple[Any, None, Tensor]:
    """[n, h] -> (normalised [n, h], None, 1 / root mean square [n])."""
    assert not zero_centered
    numbers = inputs.detach().float()
    inverse = torch.rsqrt(numbers.square().mean(-1) + epsilon)
    normalised = numbers * inverse.unsqueeze(-1) * weight.detach().float()
    dtype = out_type if isinstance(out_type, torch.dtype) else torch_type(out_type)
    normalised = normalised.to(dtype)
    if quantizer is not None:
        return quantize(normalised, quantizer, out), None, inverse
    return (normalised if out is None else out.copy_(normalised)), None, inverse


def rmsnorm_bwd(
    gradient: Tensor, inputs: Tensor, inverse: Tensor, weight: Tensor, sm_margin: int, zero_centered: bool
) -> tuple[Tensor, Tensor]:
    """(gradient of the input [n, h], of the weight [h])."""
    assert not zero_centered
    unit = inputs.float() * inverse.unsqueeze(-1)
    of_output = gradient.float()
    weighted = of_output * weight.float()
    of_input = (weighted - unit * (weighted * unit).mean(-1, keepdim=True)) * inverse.unsqueeze(-1)
    of_weight = (of_output * unit).flatten(0, -2).sum(0)
    return of_input.to(inputs.dtype), of_weight.to(weight.dtype)
