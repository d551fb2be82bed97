"""Shows that of the settings that fit a GPU the cheapest is proposed, and none where none fits."""

from pathlib import Path

import pytest

from megatron_sts.config import load_recipe
from megatron_sts.planning import Hardware, forecast, forecast_text
from megatron_sts.planning.fit import RESERVE

EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "llava15_7b"


def fitted(memory: float, *overrides: str):
    recipe = load_recipe(EXAMPLE / "sts.yaml", overrides, check_files=False)
    ranks = 8 // recipe.parallel.tensor
    return forecast(recipe, ranks, hardware=Hardware(memory=memory * 2**30))


def test_a_7b_model_on_eight_gpus_of_80_gb_needs_no_tensor_parallelism():
    found = fitted(80, "parallel.tensor=2", "parallel.sequence_parallel=true").fit
    assert found is not None and found.data_parallel == 8
    assert (found.recipe.parallel.tensor, found.recipe.recompute) == (1, "none")
    assert found.recipe.optimizer.distributed
    assert [stage.micro for stage in found.stages] == [32, 2]
    assert all(stage.bytes + RESERVE <= 80 * 2**30 for stage in found.stages)


def test_less_memory_costs_time_and_none_is_said():
    roomy, tight = fitted(80).fit, fitted(40).fit
    assert roomy is not None and tight is not None
    assert all(stage.bytes + RESERVE <= 40 * 2**30 for stage in tight.stages)
    assert sum(stage.seconds for stage in tight.stages) > sum(stage.seconds for stage in roomy.stages)
    none = fitted(8)
    assert none.fit is None
    assert "no setting fits 8.0 GiB a GPU" in forecast_text(none)


def test_the_proposal_can_be_appended_to_the_command():
    lines = forecast_text(fitted(40)).splitlines()
    (at,) = (number for number, line in enumerate(lines) if line.startswith("cheapest setting that fits"))
    overrides = lines[at + 4].split()
    assert overrides[0].startswith("parallel.tensor=")
    again = fitted(40, *overrides)
    assert max(stage.usage.fullest for stage in again.stages if stage.usage) + RESERVE <= 40 * 2**30
    seconds = [stage.usage.seconds.total for stage in again.stages if stage.usage]
    assert again.fit is not None
    assert seconds == pytest.approx([stage.seconds for stage in again.fit.stages])
