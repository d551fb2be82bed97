"""Shows that a step with a known norm is megatron-core's own, clipping included, and works out nothing twice."""

import pytest
import torch
from megatron.core.optimizer import OptimizerConfig
from megatron.core.optimizer.optimizer import ChainedOptimizer

from megatron_sts.parallel.device import prepare_device
from megatron_sts.train.prepared_optimizer import PreparedOptimizer
from tests.ranks import run_ranks


class Counted:
    """In the place of one of megatron-core's optimisers; keeps what it was asked, and the gradient it steps with."""

    def __init__(self, clip_grad: float):
        self.config = OptimizerConfig(optimizer="sgd", lr=1.0, clip_grad=clip_grad)
        self.weight = torch.nn.Parameter(torch.zeros(2))
        self.asked: list[str] = []
        self.used = torch.empty(0)

    def prepare_grads(self) -> bool:
        self.asked.append("prepare")
        return False

    def get_grad_norm(self) -> float:
        self.asked.append("norm")
        return float(self.weight.grad.norm())

    def get_parameters(self) -> list[torch.Tensor]:
        return [self.weight]

    def has_grad_norm_group(self, name: str) -> bool:
        return False

    def step_with_ready_grads(self) -> bool:
        self.asked.append("step")
        self.used = self.weight.grad.clone()
        return True


def _step_twice(clip_grad: float) -> tuple[list[str], list[float]]:
    """What was asked, and the gradient of the last step."""
    prepare_device()
    inner = Counted(clip_grad)
    optimizer = PreparedOptimizer(ChainedOptimizer([inner]))
    for _ in range(2):
        inner.weight.grad = torch.tensor([3.0, 4.0])
        assert not optimizer.prepare_grads()
        optimizer.step_with_norm(optimizer.get_grad_norm())
    return inner.asked, inner.used.tolist()


def test_a_step_from_a_known_norm_clips_and_asks_for_nothing_twice():
    for clip_grad, expected in ((1.0, [0.6, 0.8]), (0.0, [3.0, 4.0])):
        ((asked, used),) = run_ranks(1, _step_twice, clip_grad)
        assert asked == ["prepare", "norm", "step"] * 2
        assert used == pytest.approx(expected, rel=1e-5)
