"""Shows that batched generation answers each prompt as transformers does alone, whatever stands beside it."""

import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from megatron_sts.data import Turn
from megatron_sts.errors import ConfigError, ConversionError, DataError
from megatron_sts.evaluation import Generator, Request
from megatron_sts.evaluation.generate import choose_device, choose_dtype

QUESTIONS = ["What digit is it?", "Row one: five", "is it two five yes?", "no"]


@pytest.fixture(scope="module")
def generator(exported: Path) -> Generator:
    return Generator(exported, "cpu")


def requests_of(generator: Generator) -> list[Request]:
    with_pictures = [
        Request(generator.prompt([Turn("human", f"<image>\n{text}")]), (f"{number % 3}.png",))
        for number, text in enumerate(QUESTIONS)
    ]
    return [*with_pictures, Request(generator.prompt([Turn("human", "A chat")]))]


def alone(model_dir: Path, request: Request, pictures: Path) -> str:
    """The answer by way of transformers' own processor, one prompt at a time."""
    processor = AutoProcessor.from_pretrained(model_dir)
    model = AutoModelForImageTextToText.from_pretrained(model_dir)
    images = [Image.open(pictures / name) for name in request.images] or None
    inputs = processor(text=request.prompt, images=images, return_tensors="pt")
    with torch.inference_mode():
        tokens = model.generate(**inputs, max_new_tokens=6, do_sample=False)
    return str(processor.decode(tokens[0, inputs["input_ids"].size(1) :], skip_special_tokens=True)).strip()


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_answers_do_not_depend_on_the_batch(
    generator: Generator, exported: Path, pictures: Path, batch_size: int
) -> None:
    requests = requests_of(generator)
    answers = generator.generate(requests, pictures, max_new_tokens=6, batch_size=batch_size)
    assert answers == [alone(exported, request, pictures) for request in requests]
    assert len(set(answers)) > 1
    assert all(answers)


def test_an_answer_depends_on_its_picture(generator: Generator, pictures: Path) -> None:
    prompt = generator.prompt([Turn("human", "<image>\nWhat digit is it?")])
    requests = [Request(prompt, (name,)) for name in ("0.png", "1.png", "2.png")]
    assert len(set(generator.generate(requests, pictures, max_new_tokens=8))) > 1


def test_several_turns_are_written_by_the_chat_template(generator: Generator) -> None:
    turns = [Turn("human", "<image>\nWhat digit is it?"), Turn("assistant", "two"), Turn("human", "yes?")]
    written = "USER: <image>\nWhat digit is it? ASSISTANT: two</s>USER: yes? ASSISTANT:"
    assert generator.prompt(turns).endswith(written)


def test_progress_counts_to_the_end(generator: Generator, pictures: Path) -> None:
    seen: list[tuple[int, int]] = []
    generator.generate(
        requests_of(generator),
        pictures,
        max_new_tokens=1,
        batch_size=2,
        progress=lambda *done: seen.append(done),
    )
    assert seen == [(1, 5), (2, 5), (3, 5), (4, 5), (5, 5)]


def test_nothing_asked_is_nothing_answered(generator: Generator, pictures: Path) -> None:
    assert generator.generate([], pictures) == []


def test_a_missing_picture_is_named(generator: Generator, pictures: Path) -> None:
    request = Request(generator.prompt([Turn("human", "<image>\nno")]), ("gone.png",))
    with pytest.raises(DataError, match=r"gone.png"):
        generator.generate([request], pictures)


def test_a_directory_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match=r"no config.json, so no exported model"):
        Generator(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConversionError, match="cannot be loaded"):
        Generator(tmp_path)


def test_weights_that_were_cut_off_are_refused(exported: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(exported, tmp_path / "export"))
    (broken / "model.safetensors").write_bytes((exported / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(ConversionError, match=r"cannot be loaded .*export it again"):
        Generator(broken)


def test_the_dtype_is_float32_on_a_cpu_unless_asked_otherwise(exported: Path, pictures: Path) -> None:
    assert choose_dtype("cpu") == "float32"
    assert choose_dtype("cpu", "bfloat16") == "bfloat16"
    asked = Generator(exported, "cpu", "bfloat16")
    assert {parameter.dtype for parameter in asked.model.parameters()} == {torch.bfloat16}
    assert all(asked.generate(requests_of(asked)[:2], pictures, max_new_tokens=2))


def test_an_unknown_device_or_dtype_is_refused() -> None:
    with pytest.raises(ConfigError, match="--device: found 'gpu'"):
        choose_device("gpu")
    with pytest.raises(ConfigError, match="--device: found 'cuda:99', but there are"):
        choose_device("cuda:99")
    with pytest.raises(ConfigError, match="--dtype: found 'fp8'; choose from auto, float32"):
        choose_dtype("cpu", "fp8")
