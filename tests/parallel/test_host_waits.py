"""Shows that a step makes the host wait for the device once, by counting what would: numbers read from tensors."""

import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from megatron_sts.config import Recipe
from megatron_sts.parallel.groups import start_groups
from megatron_sts.train.loop import prepare_stage
from megatron_sts.train.resume import Start
from megatron_sts.train.stage_data import StageData
from megatron_sts.train.step import RankReport
from tests.ranks import run_ranks
from tests.tiny import tiny_recipe

READS = ("item", "tolist", "cpu", "numpy", "__bool__", "__int__", "__float__", "__index__")
# What reads tensors that are on the CPU with a GPU, too: where images and text belong (data/collate.py), and the random
# state of the CPU, of which megatron-core sees that it stays.
ON_CPU = {
    "megatron_sts.model.visual_tokens.own_rows",
    "megatron_sts.model.compressor.keep_random",
    "megatron_sts.model.text_rows.text_rows",
    "megatron.core.tensor_parallel.random.fork",
}
LAYOUTS = {
    "tensor": {"tensor": 2, "sequence_parallel": True},
    "data_distributed": {"overlap_grad_reduce": True, "overlap_param_gather": True},
    "interleaved": {"pipeline": 2, "virtual_pipeline": 2},
}


@contextmanager
def reads_counted(found: Counter[str]) -> Iterator[None]:
    """Counts reads of tensors in this process's main thread by the function that makes them, as module.function."""

    def counted(original: Callable[..., Any]) -> Callable[..., Any]:
        def read(*arguments: Any, **keywords: Any) -> Any:
            if threading.current_thread() is threading.main_thread():
                frame = sys._getframe(1)
                found[f"{frame.f_globals['__name__']}.{frame.f_code.co_name}"] += 1
            return original(*arguments, **keywords)

        return read

    patches = [patch.object(torch.Tensor, name, counted(getattr(torch.Tensor, name))) for name in READS]
    patches.append(patch.object(torch.cuda, "synchronize", counted(torch.cuda.synchronize)))
    for one in patches:
        one.start()
    try:
        yield
    finally:
        for one in patches:
            one.stop()


def _train(recipe: Recipe, aside: bool) -> tuple[list[float], list[dict[str, int]]]:
    """(losses, reads) of each step."""
    place = start_groups(recipe.parallel, recipe.seed)
    stage = recipe.stage("tune")
    data = StageData(recipe, stage)
    parts = prepare_stage(recipe, stage, data.total_steps, Start(None, 0), place)
    losses, reads = [], []
    with data.inputs(place, 0, aside) as inputs:

        def report() -> RankReport:
            return RankReport(bad_ahead=inputs.bad_ahead(), data_wait_s=inputs.take_wait())

        given = next(inputs)
        for step in range(data.total_steps):
            found = Counter[str]()
            with reads_counted(found):
                result = parts.step.run(given, report)
                inputs.told(result.bad_ahead)
                given = next(inputs, given)
            assert result.data_wait_s > 0.0 or step > 0
            losses.append(result.loss)
            reads.append(found)
    return losses, [{name: count for name, count in of_step.items() if name not in ON_CPU} for of_step in reads]


def _train_both_ways(recipe: Recipe) -> list[Any]:
    return [_train(recipe, aside) for aside in (True, False)]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_step_waits_once(tmp_path: Path, layout: str) -> None:
    recipe = tiny_recipe(
        tmp_path,
        parallel=LAYOUTS[layout],
        optimizer={"distributed": layout == "data_distributed"},
        tune__skip=[{"alpha": 0.25}, {"tokens": "visual", "alpha": 0.25}],
        tune__compress={"strategy": "random", "keep_ratio": 0.5},
    )
    for (aside, reads), (in_turn, _) in run_ranks(2, _train_both_ways, recipe):
        # The thread beside changes nothing but when a batch is made.
        assert aside == in_turn
        assert reads == [{"megatron_sts.train.step._read": 1}] * len(reads)
