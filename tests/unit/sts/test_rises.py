"""Shows where measured rises come from, what plans they give, and that a resumed run keeps those of its steps."""

import json
import math
from typing import Any

import pytest

from megatron_sts.config import MeasuredRises, Recipe, load_recipe, resolved_yaml
from megatron_sts.errors import ConfigError
from megatron_sts.planning import forecast, forecast_text
from megatron_sts.sts import StagePlanner, resolve_skip_groups
from megatron_sts.sts.rises import read_rises, to_measure, with_rises
from tests.tiny import tiny_recipe

# Layer 2 rises by a tenth of ln 2 nats more than 1 and 3.
RISES = [0.9, 0.1, 0.1693, 0.1]


def probe_file(path: Any, layers: int = 4) -> Any:
    found = [
        {"layer": layer, "loss_rise": RISES[layer % 4], "loss_rise_visual": RISES[layer % 4] / 10}
        for layer in range(layers)
    ]
    path.write_text(json.dumps({"layers": found, "plans": []}))
    return path


def recipe_of(root: Any, **skip: Any) -> Recipe:
    return tiny_recipe(root, tune__skip={"alpha": 0.25, "by": "redundancy", "schedule": "constant"} | skip)


def planner(recipe: Recipe, steps: int = 40) -> StagePlanner:
    return StagePlanner(recipe, recipe.stage("tune"), steps, steps)


def test_the_probes_json_is_read_for_the_tokens_that_are_skipped(tmp_path):
    file = probe_file(tmp_path / "probe.json")
    assert read_rises(file, "all", 4) == tuple(RISES)
    assert read_rises(file, "visual", 4) == pytest.approx((0.09, 0.01, 0.01693, 0.01))
    resolved = resolve_skip_groups(recipe_of(tmp_path, rises=str(file)))
    assert resolved.stage("tune").skip[0].rises == (MeasuredRises(step=0, rises=tuple(RISES)),)
    (tmp_path / "recipe.yaml").write_text(resolved_yaml(recipe_of(tmp_path)))
    assert load_recipe(tmp_path / "recipe.yaml", [f"stages.tune.skip.rises={file}"]) == recipe_of(
        tmp_path, rises=str(file)
    )
    # Written down and read again, as a checkpoint does.
    assert Recipe.model_validate_json(json.dumps(resolved.resolved())) == resolved


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        ("{}", "cannot be read"),
        ('{"layers": [{"layer": 0, "loss_rise": 1}]}', "has 1 layers, but the language model has 4"),
        (json.dumps({"layers": [{"layer": n, "loss_rise": float("nan")} for n in range(4)]}), ".*not finite"),
    ],
)
def test_a_file_that_does_not_fit_is_named(tmp_path, content, message):
    file = tmp_path / "probe.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ConfigError, match=rf"stages\.tune\.skip\.rises: .*probe\.json {message}"):
        resolve_skip_groups(recipe_of(tmp_path, rises=str(file)))


def test_numbers_of_the_recipe_make_the_plan(tmp_path):
    made = planner(resolve_skip_groups(recipe_of(tmp_path, rises=RISES, selection="independent")), 400)
    # Weights 2, 1, 2 share one layer's worth.
    assert made.skip_probabilities(0) == pytest.approx((0.0, 0.4, 0.2, 0.4), abs=1e-4)
    balanced = planner(resolve_skip_groups(recipe_of(tmp_path, rises=RISES, skip_groups=1)), 400)
    counts = [sum(layer in balanced.plan(step).skipped_layers for step in range(400)) for layer in range(4)]
    assert counts[0] == 0 and sum(counts) == pytest.approx(400, abs=1)
    # 400 draws of 0.4: a standard deviation of 10.
    assert counts[1] == pytest.approx(160, abs=40) and counts[2] == pytest.approx(80, abs=40)


def test_a_measurement_changes_only_the_steps_after_it(tmp_path):
    recipe = resolve_skip_groups(recipe_of(tmp_path, rises=RISES, skip_groups=1, measure_every=10))
    later = MeasuredRises(step=10, rises=(0.1, 0.9, 0.1, 0.9))
    changed = recipe.model_copy(update={"stages": (with_rises(recipe.stage("tune"), "all", later),)})
    before, after = planner(recipe), planner(changed)
    assert [after.plan(step) for step in range(10)] == [before.plan(step) for step in range(10)]
    skipped = frozenset().union(*(after.plan(step).skipped_layers for step in range(10, 40)))
    assert skipped == {0, 2}
    # The count goes on along the same line.
    counts = [len(made.plan(step).skipped_layers) for made in (before, after) for step in range(40)]
    assert counts[:40] == counts[40:]


def test_what_was_measured_holds_in_the_run_that_is_resumed(tmp_path):
    fresh = resolve_skip_groups(recipe_of(tmp_path))
    assert fresh.stage("tune").skip[0].rises is None and to_measure(fresh.stage("tune").skip[0], 0)
    measured = with_rises(fresh.stage("tune"), "all", MeasuredRises(step=0, rises=tuple(RISES)))
    earlier = fresh.model_copy(update={"stages": (measured,)})
    again = resolve_skip_groups(recipe_of(tmp_path), earlier)
    assert again.stage("tune") == measured and not to_measure(again.stage("tune").skip[0], 20)


def test_measuring_again_is_due_once_at_each_multiple(tmp_path):
    stage = recipe_of(tmp_path, measure_every=4).stage("tune")
    due = []
    for step in range(10):
        if to_measure(stage.skip[0], step):
            due.append(step)
            stage = with_rises(stage, "all", MeasuredRises(step=step, rises=tuple(RISES)))
    assert due == [0, 4, 8] and [one.step for one in stage.skip[0].rises] == [0, 4, 8]
    # A resume from step 6 that finds what was measured at 8 measures there again.
    assert [one.step for one in with_rises(stage, "all", MeasuredRises(step=4, rises=(0.0,) * 4)).skip[0].rises] == [
        0,
        4,
    ]


def test_unmeasured_layers_share_alike(tmp_path):
    made = planner(recipe_of(tmp_path, skip_groups=1))
    assert made.skip_probabilities(0) == pytest.approx((0.25,) * 4)


@pytest.mark.parametrize(
    ("skip", "message"),
    [
        ({"epsilon": 0.5}, "skip.epsilon is 0.5 with by: redundancy"),
        ({"schedule": "pld"}, "skip.schedule is pld with by: redundancy"),
        ({"by": "depth", "measure_every": 5}, "skip.measure_every is given with by: depth"),
        ({"rises": [0.1, 0.2]}, "skip.rises has 2 numbers, but the language model has 4 layers"),
        ({"rises": "probe.json", "measure_every": 5}, "skip.rises is probe.json with measure_every 5"),
    ],
)
def test_a_recipe_that_contradicts_itself_is_refused(tmp_path, skip, message):
    with pytest.raises(ConfigError, match=message):
        recipe_of(tmp_path, **skip)


def test_alpha_out_of_reach_is_refused_with_the_largest_one(tmp_path):
    recipe = recipe_of(tmp_path, rises=RISES, alpha=0.8, skip_groups=1)
    with pytest.raises(ConfigError, match=r"stages\.tune\.skip\.alpha is 0\.8, .*largest alpha possible is 0\.75"):
        resolve_skip_groups(recipe)


def test_the_plan_says_what_balance_costs(tmp_path):
    rises = [0.01, 0.02, 0.4, 0.3]
    found = forecast_text(forecast(recipe_of(tmp_path, rises=rises, skip_groups=2, alpha=0.25)))
    # Half a layer of each group: 0.5 shared as e^-0.1 : e^-0.2, and as e^-4 : e^-3.
    first, second = 1 / (1 + math.exp(-0.1)), 1 / (1 + math.exp(1))
    cost = 0.5 * (first * 0.01 + (1 - first) * 0.02 + second * 0.4 + (1 - second) * 0.3)
    assert f"none protected; what is skipped rises by {cost:.3f} nats, taken one by one (0.0" in found
    assert "if the 2 groups need not share the count" in found
    assert "not measured yet" in forecast_text(forecast(recipe_of(tmp_path)))
