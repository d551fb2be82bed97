"""Files of others that would run code, leave their folder or fill the memory: refused by name, and nothing ran."""

import json
import pickle
import zlib
from pathlib import Path
from typing import Any

import pytest

from megatron_sts.data.pictures import read_picture, resolve_image
from megatron_sts.data.tokenizer import load_tokenizer
from megatron_sts.errors import MegatronStsError
from megatron_sts.hf.source import open_source
from tests.faults.bounds import within
from tests.tiny import tiny_recipe


class _Canary:
    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self) -> Any:
        return Path.touch, (self.file,)


@pytest.mark.fault("code beside a tokenizer (auto_map), pickled weights: never run")
def test_code_that_comes_with_a_model_is_not_run(tmp_path):
    canary = tmp_path / "canary"
    recipe = tiny_recipe(tmp_path)
    directory = recipe.model.tokenizer
    assert directory is not None
    (directory / "own.py").write_text(f"open({str(canary)!r}, 'w')\n")
    settings = json.loads((directory / "tokenizer_config.json").read_text())
    settings |= {"auto_map": {"AutoTokenizer": ["own.Own", "own.Own"]}, "tokenizer_class": "Own"}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    try:
        load_tokenizer(recipe)
    except MegatronStsError as error:
        assert str(directory) in str(error)  # noqa: PT017
    assert not canary.exists()

    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "pytorch_model.bin").write_bytes(pickle.dumps(_Canary(canary)))
    with pytest.raises(MegatronStsError, match=r"pytorch_model\.bin"):
        open_source(tmp_path / "model")
    with pytest.raises(MegatronStsError, match=r"pytorch_model\.bin"):
        open_source(tmp_path / "model", allow_pickle=True)
    assert not canary.exists()


def _png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
    compressor = zlib.compressobj(9)
    row = bytes(1 + 3 * width)
    body = b"".join(compressor.compress(row) for _ in range(min(height, 2000))) + compressor.flush()
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@pytest.mark.fault("a PNG of 30,000 x 30,000 pixels: refused by name in less than 2 s and 1 GB")
def test_picture_that_would_fill_the_memory_is_refused(tmp_path):
    file = tmp_path / "bomb.png"
    file.write_bytes(_png(30_000, 30_000))
    with within(2, 1 << 20), pytest.raises(MegatronStsError, match=r"bomb\.png"):
        read_picture(file)


@pytest.mark.fault("data paths that leave the image folder: ../, absolute, by a symbolic link: refused by name")
@pytest.mark.parametrize("path", ["../outside.png", "/etc/hostname", "link.png", "folder/outside.png"])
def test_picture_outside_of_its_folder_is_refused(tmp_path, path):
    root = tmp_path / "images"
    root.mkdir()
    (tmp_path / "outside.png").write_bytes(_png(4, 4))
    (root / "link.png").symlink_to(tmp_path / "outside.png")
    (root / "folder").symlink_to(tmp_path)
    with pytest.raises(MegatronStsError, match=path.rpartition("/")[2]):
        resolve_image(root, path)
