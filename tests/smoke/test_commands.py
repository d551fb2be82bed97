"""The commands as a user types them: real torchrun, real processes, exit codes and messages.

Where only the message of a mistake is looked at, the command's `main` runs in a process forked from this one, which
has imported everything: a new one would spend ten seconds on that.
"""

import contextlib
import io
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed as dist

from megatron_sts.config import Recipe, resolved_yaml
from megatron_sts.exit_codes import LOST_RANK
from tests.ranks import run_ranks
from tests.tiny import tiny_recipe
from tools import train

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "TORCH_COMPILE_DISABLE": "1"}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("commands")


def _recipe_file(recipe: Recipe, directory: Path) -> Path:
    path = directory / "recipe.yaml"
    path.write_text(resolved_yaml(recipe))
    return path


def _train(arguments: list[str], ranks: int = 0, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable]
    if ranks:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = listener.getsockname()[1]
        command += ["-m", "torch.distributed.run", "--nproc-per-node", str(ranks)]
        command += ["--master-addr", "127.0.0.1", "--master-port", str(port)]
    command += [str(ROOT / "tools" / "train.py"), *arguments]
    return subprocess.run(command, cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, timeout=150, check=False)


def _forked(arguments: list[str]) -> tuple[int, str]:
    """(exit code, standard error) of the train command."""
    (result,) = run_ranks(1, _main, arguments)
    return result


def _main(arguments: list[str]) -> tuple[int, str]:
    sys.argv = ["train.py", *arguments]
    error = io.StringIO()
    with contextlib.redirect_stderr(error):
        code = train.main()
    return code, error.getvalue()


def test_torchrun_trains_with_overrides_and_resumes(root, tmp_path):
    recipe = tiny_recipe(root, output_dir=str(tmp_path / "run"), tune__skip={"alpha": 0.6, "epsilon": 0.4})
    config = ["--config", str(_recipe_file(recipe, tmp_path))]
    overrides = [
        "parallel.tensor=2",
        "parallel.sequence_parallel=true",
        "checkpoint.every_steps=2",
        "logging.tensorboard=true",
    ]
    # The first run is forked from this process; the one that resumes it is torchrun's.
    assert run_ranks(2, _main, [*config, *overrides]) == [(0, "")] * 2
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [(line["stage"], line["step"]) for line in lines] == [
        *(("align", step) for step in (1, 2, 3)),
        *(("tune", step) for step in (1, 2, 3, 4)),
    ]
    assert list((tmp_path / "run" / "tensorboard").iterdir())

    shutil.rmtree(tmp_path / "run" / "checkpoints" / "tune-00000004")
    again = _train([*config, *overrides], ranks=2, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "align: done, tune has begun from its end" in again.stdout and "after step 2" in again.stdout
    assert "tune 4/4 | loss" in again.stdout
    assert again.stderr == "", "a run that goes well says nothing there"
    repeated = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["loss"] for line in repeated] == [line["loss"] for line in lines]


def test_benchmark_starts_its_ranks_and_prints_one_json_object(root, tmp_path):
    skip = {"alpha": 0.5, "schedule": "constant"}
    recipe = tiny_recipe(root, tune__skip=skip, tune__data={"text_tokens": 20}, parallel={"pipeline": 2})
    command = [sys.executable, str(ROOT / "tools" / "benchmark.py"), "--config", str(_recipe_file(recipe, tmp_path))]
    command += ["--compare", "dense,sts", "--plans", "1", "--repeats", "1"]
    done = subprocess.run(
        command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=150, check=False
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert set(result["runs"]) == {"dense", "sts"}
    for run in result["runs"].values():
        assert {"step_time_s", "flops", "peak_memory_bytes"} <= set(run)
    assert {"speedup", "ideal_speedup", "retained_saving"} <= set(result)
    assert "retained" in done.stderr


def test_dry_run_needs_neither_data_nor_weights(root, tmp_path):
    planned = {"samples": 1000, "text_tokens": 20, "train": "/nowhere/train.json", "images": "/nowhere"}
    overrides = [f"stages.{stage}.data.{key}={value}" for stage in ("align", "tune") for key, value in planned.items()]
    recipe = tiny_recipe(root, output_dir=str(tmp_path / "run"), tune__skip={"alpha": 0.6})
    config = _recipe_file(recipe, tmp_path)
    done = _train(["--config", str(config), "--dry-run", "stages.tune.epochs=2", *overrides])
    assert done.returncode == 0, done.stderr
    assert "tune: 1,000 samples, 250 steps of 8" in done.stdout
    assert "skip probability: mean 0.2" in done.stdout
    assert "ideal speed-up" in done.stdout
    assert not recipe.output_dir.exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["stages.tune.skip.alhpa=0.5"], "did you mean 'alpha'"),
        (
            ["stages.tune.skip.alpha=0.9", "stages.tune.skip.epsilon=0.5"],
            "the largest alpha here is 0.6666",
        ),
        (["model.tokenizer=/nowhere"], "model.tokenizer is '/nowhere', which does not exist"),
        (["parallel.pipeline=4"], "the world has 1 ranks"),
        (["precision=fp8"], "fp8"),
        (["stages.tune.skip.skip_groups=[1,3]", "stages.tune.skip.alpha=0.9"], "every group skip 1.8 layers"),
        (
            ["stages.tune.data.max_tokens=20", "stages.tune.data.too_long=error"],
            "are longer than stages.tune.data.max_tokens 20",
        ),
        (["stages.tune.data.samples=7"], "stages.tune.data.samples is 7, but"),
        (["model.init={root}"], "no run.json"),
        (["model.architecture.language.vocabulary_size=8"], "vocabulary_size is 8"),
    ],
)
def test_mistakes_end_with_one_message_before_training(root, tmp_path, overrides, message):
    recipe = tiny_recipe(root, output_dir=str(tmp_path / "run"), tune__skip={"alpha": 0.5})
    given = [override.format(root=root) for override in overrides]
    code, error = _forked(["--config", str(_recipe_file(recipe, tmp_path)), *given])
    assert code == 2
    assert error.startswith("error: ") and message in error
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": "missing.png"}, "missing.png: no such file"),
        ({"image": ["0.png", "1.png"]}, "2"),
        ({"image": "../train.json"}, "train.json"),
    ],
    ids=["missing_picture", "wrong_count", "outside"],
)
def test_bad_records_are_named_before_training(root, tmp_path, change, message):
    recipe = tiny_recipe(root, output_dir=str(tmp_path / "run"))
    records = json.loads((root / "train.json").read_text())
    records[3] |= change
    (root / "bad.json").write_text(json.dumps(records))
    config = _recipe_file(recipe, tmp_path)
    code, error = _forked(["--config", str(config), f"stages.align.data.train={root / 'bad.json'}"])
    assert code == 2
    assert "'r3'" in error or '"r3"' in error
    assert error.startswith("error: ") and message in error


def _main_of_a_pair_that_never_meets(arguments: list[str]) -> tuple[int, str]:
    dist.destroy_process_group()
    os.environ.update(WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    return _main(arguments)


def test_ranks_that_do_not_reach_each_other_end_as_after_a_lost_rank_and_name_the_remedy(root, tmp_path):
    recipe = tiny_recipe(root, output_dir=str(tmp_path / "run"), parallel={"timeout_minutes": 0.02})
    config = ["--config", str(_recipe_file(recipe, tmp_path))]
    ((code, error),) = run_ranks(1, _main_of_a_pair_that_never_meets, config)
    assert code == LOST_RANK
    assert error.startswith("error: the 2 ranks could not join over gloo (") and "--interface" in error
