"""Settings of data all the way: trained, exported, asked. A prompt has the tokens and the pixels that training saw, in
tools/generate.py as in transformers' own processor, and layouts with these settings train as one process does."""

import contextlib
import io
import json
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoProcessor, AutoTokenizer, LlavaForConditionalGeneration, PreTrainedTokenizerFast

from megatron_sts.config import Recipe, resolved_yaml
from megatron_sts.train.step import TrainStep
from megatron_sts.train.step_input import StepInput
from tests.ranks import run_ranks
from tests.tiny import tiny_recipe
from tools import convert, generate, train

MAX_TOKENS = 200
RECORDS = 8
QUESTION = "What is in the picture?"
# As Llama 3.1's: a system turn always, and the token that the tokenizer adds too.
CHAT_TEMPLATE = (
    "{{- bos_token }}"
    "{%- if messages[0]['role'] == 'system' %}{%- set system = messages[0]['content'] | trim %}"
    "{%- set messages = messages[1:] %}{%- else %}{%- set system = 'Cutting Knowledge Date: 2023' %}{%- endif %}"
    "{{- '<|start_header_id|>system<|end_header_id|>\n\n' + system + '<|eot_id|>' }}"
    "{%- for message in messages %}"
    "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim }}"
    "{{- '<|eot_id|>' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"
)
# data of the last stage, and the layout that trains it beside one process.
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "chatml": ({"image_aspect_ratio": "pad", "too_long": "cut", "system_prompt": None}, {}),
    "tokenizer": (
        {"image_aspect_ratio": "pad", "too_long": "set_aside", "system_prompt": "Be brief."},
        {"tensor": 2, "sequence_parallel": True},
    ),
    "llama3": ({"too_long": "cut", "packing": True}, {"pipeline": 2}),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures that are not square, records of which the last is too long, and a tokenizer with a chat template."""
    root = tmp_path_factory.mktemp("settings")
    (root / "images").mkdir()
    generator = np.random.default_rng(3)
    records = []
    for number in range(RECORDS):
        size = (30 + 10 * number, 40, 3)
        Image.fromarray(generator.integers(0, 255, size, dtype=np.uint8)).save(root / "images" / f"{number}.png")
        turns = [f"<image>\n{QUESTION}", "é" * (number + 1)]
        if number == RECORDS - 1:
            turns[1] = "too long " * MAX_TOKENS
        roles = ("human", "gpt")
        conversation = [{"from": role, "value": text} for role, text in zip(roles, turns, strict=True)]
        records.append({"id": str(number), "image": f"{number}.png", "conversations": conversation})
    (root / "train.json").write_text(json.dumps(records))
    core = Tokenizer(models.BPE({letter: n for n, letter in enumerate(pre_tokenizers.ByteLevel.alphabet())}, []))
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        chat_template=CHAT_TEMPLATE,
        extra_special_tokens=[
            *("<image>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
        ],
    )
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    tokenizer.save_pretrained(root / "tokenizer")
    return root


def _recipe(root: Path, case: str, name: str, parallel: dict[str, Any]) -> Recipe:
    data = {"train": str(root / "train.json"), "template": case, "max_tokens": MAX_TOKENS} | CASES[case][0]
    recipe = tiny_recipe(
        root,
        output_dir=str(root / name),
        parallel=parallel,
        model__architecture__language={"vocabulary_size": 272, "maximum_positions": 256},
        tune__data=data,
        tune__batch={"global": 4, "micro": 2},
        tune__steps=2,
    )
    recipe = recipe.model_copy(update={"stages": recipe.stages[1:]})
    (root / f"{name}.yaml").write_text(resolved_yaml(recipe))
    return recipe


def _run(main: Any, *arguments: str) -> str:
    output = io.StringIO()
    with contextlib.redirect_stdout(output), mock.patch("sys.argv", ["command", *arguments]):
        assert main() == 0
    return output.getvalue()


def _whole_way(root: Path, case: str) -> dict[str, Any]:
    """What training said and saw, and what a prompt became in the tool and in transformers."""
    export, picture = root / f"{case}_export", root / "images" / "0.png"
    seen: list[Any] = []
    asked: list[dict[str, Any]] = []
    run, ask = TrainStep.run, LlavaForConditionalGeneration.generate

    def recorded(self: TrainStep, given: StepInput, *rest: Any, **named: Any) -> Any:
        assert given.batches is not None
        seen.extend((batch.tokens.numpy(), batch.labels.numpy(), batch.pixels.numpy()) for batch in given.batches)
        return run(self, given, *rest, **named)

    def asked_for(self: Any, **inputs: Any) -> Any:
        asked.append(inputs)
        return ask(self, **inputs)

    with mock.patch.object(TrainStep, "run", recorded):
        said = _run(train.main, "--config", str(root / f"{case}.yaml"))
    checkpoint = str(root / case / "checkpoints" / "tune-00000002")
    _run(convert.main, "export", "--checkpoint", checkpoint, "--output", str(export))
    question = ["--image", str(picture), "--prompt", QUESTION, "--max-new-tokens", "2"]
    with mock.patch.object(LlavaForConditionalGeneration, "generate", asked_for):
        _run(generate.main, "--model", str(export), *question)
    content = [{"type": "image", "image": Image.open(picture)}, {"type": "text", "text": QUESTION}]
    by_processor = AutoProcessor.from_pretrained(export, backend="pil").apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    return {"said": said, "seen": seen} | {
        name: (inputs["input_ids"][0].numpy(), inputs["pixel_values"][0].numpy())
        for name, inputs in (("tool", asked[0]), ("processor", by_processor))
    }


def _whole_ways(root: Path) -> dict[str, dict[str, Any]]:
    return {case: _whole_way(root, case) for case in CASES}


@pytest.fixture(scope="module")
def whole_ways(root: Path) -> dict[str, dict[str, Any]]:
    """Of each case, on one process."""
    for case in CASES:
        _recipe(root, case, case, {})
    return dict(run_ranks(1, _whole_ways, root)[0])


def _trained(seen: list[Any], prompt: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """(ids of the answer that was learnt, pixels) of each sample that begins with this prompt."""
    found = []
    for tokens, labels, pixels in seen:
        windows = np.lib.stride_tricks.sliding_window_view(tokens, len(prompt), axis=1)
        places = np.argwhere((windows == prompt).all(axis=2))
        assert len(places) == len(pixels)
        for (row, start), picture in zip(places, pixels, strict=True):
            assert (labels[row, start : start + len(prompt) - 1] == -100).all()
            behind = labels[row, start + len(prompt) - 1 :]
            found.append((behind[: np.argmax(behind == -100)], picture))
    return found


@pytest.mark.parametrize("case", CASES)
def test_a_prompt_is_what_training_saw(root, whole_ways, case):
    found = whole_ways[case]
    (prompt, pixels), (by_processor, pixels_by_processor) = found["tool"], found["processor"]
    np.testing.assert_array_equal(prompt, by_processor)
    np.testing.assert_array_equal(pixels, pixels_by_processor)
    trained = _trained(found["seen"], prompt)
    assert len(trained) == 8
    tokenizer = AutoTokenizer.from_pretrained(root / "tokenizer")
    stop = "<|im_end|>" if case == "chatml" else "<|eot_id|>"
    texts = {tokenizer.decode(answer): picture for answer, picture in trained}
    expected = {"é" * (number + 1) + stop for number in range(RECORDS - 1)}
    if CASES[case][0]["too_long"] == "cut":
        expected.add(("too long " * MAX_TOKENS)[: MAX_TOKENS - len(prompt)])
        assert "tune: 8 samples (1 cut at 200 tokens)" in found["said"]
    else:
        assert "tune: 7 samples (of 8 records, set aside 1 longer than 200 tokens)" in found["said"]
    assert set(texts) == expected
    np.testing.assert_array_equal(pixels, texts["é" + stop])
    # The first picture is broad: where it is padded, the upper edge has the mean colour, which becomes zero.
    assert (np.abs(pixels[:, 0]).max() < 0.02) == ("image_aspect_ratio" in CASES[case][0])


@pytest.mark.parametrize("case", [case for case, (_, layout) in CASES.items() if layout])
def test_layouts_train_as_one_process(root, whole_ways, case):
    _recipe(root, case, f"{case}_layout", CASES[case][1])
    run_ranks(2, _run, train.main, "--config", str(root / f"{case}_layout.yaml"))
    one, other = (
        [json.loads(line)["loss"] for line in (root / name / "metrics.jsonl").read_text().splitlines()]
        for name in (case, f"{case}_layout")
    )
    assert len(one) == 2
    np.testing.assert_allclose(other, one, rtol=2e-6)
