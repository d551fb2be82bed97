"""Shows that shards hold the records and the files of their images as they were, and that other readers read them."""

import base64
import json
import tarfile
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from megatron_sts.data import ImageReader, load_image_processor, read_samples
from megatron_sts.data.check import check_data
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


def embedded_data(folder: Path) -> tuple[Path, list[Path]]:
    """Records with images inside, in all the ways there are, one beside a path; and the files of the images."""
    files = [folder / "images" / f"{number}.png" for number in (0, 1, 3)]
    first, second, third = (base64.b64encode(file.read_bytes()).decode() for file in files)
    turns = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "red"}]
    parts: list[Any] = [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{first}"}},
        {"type": "text", "text": "and"},
        {"type": "image", "bytes": second, "path": "x.png"},
        {"type": "image", "image": "3.png"},
    ]
    records = [
        {"image": first, "conversations": turns},
        {"images": [{"bytes": second, "path": None}, "0.png"], "conversations": turns},
        {"messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": "red"}]},
        {"image": f"data:;base64,{third}", "conversations": turns},
    ]
    data = folder / "embedded.jsonl"
    data.write_text("\n".join(map(json.dumps, records)))
    return data, [files[place] for place in (0, 1, 0, 0, 1, 2, 2)]


def test_images_inside_records_become_files_of_the_shard_and_train_alike(data: Path, tmp_path: Path) -> None:
    embedded, files = embedded_data(tmp_path)
    packed = pack(embedded, tmp_path / "images", tmp_path / "shards", shard_bytes=1 << 20)
    assert packed.images == 7
    found, given = read_samples(tmp_path / "shards"), read_samples(embedded)
    processor = load_image_processor(None, "clip", 56)
    shards, folder = ImageReader(processor, None), ImageReader(processor, tmp_path / "images")
    for one, other in zip(found, given, strict=True):
        assert (one.id, one.turns) == (other.id, other.turns)
        for member, image in zip(one.images, other.images, strict=True):
            file = files.pop(0)
            assert member.read() == file.read_bytes()  # type: ignore[union-attr]
            assert torch.equal(shards.read(member), folder.read(image))
            assert torch.equal(shards.read(member), folder.read(file.name))
    with tarfile.open(tmp_path / "shards" / "shard-000000.tar") as shard:
        texts = [shard.extractfile(name).read() for name in shard.getnames() if name.endswith(".json")]  # type: ignore[union-attr]
    assert max(map(len, texts)) < 400
    assert json.loads(texts[1])["images"] == [{"bytes": "000000001.0.png", "path": None}, "0.png"]


def test_images_inside_records_are_checked_as_files_are(data: Path, tmp_path: Path) -> None:
    embedded, _ = embedded_data(tmp_path)
    lines = embedded.read_text().splitlines()
    damaged = lines[0].replace("red", "damaged").replace("iVBORw0KGgoAAAANSUhEUgAA", "iVBORw0KGgoAAAANSUhEUgBB")
    embedded.write_text("\n".join([*lines, damaged]))
    for workers in (0, 2):
        usable = tmp_path / f"usable{workers}.jsonl"
        found = check_data(embedded, tmp_path / "images", workers=workers, usable_file=usable)
        assert (found["records"], found["usable"], found["text_only"]) == (5, 4, 0)
        assert found["images"] == {"named": 8, "files": 2, "embedded": 6, "bad_files": 1, "most_in_a_record": 3}
        (problem,) = found["problems"]["images"]
        assert (problem["id"], problem["image"]) == ("4", "inside the record")
        assert problem["problem"].startswith("image: an image inside the record ('iVBORw0KGgo")
        assert usable.read_text() == "".join(f"{line}\n" for line in lines)
    # Also without a folder: the images that are there need none.
    assert check_data(embedded, None)["images"]["bad_files"] == 1


def test_a_damaged_image_inside_a_record_leaves_no_shards(data: Path, tmp_path: Path) -> None:
    record = {
        "image": {"bytes": "!!"},
        "conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}],
    }
    (tmp_path / "bad.json").write_text(json.dumps([record]))
    with pytest.raises(DataError, match=r"image.bytes: .*is no base64"):
        pack(tmp_path / "bad.json", None, tmp_path / "shards", shard_bytes=1 << 20)
    assert not (tmp_path / "shards").exists()
