"""KL divergence between predictions whose vocabulary is split over the tensor-parallel ranks, without gathering it.

Shapes: n tokens, V vocabulary, t tensor-parallel ranks.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def vocabulary_parallel_divergence(logits: Tensor, teacher: Tensor, group: dist.ProcessGroup) -> Tensor:
    """KL(teacher || student) of each token, in nats: logits, teacher [n, V / t] -> float32 [n], alike on all ranks.

    With p = softmax(teacher) and q = softmax(logits) it is the sum over the vocabulary of p (log p - log q), whose
    gradient in the logits is q - p; the teacher gets none. Ranks exchange sums over the vocabulary, 5 numbers a token.
    Contract: all ranks of the group call it with as many tokens, and use the divergence alike, as they do the loss.
    """
    divergence: Tensor = _Divergence.apply(logits, teacher, group)
    return divergence


class _Divergence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, teacher: Tensor, group: dist.ProcessGroup) -> Tensor:
        both = torch.stack([logits.float(), teacher.float()])
        highest = both.amax(dim=-1)
        dist.all_reduce(highest, op=dist.ReduceOp.MAX, group=group)
        both -= highest[..., None]
        totals = both.exp().sum(dim=-1)
        dist.all_reduce(totals, group=group)
        log_student, log_teacher = both - totals.log()[..., None]
        of_teacher = log_teacher.exp()
        divergence = (of_teacher * (log_teacher - log_student)).sum(dim=-1)
        dist.all_reduce(divergence, group=group)
        ctx.save_for_backward(log_student.exp() - of_teacher)
        ctx.dtype = logits.dtype
        return divergence

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (difference,) = ctx.saved_tensors
        return (difference * gradients[0][:, None]).to(ctx.dtype), None, None
