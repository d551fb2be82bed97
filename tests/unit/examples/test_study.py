"""Shows that the study's arms are recipes, its intervals Student's, and its page what the code makes of its results."""

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from megatron_sts.config import difference, load_recipe

ROOT = Path(__file__).resolve().parents[3]
STUDY = ROOT / "examples" / "study"


@pytest.fixture(scope="module")
def study() -> dict[str, ModuleType]:
    """The study's modules, which import each other as scripts do; their names are given back."""
    names = ("models", "seven_b", "intervals", "report", "run")
    before = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    sys.path.insert(0, str(STUDY))
    try:
        return {name: __import__(name) for name in names}
    finally:
        sys.path.remove(str(STUDY))
        for name in names:
            sys.modules.pop(name, None)
        sys.modules.update(before)


def test_differences_are_paired_by_seed_with_a_pooled_student_interval(study: dict[str, ModuleType]) -> None:
    arms = {
        "dense": {1: 10.0, 2: 20.0, 3: 30.0},
        # Differences 1, 2, 3: mean 2, sum of squares 2. Seed 9 has no dense run.
        "one": {1: 11.0, 2: 22.0, 3: 33.0, 9: 100.0},
        # -1, -3: mean -2, sum of squares 2.
        "two": {1: 9.0, 2: 17.0},
        "three": {2: 25.0},
        "none": {9: 1.0},
    }
    found = study["intervals"].paired_differences(arms, "dense")
    assert list(found) == ["one", "two", "three"]
    # Scatter sqrt((2 + 2) / 3), 3 degrees of freedom, for which tables have 3.182.
    half = 3.182 * (4 / 3) ** 0.5
    assert [(one.mean, one.runs) for one in found.values()] == [(2.0, 3), (-2.0, 2), (5.0, 1)]
    assert [one.half for one in found.values()] == pytest.approx([half / 3**0.5, half / 2**0.5, half], rel=1e-3)


def test_one_degree_of_freedom_has_no_interval(study: dict[str, ModuleType]) -> None:
    arms = {"dense": {1: 1.0, 2: 1.0}, "arm": {1: 3.0, 2: 5.0}}
    assert study["intervals"].paired_differences(arms, "dense")["arm"] == study["intervals"].Interval(3.0, None, 2)


def test_every_arm_is_a_recipe_that_differs_from_dense_in_sparsity_and_steps(
    study: dict[str, ModuleType], tmp_path: Path
) -> None:
    models = study["models"]
    for model in models.MODELS.values():
        arms = models.arms_of(model.name)
        assert next(iter(arms)) == "dense"
        recipes = {}
        for arm in arms.values():
            values = models.arm_recipe(model, "short", arm, 7, Path("start"), tmp_path / "rises.json")
            # The checkpoint that they start from is made by the study.
            values["model"]["init"] = None
            file = tmp_path / f"{model.name}_{arm.name}.yaml"
            file.write_text(json.dumps(values))
            recipes[arm.name] = load_recipe(file, check_files=False)
        for name, recipe in recipes.items():
            changed = difference(recipes["dense"].resolved(), recipe.resolved())
            allowed = ("output_dir", "stages.tune.skip", "stages.tune.compress", "stages.tune.steps")
            assert all(field.startswith(allowed) for field in changed), (name, changed)
            assert recipe.seed == 7


def test_what_a_7b_would_save_is_that_of_its_plan(study: dict[str, ModuleType]) -> None:
    # Always in the last 15 of 30 layers, which are the last 16 of 32: docs/skipping.md has 20% for half of the layers.
    skip = {"tokens": "visual", "alpha": 1.0, "schedule": "constant", "never_skip": list(range(15))}
    saved = study["seven_b"].saved_of_7b(study["models"].Arm("half", "", tune={"skip": skip}, steps=0.5), 30)
    # Half of the steps save half of the rest.
    assert saved == pytest.approx(1 - 0.5 * (1 - 0.20), abs=0.003)


def test_runs_that_have_their_line_are_not_done_again(study: dict[str, ModuleType], tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    runs = study["run"].left("smollm2", "short", [1], [study["models"].arms_of("smollm2")["dense"]], file)
    assert [seed for seed, _ in runs] == [1]
    file.write_text(json.dumps({"model": "smollm2", "size": "short", "arm": "dense", "seed": 1}) + "\n")
    arms = study["models"].arms_of("smollm2")
    left = study["run"].left("smollm2", "short", [1, 2], [arms["dense"], arms["formula"]], file)
    assert [(seed, arm.name) for seed, arm in left] == [(1, "formula"), (2, "dense"), (2, "formula")]


def test_the_page_has_the_tables_of_the_results(study: dict[str, ModuleType]) -> None:
    page = (ROOT / "docs" / "study.md").read_text()
    report = study["report"]
    assert report.filled(page, report.tables(report.read_rows(STUDY / "results.jsonl"))) == page
    with pytest.raises(SystemExit, match="0 places"):
        report.filled("nothing", {"smollm2": "table"})
