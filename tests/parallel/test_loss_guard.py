"""Shows that a stage whose skipping harms the weights it starts from ends before its first update, on every layout with
the same figures, and that measuring changes nothing of a stage that goes on.
"""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from megatron_sts.config import Recipe
from megatron_sts.errors import ConfigError
from megatron_sts.train.stages import train
from tests.ranks import run_ranks
from tests.tiny import tiny_recipe

SKIP = {"alpha": 0.5, "schedule": "constant", "skip_groups": 2}


def _message(recipe: Recipe) -> tuple[str, bool]:
    try:
        train(recipe)
    except ConfigError as error:
        return str(error), error.met_by_all
    return "trained", False


def _losses(recipe: Recipe) -> list[float]:
    lines = map(json.loads, (recipe.output_dir / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if line["stage"] == "tune"]


def recipe(root: Path, name: str, skip: dict[str, Any], **changes: Any) -> Recipe:
    # Trained a little in between, layers are worth something.
    rate = {"projector": 1e-2, "language": 3e-2}
    return tiny_recipe(
        root,
        output_dir=str(root / name),
        align__trains=["projector", "language"],
        align__learning_rate=rate,
        align__steps=8,
        tune__skip=SKIP | skip,
        **changes,
    )


@pytest.mark.parametrize(("ranks", "parallel"), [(1, {}), (2, {"pipeline": 2}), (2, {"tensor": 2})])
def test_a_harmful_skip_is_refused_before_any_update(tmp_path, ranks, parallel):
    one = recipe(tmp_path, "refused", {"max_loss_rise": 0.05}, parallel=parallel)
    ((message, met_by_all),) = set(run_ranks(ranks, _message, one))
    assert met_by_all
    # In one process, the digits that are told: 0.140 nats.
    assert "leaving out the layers 1, 2, as step 1 does, raises the loss" in message
    assert "by 0.140 nats, from 2.703 to 2.843" in message
    assert "max_loss_rise is 0.05. No weight was changed." in message
    assert "stages.tune.skip.accept_loss_rise=true" in message
    assert [path.name for path in (one.output_dir / "checkpoints").glob("tune*")] == []
    assert not _losses(one)
    # The proposal was measured as a start from it would be, so that such a start goes on.
    proposed = re.search(r"measured in the same way: `skip: (\{tokens: visual.*by: redundancy.*\})`", message)
    assert proposed is not None
    skip = yaml.safe_load(proposed[1])
    assert skip["alpha"] >= 0.25 and skip["max_loss_rise"] == 0.05
    if ranks == 1:
        again = recipe(tmp_path, "proposed", skip | {"skip_groups": 2}, parallel=parallel)
        assert run_ranks(1, _message, again) == [("trained", False)]


def test_an_accepted_rise_trains_as_if_it_had_not_been_measured(tmp_path):
    accepted = recipe(tmp_path, "accepted", {"max_loss_rise": 1e-3, "accept_loss_rise": True})
    allowed = recipe(tmp_path, "allowed", {"max_loss_rise": 1e3})
    assert run_ranks(1, _message, accepted) == run_ranks(1, _message, allowed) == [("trained", False)]
    assert len(_losses(accepted)) == 4 and _losses(accepted) == _losses(allowed)
