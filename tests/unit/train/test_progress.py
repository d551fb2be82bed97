"""Shows what a run writes down: a line a step in metrics.jsonl, some of them on the terminal, and none twice."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from megatron_sts.config import METRICS_FILE, Recipe
from megatron_sts.errors import ConfigError
from megatron_sts.train.bad_steps import Judgement
from megatron_sts.train.progress import Progress, check_figure_sinks, forget_steps_after
from tests.ranks import run_ranks
from tests.tiny import ARCHITECTURE
from tests.unit.train.test_figures import FIGURES


def make_recipe(directory: Path, **logging: object) -> Recipe:
    stage = {
        "name": "tune",
        "data": {"train": "data.json"},
        "trains": ["projector"],
        "steps": 5,
        "batch": {"global": 8, "micro": 2},
        "learning_rate": {"projector": 1e-3},
    }
    return Recipe.model_validate(
        {
            "output_dir": str(directory / "run"),
            "model": {"architecture": ARCHITECTURE},
            "logging": {"every_steps": 2, "tensorboard": False} | logging,
            "stages": [stage],
        }
    )


def run(recipe: Recipe, steps: range, total: int = 5, speaks: bool = True) -> None:
    with Progress(recipe, "tune", steps.start, total, layers=4, speaks=speaks) as progress:
        progress.say("begins [here]")
        for step in steps:
            progress.record(replace(FIGURES, step=step + 1, loss=float(step + 1)))


def lines(recipe: Recipe) -> list[dict]:
    return [json.loads(line) for line in (recipe.output_dir / METRICS_FILE).read_text().splitlines()]


def test_every_step_is_a_line_of_metrics(tmp_path):
    recipe = make_recipe(tmp_path)
    run(recipe, range(5))
    assert [line["loss"] for line in lines(recipe)] == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert lines(recipe)[2] == replace(FIGURES, step=3, loss=3.0).record()


def test_a_full_disk_stops_no_training_and_loses_no_line(tmp_path, capsys):
    recipe = make_recipe(tmp_path)
    with Progress(recipe, "tune", 0, 5, layers=4, speaks=True) as progress:
        progress.record(replace(FIGURES, step=1))
        disk = progress._metrics
        progress._metrics = open("/dev/full", "ab", buffering=0)  # noqa: SIM115
        for step in (2, 3):
            progress.record(replace(FIGURES, step=step))
        progress._metrics.close()
        progress._metrics = disk
        progress.record(replace(FIGURES, step=4))
    assert [line["step"] for line in lines(recipe)] == [1, 2, 3, 4]
    assert capsys.readouterr().out.count("figures cannot be written for now: [Errno 28]") == 1


def test_terminal_shows_every_so_many_steps_and_the_last(tmp_path, capsys):
    run(make_recipe(tmp_path), range(5))
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "begins [here]"
    assert [line.split(" | ")[0] for line in shown[1:]] == ["tune 2/5", "tune 4/5", "tune 5/5"]
    # Means of the steps 1 and 2, 3 and 4, and of 5 alone.
    assert [line.split(" | ")[1] for line in shown[1:]] == ["loss 1.5000", "loss 3.5000", "loss 5.0000"]
    # Half a second a step: one and a half seconds for the three that are left, counted in whole ones.
    parts = ("lr 1.00e-03", "grad norm 0.250", "200 tokens/s", "ETA 00:00:01")
    assert all(
        part in shown[1].split(" | ")
        for part in (
            *parts,
            "layers 2/4 (2 with the MLP for text alone)",
            "visual tokens 50%",
            "FLOPs saved 25%",
            "waited for data 25%",
        )
    )


@pytest.mark.parametrize(("dropped", "said"), [(True, "DROPPED"), (False, "warning")])
def test_a_bad_step_is_always_shown_with_what_is_wrong(tmp_path, capsys, dropped, said):
    recipe = make_recipe(tmp_path, every_steps=100)
    with Progress(recipe, "tune", 0, 5, layers=4, speaks=True) as progress:
        progress.record(replace(FIGURES, step=1))
        progress.record(replace(FIGURES, step=2, dropped_step=dropped), Judgement("loss 9 is a spike", dropped))
    (shown,) = capsys.readouterr().out.splitlines()
    assert shown.startswith("tune 2/5 | ") and shown.endswith(f" | {said}: loss 9 is a spike")


def test_other_ranks_write_and_say_nothing(tmp_path, capsys):
    recipe = make_recipe(tmp_path, tensorboard=True)
    run(recipe, range(5), speaks=False)
    assert capsys.readouterr().out == ""
    assert not recipe.output_dir.exists()


def test_resumed_run_writes_no_step_twice(tmp_path):
    recipe = make_recipe(tmp_path)
    run(recipe, range(4))
    run(recipe, range(2, 5))
    assert [line["step"] for line in lines(recipe)] == [1, 2, 3, 4, 5]


def test_forgetting_keeps_other_stages_and_drops_a_half_written_line(tmp_path):
    metrics = tmp_path / METRICS_FILE
    kept = [
        {"stage": "align", "step": 1},
        {"stage": "align", "step": 9},
        {"stage": "tune", "step": 1},
        {"stage": "tune", "step": 2},
    ]
    gone = [{"stage": "tune", "step": 3}, {"stage": "tune", "step": 4}]
    text = "".join(json.dumps(line) + "\n" for line in (*kept, *gone))
    metrics.write_text(text + '{"stage": "tune", "st')
    forget_steps_after(metrics, "tune", 2)
    assert [json.loads(line) for line in metrics.read_text().splitlines()] == kept
    before = metrics.read_bytes()
    forget_steps_after(metrics, "tune", 2)
    assert metrics.read_bytes() == before
    forget_steps_after(tmp_path / "missing.jsonl", "tune", 0)


def test_tensorboard_gets_the_scalars(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    recipe = make_recipe(tmp_path, tensorboard=True)
    # In a process of its own: its writer starts a thread, and this one forks ranks.
    run_ranks(1, run, recipe, range(3))
    events = EventAccumulator(str(recipe.output_dir / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("tune/loss")] == [(1, 1.0), (2, 2.0), (3, 3.0)]
    assert {name.removeprefix("tune/") for name in events.Tags()["scalars"]} == set(FIGURES.scalars())


def test_missing_wandb_is_refused_with_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match=r"wandb_project is set .*pip install wandb"):
        check_figure_sinks(make_recipe(tmp_path, wandb_project="sts"))
