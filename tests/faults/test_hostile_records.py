"""Records that were mangled: a typed error that says what is wrong, or a sample that encodes; nothing else."""

import json
from typing import Any

import pytest

from megatron_sts.data import TEMPLATES, encode, read_samples
from megatron_sts.data.tokenizer import load_tokenizer
from megatron_sts.errors import MegatronStsError
from tests.faults.mangling import mangled, meet
from tests.tiny import tiny_recipe

RECORD: dict[str, Any] = {
    "id": "r1",
    "image": ["1.png", "2.png"],
    "conversations": [
        {"from": "human", "value": "<image>\nwhat is <image> in the picture"},
        {"from": "gpt", "value": "red green"},
        {"from": "human", "value": "describe it"},
        {"from": "gpt", "value": "dark"},
    ],
}
ODD_VALUES = (
    None, True, -1, 1e300, "", " ", "\0", "\ud800", "<image>", "<image><image>", "</s>", "<s>", "../../etc/passwd",
    "/etc/passwd", "..\\x", "x/../../y", [], {}, [[]], {"a": 1}, ["1.png"], "system", "x" * 3000, "\u202e",
    "<|im_end|>",
)  # fmt: skip


@pytest.mark.fault("mangled data records: a typed error or a sample that encodes, no traceback of a library")
def test_mangled_records_give_a_typed_error_or_a_sample(tmp_path, all_faults, record_property):
    count = 500 if all_faults else 100
    record_property("runs", count)
    recipe = tiny_recipe(tmp_path)
    tokenizer = load_tokenizer(recipe)
    file = tmp_path / "mangled.json"
    outcomes = {"sample": 0, "error": 0}

    def check(record: Any) -> None:
        file.write_text(json.dumps([record]))
        try:
            for sample in read_samples(file):
                encode(sample, TEMPLATES["vicuna_v1"], tokenizer, "")
                outcomes["sample"] += 1
        except MegatronStsError:
            outcomes["error"] += 1

    meet(count, mangled(RECORD, ODD_VALUES), check)
    assert min(outcomes.values()) > 0, outcomes
