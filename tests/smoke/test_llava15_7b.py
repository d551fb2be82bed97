"""The LLaVA-1.5-7B example as its README has it, command by command, on a shrunken copy of the same architecture.

The models are random ones that transformers writes, the data a few records where the README wants LLaVA's; the
recipe, the scripts and the commands are the example's own. A process that loads transformers costs 8 seconds, so that
each tool is started once, and what else the README asks of it runs here.
"""

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

from tests.unit.hf.tiny_llava import WORDS, make_tokenizer

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "llava15_7b"
ENVIRONMENT = os.environ | {
    "OMP_NUM_THREADS": "1",
    "TORCH_COMPILE_DISABLE": "1",
    "PYTHONPATH": str(ROOT),
}
VISION = {"hidden_size": 32, "ffn_hidden_size": 64, "layers": 3, "attention_heads": 4, "image_size": 56}
LANGUAGE = {"hidden_size": 64, "ffn_hidden_size": 96, "layers": 4, "attention_heads": 4, "query_groups": 4}
RECORDS = 24
SMALLER = [
    f"stages.{stage}.{field}"
    for stage in ("align", "tune")
    for field in (f"data.samples={RECORDS}", "data.text_tokens=8", "data.workers=0", "batch.global=8", "batch.micro=1")
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory as the README's reader has it before the first command."""
    place = tmp_path_factory.mktemp("repository")
    (place / "tools").symlink_to(ROOT / "tools")
    shutil.copytree(EXAMPLE, place / "examples" / "llava15_7b")
    write_models(place)
    write_training_data(place / "data")
    write_questions(place / "eval")
    picture(0).save(place / "cat.jpg")
    return place


def write_models(place: Path) -> None:
    """Random weights at small sizes, and an architecture.yaml that says so."""
    tokenizer = make_tokenizer(image_token=False)
    file = place / "examples" / "llava15_7b" / "architecture.yaml"
    architecture = OmegaConf.load(file)
    changes = {"vision": VISION, "language": {**LANGUAGE, "vocabulary_size": len(tokenizer) + 1}}
    sizes = OmegaConf.to_container(OmegaConf.merge(architecture, changes))
    assert isinstance(sizes, dict)
    file.write_text(OmegaConf.to_yaml(OmegaConf.create(sizes)))
    torch.manual_seed(0)
    vision, language = sizes["vision"], sizes["language"]
    tower = CLIPVisionConfig(
        hidden_size=vision["hidden_size"],
        intermediate_size=vision["ffn_hidden_size"],
        num_hidden_layers=vision["layers"],
        num_attention_heads=vision["attention_heads"],
        image_size=vision["image_size"],
        patch_size=vision["patch_size"],
    )
    directory = place / "models" / "clip-vit-large-patch14-336"
    CLIPVisionModel(tower).save_pretrained(directory)
    size = vision["image_size"]
    CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size={"height": size, "width": size}).save_pretrained(
        directory
    )
    vicuna = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=language["hidden_size"],
        intermediate_size=language["ffn_hidden_size"],
        num_hidden_layers=language["layers"],
        num_attention_heads=language["attention_heads"],
        num_key_value_heads=language["query_groups"],
        rms_norm_eps=language["norm_epsilon"],
        max_position_embeddings=language["maximum_positions"],
    )
    LlamaForCausalLM(vicuna).save_pretrained(place / "models" / "vicuna-7b-v1.5")
    tokenizer.save_pretrained(place / "models" / "vicuna-7b-v1.5")


def picture(number: int) -> Image.Image:
    pixels = np.random.default_rng(number).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def write_training_data(data: Path) -> None:
    """Captions for alignment, questions for tuning; every sixth of these is text alone, as in LLaVA-665K."""
    pretrain, instruct = data / "LLaVA-Pretrain", data / "LLaVA-Instruct"
    captions, conversations = [], []
    for folder in (pretrain / "images", instruct / "coco" / "train2017"):
        folder.mkdir(parents=True)
    for number in range(RECORDS):
        name = f"{number:06d}.jpg"
        answer = " ".join(WORDS[2 + (number + offset) % 8] for offset in range(1 + number % 4))
        turns = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": answer}]
        picture(number).save(pretrain / "images" / name)
        captions.append({"id": str(number), "image": name, "conversations": turns})
        if number % 6 == 5:
            turns = [{"from": "human", "value": "What is it?"}, turns[1]]
            conversations.append({"id": str(number), "conversations": turns})
        else:
            picture(number).save(instruct / "coco" / "train2017" / name)
            conversations.append({"id": str(number), "image": f"coco/train2017/{name}", "conversations": turns})
    (pretrain / "blip_laion_cc_sbu_558k.json").write_text(json.dumps(captions))
    (instruct / "llava_v1_5_mix665k.json").write_text(json.dumps(conversations))


def write_questions(folder: Path) -> None:
    """LLaVA's files for POPE and ScienceQA with the projects' own files beside them."""
    for inside in ("pope/coco", "coco/val2014", "scienceqa/images/test/4"):
        (folder / inside).mkdir(parents=True)
    asked = []
    for split in ("random", "popular", "adversarial"):
        labelled = [
            {"question_id": number, "image": f"{number}.jpg", "text": "is it two?", "label": ("yes", "no")[number % 2]}
            for number in (1, 2)
        ]
        (folder / "pope" / "coco" / f"coco_pope_{split}.json").write_text("\n".join(map(json.dumps, labelled)))
        asked += [
            {"question_id": len(asked) + place, "image": line["image"], "text": line["text"], "category": split}
            for place, line in enumerate(labelled)
        ]
    (folder / "pope" / "llava_pope_test.jsonl").write_text("\n".join(map(json.dumps, asked)))
    for number in (1, 2):
        picture(number).save(folder / "coco" / "val2014" / f"{number}.jpg")
    science = folder / "scienceqa"
    picture(3).save(science / "images" / "test" / "4" / "image.png")
    problem: dict[str, Any] = {"question": "What is it?", "choices": ["two", "five"], "answer": 0, "image": None}
    problems = {"4": problem | {"image": "image.png"}, "5": problem}
    (science / "problems.json").write_text(json.dumps(problems))
    (science / "pid_splits.json").write_text(json.dumps({"test": ["4", "5"]}))
    conversations = [
        {"id": name, "conversations": [{"from": "human", "value": "What is it? (A) two (B) five"}, {"from": "gpt"}]}
        for name in problems
    ]
    (science / "llava_test_CQM-A.json").write_text(json.dumps(conversations))


def commands() -> Iterator[str]:
    """The README's commands, a line each."""
    for block in re.findall(r"```bash\n(.*?)```", (EXAMPLE / "README.md").read_text(), re.DOTALL):
        yield from block.replace("\\\n", " ").splitlines()


def run(place: Path, command: str) -> str:
    """Run a command of the README as a user does; returns what it printed."""
    command = re.sub(r"^python\b", shlex.quote(sys.executable), command)
    done = subprocess.run(
        ["bash", "-c", command], cwd=place, env=ENVIRONMENT, capture_output=True, text=True, timeout=150, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
    return done.stdout


def run_here(tool: str, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run a tool in this process; returns what it printed."""
    spec = importlib.util.spec_from_file_location(f"readme_{tool}", ROOT / "tools" / f"{tool}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.main(arguments) == 0
    return capsys.readouterr().out


def test_the_readme_leads_from_weights_to_scores(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    printed: dict[str, list[str]] = {}
    for command in commands():
        if "launch.py" in command and "pp4.overrides" in command:
            # The second layout wants eight ranks; its plan is made.
            continue
        command = command.replace("--nproc-per-node 8", "--nproc-per-node 2").replace("tune-00005197", "tune-00000003")
        *_, tool = (Path(word).stem for word in command.split() if word.startswith("tools/"))
        if tool in ("plan", "train"):
            command = f"{command} {shlex.join(SMALLER)}"
        elif tool in ("evaluate", "generate"):
            command = f"{command} --max-new-tokens 4"
        if tool == "generate" or "tools/convert.py import" in command or (tool == "evaluate" and tool in printed):
            printed.setdefault(tool, []).append(run_here(tool, shlex.split(command)[2:], capsys))
        else:
            printed.setdefault(tool, []).append(run(place, command))

    steps = [json.loads(line) for line in (place / "runs/llava15_7b/sts/metrics.jsonl").read_text().splitlines()]
    done = [(step["stage"], step["step"]) for step in steps]
    assert done == [(name, number) for name in ("align", "tune") for number in (1, 2, 3)]
    # 16 patches: a fourth is kept in alignment, all in tuning; layers are skipped for them in tuning alone.
    assert {step["visual_tokens_kept"] / step["visual_tokens_total"] for step in steps[:3]} == {0.25}
    assert {step["visual_tokens_kept"] / step["visual_tokens_total"] for step in steps[3:]} == {1.0}
    assert not any(step["layers_skipped_for_visual"] for step in steps[:3])
    assert any(step["layers_skipped_for_visual"] for step in steps[3:])

    card = (place / "exports" / "llava15_7b_sts" / "README.md").read_text()
    assert "compressed: strategy uniform, keep_ratio 0.25" in card
    assert "| tune | 3 |" in card
    pope, science = printed["evaluate"]
    assert pope.startswith("format pope (its records have a category, and neither answer nor label)")
    asked = [line.split()[:2] for line in pope.splitlines()[2:]]
    assert asked == [["all", "6"], ["adversarial", "2"], ["popular", "2"], ["random", "2"]]
    assert science.startswith("format scienceqa")
    assert len((place / "exports" / "pope.jsonl").read_text().splitlines()) == 6
    assert printed["generate"][0].strip()
