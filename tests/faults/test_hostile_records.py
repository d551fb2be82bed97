"""Records that were mangled: a typed error that says what is wrong, or a sample that encodes; nothing else."""

import copy
import json
from typing import Any

import pytest
from hypothesis import strategies as st

from megatron_sts.data import TEMPLATES, encode, read_samples
from megatron_sts.data.tokenizer import load_tokenizer
from megatron_sts.errors import MegatronStsError
from tests.faults.test_hostile_recipes import _meet, _places
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
PLACES = [place for place in _places(RECORD) if place]


@st.composite
def mangled_records(draw: st.DrawFn) -> dict[str, Any]:
    """The record with one to three of its values replaced or removed."""
    record = copy.deepcopy(RECORD)
    for place in draw(st.lists(st.sampled_from(PLACES), min_size=1, max_size=3)):
        here: Any = record
        try:
            for key in place[:-1]:
                here = here[key]
            if draw(st.booleans()):
                del here[place[-1]]
            else:
                here[place[-1]] = draw(st.sampled_from(ODD_VALUES))
        except (KeyError, IndexError, TypeError):
            continue
    return record


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

    _meet(count, mangled_records(), check)
    assert min(outcomes.values()) > 0, outcomes
