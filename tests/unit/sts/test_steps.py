"""Shows how many steps a stage has."""

import pytest

from megatron_sts.sts.steps import steps_of_epochs


@pytest.mark.parametrize(
    ("count", "global_batch", "epochs", "steps"),
    [
        (100, 8, 1.0, 12),
        (100, 10, 1, 10),
        (100, 1, 0.29, 29),
        (10, 4, 2.0, 5),
        (3, 8, 1.0, 1),
        (10, 3, 0.01, 1),
    ],
)
def test_steps_are_whole_and_at_least_one(count: int, global_batch: int, epochs: float, steps: int) -> None:
    assert steps_of_epochs(count, global_batch, epochs) == steps
