"""Shows that samples from shards are those of the json file they were packed from, with pictures from the shard."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_sts.data import ImageReader, load_image_processor, read_samples
from megatron_sts.data.pack import pack
from megatron_sts.errors import DataError
from megatron_sts.records import Member
from tests.tiny import tiny_data
from tests.unit.records.test_shards import shard

TURNS = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "two"}]


def test_packed_samples_are_those_of_the_json_file(tmp_path: Path) -> None:
    data = tiny_data(tmp_path, records=8)
    pack(data, tmp_path / "images", tmp_path / "shards", shard_bytes=40_000)
    expected, found = read_samples(data), read_samples(tmp_path / "shards")
    processor = load_image_processor(None, "clip", 56)
    folder, shards = ImageReader(processor, tmp_path / "images"), ImageReader(processor, None)
    assert len(found) == len(expected) == 8
    for one, other in zip(pickle.loads(pickle.dumps(found)), expected, strict=True):
        assert (one.id, one.turns, len(one.images)) == (other.id, other.turns, len(other.images))
        for member, path in zip(one.images, other.images, strict=True):
            assert torch.equal(shards.read(member), folder.read(path))
    assert [sample.id for sample in found[5:7]] == ["r5", "r6"]


def found_in(tmp_path: Path, value: Any, pictures: int) -> Any:
    parts = [(f"k.{number}.jpg", b"x") for number in range(pictures)]
    shard(tmp_path / "a.tar", [("k.json", json.dumps(value).encode()), *parts])
    (sample,) = read_samples(tmp_path)
    assert all(isinstance(image, Member) for image in sample.images)
    return sample


@pytest.mark.parametrize(
    "record",
    [
        TURNS,
        {"conversations": TURNS},
        {"image": "/somewhere/else.jpg", "conversations": TURNS},
        {"image": "a.jpg", "conversations": [{"from": "human", "value": "What?"}, TURNS[1]]},
        {
            "messages": [
                {"role": "user", "content": [{"type": "image", "image": "a.jpg"}, {"type": "text", "text": "What?"}]},
                {"role": "assistant", "content": "two"},
            ]
        },
    ],
)
def test_the_pictures_in_the_shard_stand_for_those_that_are_named(tmp_path: Path, record: Any) -> None:
    sample = found_in(tmp_path, record, 1)
    assert len(sample.images) == 1 and sample.turns[0].text.count("<image>") == 1


@pytest.mark.parametrize(
    ("record", "pictures", "expected"),
    [
        ({"image": "a.jpg", "conversations": TURNS}, 0, "image: found 1 of them and 0 pictures in the shard"),
        ({"image": ["a.jpg", "b.jpg"], "conversations": TURNS}, 1, "image: found 2 of them and 1 pictures"),
        (TURNS, 2, "found 1 <image> in the human turns and 2 in 'image'"),
        ({"caption": "two"}, 1, "conversations: found nothing"),
        (7, 1, "found a int; a record is an object"),
    ],
)
def test_a_record_that_does_not_fit_its_pictures_is_named(
    tmp_path: Path, record: Any, pictures: int, expected: str
) -> None:
    with pytest.raises(DataError) as caught:
        found_in(tmp_path, record, pictures)
    assert "record 0" in str(caught.value) and expected in str(caught.value)
