"""Shows that the count of updates and the names of the weights are found in checkpoints of every form."""

import pytest
import torch

from megatron_sts.train.saved_optimizer import SavedOptimizer

GROUPS = [{"lr": 1e-3}, {"lr": 1e-3, "step": 5}]
FORMS = {
    "today": ({"updates": 5, "shards": []}, "fp32_param"),
    "fp32": ({"state": {"common_step": torch.tensor(5.0)}, "param_groups": [{"lr": 1e-3}]}, "fp32_param"),
    "bf16": ({"optimizer": {"state": {"common_step": torch.tensor(5.0)}, "param_groups": []}}, "fp32_param"),
    "another_library": ({"optimizer": {"state": {}, "param_groups": GROUPS}}, "fp32_param"),
    "distributed": (
        {"optimizer": {"param_groups": GROUPS}, "param_state_sharding_type": "fully_reshardable"},
        "param",
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_updates_and_master_weights_are_found_in_every_form(form):
    saved, master_weight = FORMS[form]
    assert SavedOptimizer.of({"optimizer": saved}, step=7) == SavedOptimizer(5, master_weight)


def test_without_a_count_each_step_was_an_update():
    # SGD counts none; of a pipeline the first stage may train nothing.
    assert SavedOptimizer.of({"optimizer": {"state": {}, "param_groups": [{"lr": 1.0}]}}, step=7).updates == 7
    assert SavedOptimizer.of({}, step=7).updates == 7
