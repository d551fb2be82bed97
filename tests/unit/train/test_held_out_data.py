"""Shows which records are held out of training, worked out by hand."""

import numpy as np
import pytest

from megatron_sts.sts import trained_samples
from megatron_sts.train.held_out_data import is_held_out, validation_stage
from tests.tiny import tiny_recipe


@pytest.mark.parametrize(
    ("share", "held_out"),
    [(None, []), (0.25, [3, 7, 11]), (0.5, [1, 3, 5, 7, 9, 11]), (0.1, [9]), (0.3, [3, 6, 9]), (0.01, [])],
)
def test_a_share_is_evenly_spread_over_the_records(tmp_path, share, held_out):
    stage = tiny_recipe(tmp_path, tune__data={"validation": share}).stage("tune")
    assert np.flatnonzero(is_held_out(stage, np.arange(12))).tolist() == held_out
    assert trained_samples(stage, 12) == 12 - len(held_out)
    # A record that is set aside moves no other.
    assert is_held_out(stage, np.array([3, 9])).tolist() == [3 in held_out, 9 in held_out]


def test_held_out_records_are_read_whole(tmp_path):
    recipe = tiny_recipe(
        tmp_path,
        tune__data={"packing": True, "max_tokens": 40, "samples": 24, "validation": str(tmp_path / "train.json")},
        tune__compress={"strategy": "text_guided"},
    )
    stage = recipe.stage("tune")
    changed = validation_stage(recipe, stage, stage.data.validation)
    assert changed.data.train == stage.data.validation and changed.data.template == stage.data.template
    assert (changed.data.max_tokens, changed.data.packing, changed.data.samples) == (128, False, None)
    assert changed.compress.full_share == 1.0 and changed.name == "tune-validation"
