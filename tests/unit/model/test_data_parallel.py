"""Shows how gradients are reduced by default: beside the backward pass where there are GPUs to do so."""

import pytest

from megatron_sts.config import Recipe
from megatron_sts.model.data_parallel import data_parallel_config
from tests.tiny import tiny_recipe


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    return tiny_recipe(tmp_path_factory.mktemp("recipe"), optimizer={"distributed": True}, precision="bf16")


def _overlaps(recipe: Recipe, ranks: int, gpu: bool, **parallel: object) -> tuple[bool, bool]:
    changed = recipe.model_copy(update={"parallel": recipe.parallel.model_copy(update=parallel)})
    config = data_parallel_config(changed, ranks, gpu)
    return config.overlap_grad_reduce, config.overlap_param_gather


def test_transfers_run_beside_computation_on_several_gpus(recipe: Recipe) -> None:
    assert _overlaps(recipe, 2, gpu=True) == (True, True)
    assert _overlaps(recipe, 1, gpu=True) == _overlaps(recipe, 2, gpu=False) == (False, False)
    whole = recipe.model_copy(update={"optimizer": recipe.optimizer.model_copy(update={"distributed": False})})
    assert _overlaps(whole, 2, gpu=True) == (True, False)


def test_the_recipe_has_the_last_word(recipe: Recipe) -> None:
    assert _overlaps(recipe, 2, True, overlap_grad_reduce=False) == (False, False)
    assert _overlaps(recipe, 2, True, overlap_param_gather=False) == (True, False)
    assert _overlaps(recipe, 1, False, overlap_grad_reduce=True, overlap_param_gather=True) == (True, True)


def test_sums_are_fp32_unless_asked_for_in_bf16(recipe: Recipe) -> None:
    config = data_parallel_config(recipe, 2, gpu=True)
    assert config.grad_reduce_in_fp32 and config.pad_buckets_for_high_nccl_busbw
    halved = recipe.model_copy(update={"parallel": recipe.parallel.model_copy(update={"grad_reduce_dtype": "bf16"})})
    config = data_parallel_config(halved, 2, gpu=False)
    assert not config.grad_reduce_in_fp32 and not config.pad_buckets_for_high_nccl_busbw
