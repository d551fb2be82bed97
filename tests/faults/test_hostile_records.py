"""Records that were mangled: a typed error that says what is wrong in few words, or a sample that encodes and whose
images can be read or are refused by name; nothing else."""

import base64
import json
from typing import Any

import pytest

from megatron_sts.data import TEMPLATES, encode, scan_records
from megatron_sts.data.pictures import find_picture, read_picture
from megatron_sts.data.tokenizer import load_tokenizer
from megatron_sts.data.unread_keys import UnreadKeys
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
# The least PNG: one grey pixel.
PNG = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGMAAQAABQABDQottAAAAABJRU5ErkJggg==")
ENCODED = base64.b64encode(PNG).decode()
PARTS: dict[str, Any] = {
    "id": 7,
    "image": None,
    "video": None,
    "messages": [
        {"role": "system", "content": "be brief"},
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{ENCODED}", "detail": "low"}},
                {"type": "text", "text": "what is "},
                {"type": "image", "image": {"bytes": ENCODED, "path": "1.png"}},
                {"type": "image", "path": "1.png"},
            ],
        },
        {"role": "assistant", "content": [{"type": "text", "text": "red green"}], "weight": 2},
    ],
}
ODD_VALUES = (
    None, True, -1, 1e300, "", " ", "\0", "\ud800", "<image>", "<image><image>", "</s>", "<s>", "../../etc/passwd",
    "/etc/passwd", "..\\x", "x/../../y", [], {}, [[]], {"a": 1}, ["1.png"], "system", "x" * 3000, "\u202e",
    "<|im_end|>", "x/" * 3000, ENCODED, ENCODED[:60], "/9j/" + "A" * 5000, f"data:image/png;base64,{ENCODED}",
    "data:image/png;base64,", "data:image/png;base64,====", "data:,", "data:" + "x" * 5000,
    "https://example.org/" + "y" * 5000,
    {"bytes": ENCODED, "path": None}, {"bytes": list(PNG)}, {"bytes": [-1]}, {"bytes": "%" * 5000}, {"url": "s3://a/b"},
    {"bytes": None, "path": "x" * 5000}, {"type": "video", "video": "a.mp4"}, {"type": "image"}, {"text": "a" * 5000},
    [{"type": "image_url", "image_url": {"url": ENCODED}}] * 3, "a\nb\x1b[2J.png", "image_url", "video",
)  # fmt: skip


@pytest.mark.fault("mangled data records: a typed error or a sample that encodes, no traceback of a library")
def test_mangled_records_give_a_typed_error_or_a_sample(tmp_path, all_faults, record_property):
    count = 250 if all_faults else 50
    record_property("runs", 2 * count)
    recipe = tiny_recipe(tmp_path)
    tokenizer = load_tokenizer(recipe)
    root = (tmp_path / "images").resolve()
    (root / "1.png").write_bytes(PNG)
    file = tmp_path / "mangled.json"
    outcomes = {"sample": 0, "image": 0, "error": 0}

    def refused(problem: str) -> None:
        outcomes["error"] += 1
        assert problem.isprintable() and len(problem) < 1200, problem

    def check(record: Any) -> None:
        file.write_text(json.dumps([record]))
        samples, bad = scan_records(file, unread=UnreadKeys())
        for one in bad:
            refused(str(one))
        for sample in samples:
            try:
                encode(sample, TEMPLATES["vicuna_v1"], tokenizer, "")
                outcomes["sample"] += 1
                for image in sample.images:
                    read_picture(find_picture(root, image))
                    outcomes["image"] += 1
            except MegatronStsError as error:
                refused(str(error))

    for record in (RECORD, PARTS):
        meet(count, mangled(record, ODD_VALUES), check)
    assert min(outcomes.values()) > 10, outcomes
