"""Shows what tools/plan.py prints: documented json, the plan of each step, a split to paste, one error; no torch."""

import functools
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from megatron_sts.config import load_recipe, resolved_yaml

ROOT = Path(__file__).resolve().parents[3]
PLAN_70B = ROOT / "examples" / "plan_70b" / "sts.yaml"
# Runs the command and fails where it has imported a framework.
WITHOUT_FRAMEWORKS = """
import runpy, sys
sys.argv[:] = ["plan.py", *sys.argv[1:]]
try:
    runpy.run_path("tools/plan.py", run_name="__main__")
except SystemExit as ended:
    assert not {"torch", "megatron", "transformers"} & set(sys.modules), "a framework was imported"
    raise
"""


@functools.cache
def plan(*arguments: str, config: Path = PLAN_70B) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", WITHOUT_FRAMEWORKS, "--config", str(config), *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=180, check=False)


def test_the_pages_quote_what_is_printed():
    printed = plan().stdout
    (quoted,) = re.findall(
        r"prints for the second stage.*?```\n(.*?)```", (PLAN_70B.parent / "README.md").read_text(), re.S
    )
    assert len(quoted.splitlines()) > 10
    assert [line for line in quoted.splitlines() if line not in printed.splitlines()] == []
    assert printed.splitlines()[-1] in (ROOT / "docs" / "planning.md").read_text()

    llava = ROOT / "examples" / "llava15_7b"
    overrides = [line for line in (llava / "pp4.overrides").read_text().splitlines() if not line.startswith("#")]
    tune = json.loads(plan("--json", *overrides, config=llava / "sts.yaml").stdout)["stages"][1]
    kept = tune["pipeline"]["retained_saving"]
    page = " ".join((llava / "README.md").read_text().split())
    assert f"{kept['balanced']:.0%} of the tuning's saving" in page
    assert f"and {kept['independent']:.0%} with independent draws" in page


def test_json_has_the_documented_keys(tmp_path):
    picture = tmp_path / "plan.png"
    done = plan("--json", "--plot", str(picture))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    align, tune = found["stages"]
    assert [align["name"], tune["name"]] == ["align", "tune"]
    assert align["mean_skip_probability"] == 0.0
    assert tune["mean_skip_probability"] == pytest.approx(0.5 / 3, rel=1e-3)
    for stage in (align, tune):
        assert stage["ideal_speedup"] == pytest.approx(stage["flops_dense"] / stage["flops_executed"])
        pipeline = stage["pipeline"]
        assert [rank["layers"] for rank in pipeline["per_stage"]] == [10] * 8
        assert sum(rank["flops"] for rank in pipeline["per_stage"]) == pytest.approx(stage["flops_executed"])
        # 70.6e9 parameters of the language model, 0.3e9 of the tower, 0.08e9 of the projector.
        assert sum(rank["parameters"] for rank in pipeline["per_stage"]) == pytest.approx(70.95e9, rel=1e-3)
        assert all(
            rank["bytes"] == rank["parameter_bytes"] + rank["gradient_bytes"] + rank["optimizer_bytes"]
            for rank in pipeline["per_stage"]
        )
        assert set(pipeline["predicted_speedup"]) == {"balanced", "independent"}
        assert len(pipeline["proposed_layers"]) == 8 and sum(pipeline["proposed_layers"]) == 80
    assert tune["pipeline"]["predicted_speedup"]["balanced"] > tune["pipeline"]["predicted_speedup"]["independent"]
    documented = (ROOT / "docs" / "planning.md").read_text()
    for key in {*found, *tune, *tune["pipeline"], *tune["pipeline"]["per_stage"][0], *found["proposed"]}:
        assert f"`{key}`" in documented, f"{key} is not documented"
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_text_has_a_line_to_paste_that_can_be_used(tmp_path):
    overrides = ["parallel.virtual_pipeline=2", "stages.tune.batch.global=16", "stages.tune.steps=50"]
    done = plan(*overrides)
    assert done.returncode == 0, done.stderr
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("parallel: "))
    recipe = load_recipe(PLAN_70B, overrides, check_files=False)
    values = yaml.safe_load(resolved_yaml(recipe)) | yaml.safe_load(line)
    pasted = tmp_path / "pasted.yaml"
    pasted.write_text(json.dumps(values))
    again = plan(config=pasted)
    assert again.returncode == 0, again.stderr
    # The pasted split is the one now, and groups left open follow it.
    assert str(values["parallel"]["layers_per_stage"]) in again.stdout.splitlines()[0]


def test_a_reader_that_stops_early_ends_the_command_without_a_word():
    command = f"{sys.executable} tools/plan.py --config {PLAN_70B} --dump-steps 2000 stages.align.steps=1 | head -1"
    done = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True, timeout=180, check=False)
    assert len(done.stdout.splitlines()) == 1 and done.stderr == ""


def test_steps_are_one_json_object_a_line():
    done = plan("--dump-steps", "2", "stages.align.steps=1")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(line["stage"], line["step"], line["visual_tokens"]) for line in lines] == [
        ("align", 1, 288),
        ("tune", 1, 576),
        ("tune", 2, 576),
    ]
    assert lines[0]["layers_skipped"] == [] and len(lines[1]["layers_skipped"]) % 8 == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["parallel.pipelin=2"], "did you mean 'pipeline'"),
        (["--data-parallel", "3"], "not divisible by"),
        (["stages.tune.data.samples=null"], "give stages.tune.data.samples to plan without the data"),
        (["parallel.pipeline=4", "stages.tune.skip.skip_groups=2"], "choose groups that lie inside a virtual stage"),
        (["--plot", "/nowhere/plan.png", "stages.tune.steps=2", "stages.align.steps=2"], "cannot be written"),
    ],
)
def test_mistakes_end_with_one_message(arguments, message):
    done = plan(*arguments)
    assert done.returncode == 2
    assert message in done.stderr and done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
