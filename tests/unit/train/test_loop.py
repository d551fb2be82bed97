"""Shows how a stage says what is sparse in it."""

import pytest

from megatron_sts.train.loop import what_is_sparse
from tests.tiny import tiny_recipe


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, "dense: all layers and all visual tokens in every step"),
        ({"tune__compress": {"strategy": "none"}}, "dense: all layers and all visual tokens in every step"),
        ({"tune__skip": {"alpha": 0.5}}, "sparse: skips layers, fading from a rate of 0.5"),
        (
            {
                "tune__skip": {"tokens": "visual", "alpha": 0.75, "schedule": "constant"},
                "tune__compress": {"keep_ratio": 0.25},
            },
            "sparse: skips the MLP of visual tokens, at a rate of 0.75; "
            "keeps visual tokens by uniform, keep_ratio 0.25",
        ),
        (
            {"tune__skip": {"alpha": 0.5, "full_share": 0.1, "distill": 1}},
            "sparse: skips layers, fading from a rate of 0.5; "
            "10% of the steps full, distilled from the sparse ones with weight 1",
        ),
    ],
)
def test_a_stage_says_what_it_leaves_out(tmp_path, changes, text):
    assert what_is_sparse(tiny_recipe(tmp_path, **changes).stage("tune")) == text
