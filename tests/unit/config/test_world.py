"""Shows which world sizes a layout fits, and that one that does not fit is answered with those that do."""

from collections.abc import Callable

import pytest

from megatron_sts.config import Recipe, check_world
from megatron_sts.errors import ConfigError


@pytest.mark.parametrize(
    ("overrides", "world", "data"),
    [
        ([], 1, 1),
        ([], 4, 4),
        (["parallel.tensor=2", "parallel.pipeline=2"], 8, 2),
        # 16 / (4 x 2) = 2 and 8 / (2 x 2) = 2 micro-batches on 2 interleaved stages.
        (["parallel.pipeline=2", "parallel.virtual_pipeline=2"], 4, 2),
    ],
)
def test_data_parallel_is_what_the_layout_leaves(
    overrides: list[str], world: int, data: int, load: Callable[..., Recipe]
) -> None:
    assert check_world(load(*overrides), world) == data


def refusal(recipe: Recipe, world: int) -> str:
    with pytest.raises(ConfigError) as caught:
        check_world(recipe, world)
    return str(caught.value)


@pytest.mark.parametrize("world", [0, 6, 3])
def test_a_world_that_the_layout_does_not_divide_is_refused(world: int, load: Callable[..., Recipe]) -> None:
    message = refusal(load("parallel.tensor=2", "parallel.pipeline=2"), world)
    assert f"the world has {world} ranks, not a multiple of parallel.tensor 2 x parallel.pipeline 2" in message
    assert "world sizes that fit: 4, 8, 16" in message


def test_a_batch_that_the_ranks_do_not_divide_is_refused_for_every_stage(load: Callable[..., Recipe]) -> None:
    message = refusal(load(), 3)
    assert "stages.align.batch.global is 16, not divisible by stages.align.batch.micro 4 x data parallel 3" in message
    assert "stages.tune.batch.global is 8, not divisible by" in message
    assert "world sizes that fit: 1, 2, 4" in message


def test_interleaving_needs_micro_batches_in_multiples_of_the_pipeline(load: Callable[..., Recipe]) -> None:
    recipe = load("parallel.pipeline=2", "parallel.virtual_pipeline=2")
    message = refusal(recipe, 8)
    assert "1 micro-batches, not a multiple of parallel.pipeline 2" in message
    assert "world sizes that fit: 2, 4" in message
    assert check_world(load("parallel.pipeline=2"), 8) == 4


def test_a_layout_that_no_world_fits_says_so(load: Callable[..., Recipe]) -> None:
    recipe = load("parallel.pipeline=2", "parallel.virtual_pipeline=2", "stages.tune.batch.micro=8")
    assert "no world size fits: make batch.global / batch.micro a multiple" in refusal(recipe, 2)
