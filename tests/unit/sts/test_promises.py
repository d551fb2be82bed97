"""Shows, for recipes at random, that each gives a plan that keeps its promises, or an error that names the field."""

from itertools import accumulate
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megatron_sts.config import Recipe, check_recipe
from megatron_sts.errors import ConfigError
from megatron_sts.sts import StagePlanner, group_sizes, resolve_skip_groups
from tests.tiny import ARCHITECTURE

STEPS = 25
ROUNDING = 1e-6


@st.composite
def partitions(draw: st.DrawFn, layers: int) -> list[int]:
    """Sizes of groups that sum to the layers."""
    cuts = sorted(draw(st.sets(st.integers(1, max(1, layers - 1)), max_size=5)) - {layers})
    return [end - start for start, end in zip([0, *cuts], [*cuts, layers], strict=True)]


@st.composite
def skips(draw: st.DrawFn) -> tuple[int, dict[str, Any]]:
    """Layers, and a `skip` for them that may or may not make sense."""
    layers = draw(st.integers(1, 40))
    divisors = [size for size in range(1, layers + 1) if layers % size == 0]
    groups = st.none() | st.sampled_from(divisors) | partitions(layers) | st.integers(0, 41)
    rate = st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]) | st.floats(0, 1) | st.floats(-0.5, 1.5)
    tilt = st.just(0.0) | st.sampled_from([-1.0, 0.5, 1.0]) | st.floats(-1.5, 1.5)
    skip = {
        "alpha": draw(rate),
        "epsilon": draw(tilt),
        "schedule": draw(st.sampled_from(["sts", "constant", "pld"])),
        "progress": draw(st.sampled_from(["step", "epoch"])),
        "selection": draw(st.sampled_from(["balanced", "balanced", "independent"])),
        "skip_groups": draw(groups),
        "never_skip": draw(st.just([]) | st.lists(st.integers(-1, layers), max_size=layers, unique=True)),
        "min_layers_run": draw(st.just(0) | st.integers(0, layers + 1)),
        "ramp_ratio": draw(st.just(0.0) | st.floats(0, 1)),
        "full_share": draw(st.just(0.0) | st.floats(0, 1)),
    }
    if skip["selection"] == "independent" and draw(st.booleans()):
        skip["skip_groups"] = None
    return layers, skip


def _recipe(layers: int, skip: dict[str, Any]) -> Recipe:
    stage = {
        "name": "tune",
        "data": {"train": "data.json", "max_tokens": 128},
        "trains": ["projector"],
        "steps": STEPS,
        "batch": {"global": 8, "micro": 2},
        "learning_rate": {"projector": 1e-3},
        "skip": skip,
    }
    architecture = ARCHITECTURE | {"language": ARCHITECTURE["language"] | {"layers": layers}}
    return Recipe.model_validate({"output_dir": "run", "model": {"architecture": architecture}, "stages": [stage]})


def _check_plan(recipe: Recipe, layers: int) -> None:
    skip = recipe.stages[0].skip[0]
    planner = StagePlanner(recipe, recipe.stages[0], STEPS, 7.0)
    ends = list(accumulate(group_sizes(recipe, skip))) if skip.selection == "balanced" else [layers]
    groups = [set(range(start, end)) for start, end in zip([0, *ends], ends, strict=False)]
    counted, expected = [0] * len(groups), [0.0] * len(groups)
    for step in range(STEPS):
        probabilities, skipped = planner.skip_probabilities(step), planner.plan(step).skipped_layers
        assert len(probabilities) == layers and skipped <= set(range(layers))
        assert all(-ROUNDING <= probability <= 1 + ROUNDING for probability in probabilities)
        assert all(probabilities[layer] == 0 and layer not in skipped for layer in skip.never_skip)
        assert layers - len(skipped) >= skip.min_layers_run
        assert all(probabilities[layer] > 0 for layer in skipped)
        if skip.selection == "independent":
            continue
        assert len({len(skipped & group) for group in groups}) == 1
        for number, group in enumerate(groups):
            counted[number] += len(skipped & group)
            expected[number] += sum(probabilities[layer] for layer in group)
            assert abs(counted[number] - expected[number]) < 1 + ROUNDING


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(skips())
def test_a_skip_gives_a_plan_that_keeps_its_promises_or_an_error_that_names_the_field(drawn):
    layers, skip = drawn
    refusal = None
    try:
        recipe = _recipe(layers, skip)
        check_recipe(recipe, check_files=False)
        recipe = resolve_skip_groups(recipe)
    except ConfigError as error:
        refusal = str(error)
    if refusal is None:
        _check_plan(recipe, layers)
    else:
        assert all(line.strip().startswith("- stages.tune.skip.") for line in refusal.splitlines()[1:]), refusal
