"""RMSNorm (arXiv 1910.07467) and LayerNorm (arXiv 1607.06450), forward and backward.

zero_centered: the weight is what is added to one.
"""

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
    numbers = inputs.detach().float()
    inverse = torch.rsqrt(numbers.square().mean(-1) + epsilon)
    normalised = numbers * inverse.unsqueeze(-1) * _factor(weight, zero_centered)
    return _written(normalised, out, quantizer, out_type), None, inverse


def rmsnorm_bwd(
    gradient: Tensor, inputs: Tensor, inverse: Tensor, weight: Tensor, sm_margin: int, zero_centered: bool
) -> tuple[Tensor, Tensor]:
    """(gradient of the input [n, h], of the weight [h])."""
    unit = inputs.float() * inverse.unsqueeze(-1)
    of_output = gradient.float()
    weighted = of_output * _factor(weight, zero_centered)
    of_input = (weighted - unit * (weighted * unit).mean(-1, keepdim=True)) * inverse.unsqueeze(-1)
    of_weight = (of_output * unit).flatten(0, -2).sum(0)
    return of_input.to(inputs.dtype), of_weight.to(weight.dtype)


def layernorm_fwd(
    inputs: Tensor,
    weight: Tensor,
    bias: Tensor,
    epsilon: float,
    out: Tensor | None,
    quantizer: Any,
    out_type: int | torch.dtype,
    sm_margin: int,
    zero_centered: bool,
) -> tuple[Any, Tensor, Tensor]:
    """[n, h] -> (normalised [n, h], mean [n], 1 / standard deviation [n])."""
    numbers = inputs.detach().float()
    mean = numbers.mean(-1)
    inverse = torch.rsqrt((numbers - mean.unsqueeze(-1)).square().mean(-1) + epsilon)
    unit = (numbers - mean.unsqueeze(-1)) * inverse.unsqueeze(-1)
    normalised = unit * _factor(weight, zero_centered) + bias.detach().float()
    return _written(normalised, out, quantizer, out_type), mean, inverse


def layernorm_bwd(
    gradient: Tensor,
    inputs: Tensor,
    mean: Tensor,
    inverse: Tensor,
    weight: Tensor,
    sm_margin: int,
    zero_centered: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """(gradient of the input [n, h], of the weight [h], of the bias [h])."""
    unit = (inputs.float() - mean.unsqueeze(-1)) * inverse.unsqueeze(-1)
    of_output = gradient.float()
    weighted = of_output * _factor(weight, zero_centered)
    centered = weighted - weighted.mean(-1, keepdim=True)
    of_input = (centered - unit * (weighted * unit).mean(-1, keepdim=True)) * inverse.unsqueeze(-1)
    of_weight, of_bias = (values.flatten(0, -2).sum(0).to(weight.dtype) for values in (of_output * unit, of_output))
    return of_input.to(inputs.dtype), of_weight, of_bias


def _factor(weight: Tensor, zero_centered: bool) -> Tensor:
    return weight.detach().float() + float(zero_centered)


def _written(normalised: Tensor, out: Tensor | None, quantizer: Any, out_type: int | torch.dtype) -> Any:
    normalised = normalised.to(out_type if isinstance(out_type, torch.dtype) else torch_type(out_type))
    if quantizer is not None:
        return quantize(normalised, quantizer, out)
    return normalised if out is None else out.copy_(normalised)
