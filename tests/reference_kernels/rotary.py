"""Rotary position embedding (arXiv 2104.09864), by halves, forward and backward."""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor


def fused_rope_forward(tensor: Tensor, angles: Tensor, *of_rows: Any) -> Tensor:
    """[s, b, a, d], or packed [t, a, d]; angles [s, 1, 1, d]. of_rows: the rest of what `_angles_of` takes."""
    return _rotate(tensor, _angles_of(tensor, angles, *of_rows))


def fused_rope_backward(gradient: Tensor, angles: Tensor, *of_rows: Any) -> Tensor:
    """Turned back by the same angles."""
    return _rotate(gradient, -_angles_of(gradient, angles, *of_rows))


def _angles_of(
    tensor: Tensor,
    angles: Tensor,
    start_positions: Tensor | None,
    layout: Any,
    interleaved: bool,
    ends: Tensor | None,
    context_size: int,
    context_rank: int,
) -> Tensor:
    """The angle of each row of the tensor, of packed ones by the ends of their samples.

    Of context-parallel ranks each holds two chunks of a sample.
    """
    if interleaved or start_positions is not None:
        raise NotImplementedError("fused_rope, interleaved or with start positions")
    bounds = [0, tensor.size(0) * context_size] if ends is None else ends.tolist()
    positions = []
    for start, end in pairwise(bounds):
        held = (end - start) // context_size
        if context_size == 1:
            positions.append(torch.arange(held))
            continue
        half, last = held // 2, 2 * context_size - 1 - context_rank
        positions += [torch.arange(chunk * half, chunk * half + half) for chunk in (context_rank, last)]
    rows = angles[torch.cat(positions)]
    return rows if ends is None else rows.squeeze(1)


def _rotate(tensor: Tensor, angles: Tensor) -> Tensor:
    size = angles.size(-1)
    turned, rest = tensor[..., :size].float(), tensor[..., size:]
    first, second = turned.chunk(2, -1)
    rotated = turned * angles.cos() + torch.cat((-second, first), -1) * angles.sin()
    return torch.cat((rotated.to(tensor.dtype), rest), -1)
