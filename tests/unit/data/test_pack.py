"""Shows that shards hold the records and the files of their images as they were, and that other readers read them."""

import json
import tarfile
from pathlib import Path
from typing import Any, ClassVar

import pytest

from megatron_sts.data.pack import pack
from megatron_sts.errors import DataError
from tests.tiny import tiny_data


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tiny_data(tmp_path, records=8)


def _contents(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_every_record_and_image_is_there_byte_for_byte(data: Path, tmp_path: Path) -> None:
    packed = pack(data, tmp_path / "images", tmp_path / "shards", shard_bytes=40_000)
    assert list(packed.shards) == ["shard-000000.tar", "shard-000001.tar"] and packed.images == 7
    members: dict[str, bytes] = {}
    for name in packed.shards:
        with tarfile.open(tmp_path / "shards" / name) as shard:
            for member in shard:
                assert member.isreg() and member.mtime == 0
                file = shard.extractfile(member)
                assert file is not None
                members[member.name] = file.read()
    for number, record in enumerate(json.loads(data.read_text())):
        assert json.loads(members.pop(f"{number:09d}.json")) == record
        if "image" in record:
            assert members.pop(f"{number:09d}.0.png") == (tmp_path / "images" / record["image"]).read_bytes()
    assert not members


def test_the_same_input_gives_the_same_bytes(data: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        pack(data, tmp_path / "images", tmp_path / name, shard_bytes=1 << 20)
    assert _contents(tmp_path / "one") == _contents(tmp_path / "two")


def test_energon_reads_the_shards(data: Path, tmp_path: Path) -> None:
    energon = pytest.importorskip("megatron.energon")
    pack(data, tmp_path / "images", tmp_path / "shards", shard_bytes=40_000)

    class Whole(energon.DefaultTaskEncoder):
        cookers: ClassVar[list[Any]] = [energon.Cooker(energon.stateless(lambda sample: sample))]

    dataset = energon.get_train_dataset(
        tmp_path / "shards",
        worker_config=energon.WorkerConfig(rank=0, world_size=1, num_workers=0),
        batch_size=None,
        shuffle_buffer_size=None,
        max_samples_per_sequence=None,
        task_encoder=Whole(),
        repeat=False,
    )
    found = {sample["__key__"].split("/")[-1]: sample for sample in energon.get_loader(dataset)}
    assert len(found) == 8
    for number, record in enumerate(json.loads(data.read_text())):
        sample = found[f"{number:09d}"]
        parts = {name for name in sample if not name.startswith("__")}
        assert parts == ({"json", "0.png"} if "image" in record else {"json"})
        assert sample["json"] == record


def test_what_is_there_is_not_overwritten(data: Path, tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    with pytest.raises(DataError, match="exists already"):
        pack(data, tmp_path / "images", tmp_path / "shards", shard_bytes=1 << 20)


@pytest.mark.parametrize("damage", ["missing", "outside", "empty"])
def test_a_bad_image_leaves_no_directory(data: Path, tmp_path: Path, damage: str) -> None:
    picture = tmp_path / "images" / "3.png"
    picture.unlink()
    if damage == "outside":
        picture.symlink_to(data)
    elif damage == "empty":
        picture.touch()
    with pytest.raises(DataError, match=r"no such image|outside the image folder|is empty"):
        pack(data, tmp_path / "images", tmp_path / "shards", shard_bytes=1 << 20)
    assert not (tmp_path / "shards").exists()
