"""A run that was begun without a pipeline moves to one: its groups of layers change by the user's word."""

import shutil

import pytest

from megatron_sts.errors import ConfigError
from megatron_sts.planning import forecast, step_records
from megatron_sts.sts import resume_recipe
from megatron_sts.train.stages import train
from tests.parallel.test_resume import EVERY, _metrics
from tests.ranks import run_ranks
from tests.tiny import tiny_recipe

SKIP = {"alpha": 0.6, "epsilon": 0.4, "schedule": "constant"}
GROUPS = "stages.tune.skip.skip_groups"


def test_a_run_without_a_pipeline_moves_to_one_by_the_user_s_word(tmp_path):
    def recipe(name: str, groups: tuple[int, ...] | None = None, pipeline: int = 1):
        skip, parallel = SKIP | {"skip_groups": groups}, {"pipeline": pipeline}
        return tiny_recipe(
            tmp_path, output_dir=str(tmp_path / name), tune__skip=skip, parallel=parallel, tune__steps=6, **EVERY
        )

    run_ranks(1, train, recipe("piped"))
    before = _metrics(recipe("piped"))
    for step in (4, 6):
        shutil.rmtree(tmp_path / "piped" / "checkpoints" / f"tune-0000000{step}")
    shutil.copytree(tmp_path / "piped", tmp_path / "alone")

    # Training and planning refuse it alike, and say which word lets it go on.
    piped, alone = recipe("piped", pipeline=2), recipe("alone", (2, 2))
    for refuses in (resume_recipe, forecast):
        with pytest.raises(ConfigError, match=rf"\[4\], those that the run in output_dir .*--accept {GROUPS}"):
            refuses(piped)
    planned = [line["layers_skipped"] for line in step_records(piped, 9, accepted=[GROUPS]) if line["stage"] == "tune"]
    assert forecast(piped, accepted=[GROUPS]).recipe.stage("tune").skip[0].skip_groups == (2, 2)

    run_ranks(2, train, piped, None, [GROUPS])
    run_ranks(1, train, alone, None, [GROUPS])
    after = _metrics(piped)
    assert [line["layers_skipped"] for line in after if line["stage"] == "tune"] == planned
    assert after[:5] == before[:5] and any(line["layers_skipped"] for line in after[5:])
    assert all(len({len({0, 1} & skipped), len({2, 3} & skipped)}) == 1 for skipped in map(set, planned[2:]))
    # The same regrouping in one process.
    for one, two in zip(after, _metrics(alone), strict=True):
        assert one["loss"] == pytest.approx(two["loss"], rel=5e-6)
        assert one["layers_skipped"] == two["layers_skipped"]
    # Once a checkpoint holds it, the word is not needed.
    assert resume_recipe(piped).recipe.stage("tune").skip[0].earlier_groups[0].sizes == (4,)
