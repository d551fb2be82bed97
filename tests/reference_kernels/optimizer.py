"""Adam (arXiv 1711.05101), norms and scaling of many tensors at once, and the scales of delayed scaling."""

import torch
from torch import Tensor

from tests.reference_kernels.quantize import largest_number


def multi_tensor_adam(
    chunk_size: int,
    overflow: Tensor,
    tensors: list[list[Tensor]],
    rate: float,
    beta1: float,
    beta2: float,
    epsilon: float,
    step: int,
    decoupled: bool,
    bias_correction: int,
    weight_decay: float,
) -> None:
    """One AdamW step; tensors: gradients, weights, first and second moments."""
    assert decoupled and bias_correction
    for gradient, weight, first, second in zip(*tensors, strict=True):
        gradient = gradient.float()
        first.lerp_(gradient, 1 - beta1)
        second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        denominator = (second / (1 - beta2**step)).sqrt_().add_(epsilon)
        update = first / (1 - beta1**step) / denominator + weight_decay * weight.float()
        weight.copy_(weight.float() - rate * update)


def multi_tensor_l2norm(
    chunk_size: int, overflow: Tensor, tensors: list[list[Tensor]], per_tensor: bool | None = False
) -> tuple[Tensor, Tensor]:
    """(norm of all [1], norms of each)."""
    norms = torch.stack([tensor.float().norm() for tensor in tensors[0]])
    return norms.norm().view(1), norms if per_tensor else norms.new_empty(0)


def multi_tensor_scale(chunk_size: int, overflow: Tensor, tensors: list[list[Tensor]], scale: float) -> None:
    """Writes each of the first tensors, scaled, into the second."""
    for source, target in zip(*tensors, strict=True):
        target.copy_(source * scale)


def fused_amax_and_scale_update_after_reduction(
    largest: Tensor, histories: list[Tensor], scales: list[Tensor], algorithm: str, number: int, margin: float
) -> None:
    """Delayed scaling after a pass: the reduced largest values join the histories, and the scales follow them."""
    parts = largest.split([scale.numel() for scale in scales])
    for part, history, scale in zip(parts, histories, scales, strict=True):
        history[0].copy_(part)
        seen = history.amax(0) if algorithm == "max" else history[0].clone()
        history.copy_(torch.roll(history, -1, 0))
        history[0].zero_()
        wanted = largest_number(number) / seen / 2**margin
        usable = (seen > 0) & seen.isfinite()
        wanted = torch.where(wanted.isinf(), torch.full_like(wanted, torch.finfo(torch.float32).max), wanted)
        scale.copy_(torch.where(usable, wanted, scale))
