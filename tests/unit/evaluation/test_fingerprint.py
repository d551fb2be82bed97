"""Shows that a fingerprint moves with what a model computes and with what is asked, and with nothing else."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from megatron_sts.data import Turn
from megatron_sts.evaluation.fingerprint import model_fingerprint, questions_fingerprint
from megatron_sts.evaluation.questions import Question


@pytest.fixture
def model(tmp_path: Path) -> Path:
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / "config.json").write_text("{}")
    (directory / "README.md").write_text("a card")
    # Larger than what is read whole.
    (directory / "model.safetensors").write_bytes(bytes(range(256)) * 2**15)
    return directory


def test_a_copy_has_the_same_and_a_changed_model_another(model: Path, tmp_path: Path) -> None:
    fingerprint = model_fingerprint(model)
    shutil.copytree(model, tmp_path / "copy")
    (tmp_path / "copy" / "README.md").write_text("another card")
    assert model_fingerprint(tmp_path / "copy") == fingerprint
    found = {fingerprint}
    weights = (model / "model.safetensors").read_bytes()
    changes = {
        "config.json": b"{} ",
        "model.safetensors": bytes(byte ^ 1 for byte in weights),
        "chat_template.jinja": b"{{ messages }}",
    }
    for name, content in changes.items():
        (model / name).write_bytes(content)
        found.add(model_fingerprint(model))
    (model / "model.safetensors").write_bytes(weights[:-1] + b"\0")
    found.add(model_fingerprint(model))
    assert len(found) == 5


def test_questions_are_told_apart_by_what_is_asked_and_what_is_right() -> None:
    question = Question(1, ("a.png",), (Turn("human", "<image>\nWhat?"),), "two", ("read",))
    changed = [
        question,
        replace(question, id=2),
        replace(question, images=("b.png",)),
        replace(question, answer="three"),
        replace(question, system="Be brief."),
        question.with_instruction("One word."),
    ]
    assert len({questions_fingerprint([one]) for one in changed}) == len(changed)
    assert questions_fingerprint([question, changed[1]]) != questions_fingerprint([changed[1], question])
    assert questions_fingerprint([replace(question, categories=())]) == questions_fingerprint([question])
