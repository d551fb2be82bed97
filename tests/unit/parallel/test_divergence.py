"""Shows that the KL divergence over a split vocabulary is torch's own, with its gradient."""

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from megatron_sts.parallel.divergence import vocabulary_parallel_divergence
from tests.ranks import run_ranks

TOKENS, VOCABULARY = 5, 12


def _logits() -> tuple[Tensor, Tensor, Tensor]:
    """Of student and teacher, some of them large, and what each token weighs."""
    generator = torch.Generator().manual_seed(3)
    student, teacher = 20 * torch.randn(2, TOKENS, VOCABULARY, generator=generator)
    return student, teacher, torch.rand(TOKENS, generator=generator)


def _split(ranks: int) -> tuple[np.ndarray, np.ndarray]:
    student, teacher, weights = _logits()
    own = slice(dist.get_rank() * VOCABULARY // ranks, (dist.get_rank() + 1) * VOCABULARY // ranks)
    part = student[:, own].clone().requires_grad_()
    group = dist.group.WORLD
    assert group is not None
    found = vocabulary_parallel_divergence(part, teacher[:, own], group)
    (found * weights).sum().backward()
    none = vocabulary_parallel_divergence(part[:0], teacher[:0, own], group)
    assert part.grad is not None and none.shape == (0,)
    return found.detach().numpy(), part.grad.numpy()


def test_it_is_the_divergence_of_whole_predictions():
    student, teacher, weights = _logits()
    student.requires_grad_()
    expected = F.kl_div(student.log_softmax(-1), teacher.log_softmax(-1), log_target=True, reduction="none").sum(-1)
    (expected * weights).sum().backward()
    for ranks in (1, 3):
        found = run_ranks(ranks, _split, ranks)
        for divergence, _ in found:
            np.testing.assert_allclose(divergence, expected.detach().numpy(), rtol=1e-5)
        gradients = np.concatenate([gradient for _, gradient in found], axis=1)
        assert student.grad is not None
        np.testing.assert_allclose(gradients, student.grad.numpy(), rtol=1e-5, atol=1e-7)
