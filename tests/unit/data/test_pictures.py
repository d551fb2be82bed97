"""Shows that every kind of image file is converted to the right colours or refused by name."""

import os
import resource
import socket
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from megatron_sts.data.pictures import read_picture, resolve_image
from megatron_sts.errors import DataError


def colours(file: Path) -> np.ndarray:
    picture = read_picture(file)
    assert picture.mode == "RGB"
    return np.asarray(picture)


@pytest.mark.parametrize(
    ("mode", "value", "expected"),
    [
        ("1", 1, (255, 255, 255)),
        ("L", 90, (90, 90, 90)),
        # Transparency is dropped, and the colour below it stays.
        ("LA", (90, 0), (90, 90, 90)),
        ("RGBA", (10, 20, 30, 0), (10, 20, 30)),
        ("RGB", (10, 20, 30), (10, 20, 30)),
    ],
)
def test_grey_and_transparent_pictures_become_rgb(
    tmp_path: Path, mode: str, value: int, expected: tuple[int, int, int]
) -> None:
    Image.new(mode, (3, 2), value).save(tmp_path / "a.png")
    found = colours(tmp_path / "a.png")
    assert found.shape == (2, 3, 3) and (found == expected).all()


def test_a_palette_with_transparency_keeps_its_colours(tmp_path: Path) -> None:
    picture = Image.new("P", (2, 1))
    picture.putpalette([200, 0, 0, 0, 0, 100])
    picture.putdata([0, 1])
    picture.save(tmp_path / "a.png", transparency=bytes([0, 255]))
    assert colours(tmp_path / "a.png").tolist() == [[[200, 0, 0], [0, 0, 100]]]


def test_sixteen_bits_keep_their_upper_eight(tmp_path: Path) -> None:
    values = np.array([[0, 0x1234, 0xFFFF]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    Image.fromarray(values).save(tmp_path / "a.tif")
    (tmp_path / "a.pgm").write_bytes(b"P5 3 1 65535\n" + values.astype(">u2").tobytes())
    for name in ("a.png", "a.tif", "a.pgm"):
        assert colours(tmp_path / name)[0, :, 0].tolist() == [0, 0x12, 0xFF], name


@pytest.mark.parametrize("values", [np.float32, np.int32])
def test_values_of_unknown_range_are_refused(tmp_path: Path, values: type[np.generic]) -> None:
    Image.fromarray(np.ones((2, 2), dtype=values)).save(tmp_path / "a.tif")
    with pytest.raises(DataError, match=r"a\.tif: found values of 32 bits.*8 bits a channel"):
        read_picture(tmp_path / "a.tif")


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    # No cyan, all magenta and yellow: red.
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=95)
    assert np.abs(colours(tmp_path / "a.jpg").astype(int) - [255, 0, 0]).max() <= 3


@pytest.mark.parametrize("name", ["a.gif", "a.png", "a.webp"])
def test_of_an_animation_the_first_frame_is_read(tmp_path: Path, name: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime")]
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], lossless=True)
    with Image.open(tmp_path / name) as saved:
        assert getattr(saved, "n_frames", 1) == 2
    assert (colours(tmp_path / name) == [255, 0, 0]).all()


@pytest.mark.parametrize(
    ("orientation", "expected"),
    [
        (1, [[1, 2, 3], [4, 5, 6]]),
        (2, [[3, 2, 1], [6, 5, 4]]),
        (3, [[6, 5, 4], [3, 2, 1]]),
        (4, [[4, 5, 6], [1, 2, 3]]),
        (5, [[1, 4], [2, 5], [3, 6]]),
        (6, [[4, 1], [5, 2], [6, 3]]),
        (7, [[6, 3], [5, 2], [4, 1]]),
        (8, [[3, 6], [2, 5], [1, 4]]),
    ],
)
def test_a_picture_is_turned_as_its_camera_says(tmp_path: Path, orientation: int, expected: list[list[int]]) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.array([[1, 2, 3], [4, 5, 6]], dtype=np.uint8)).save(tmp_path / "a.png", exif=exif)
    assert colours(tmp_path / "a.png")[:, :, 0].tolist() == expected


def test_a_single_pixel_is_a_picture(tmp_path: Path) -> None:
    Image.new("RGB", (1, 1), (1, 2, 3)).save(tmp_path / "a.png")
    assert colours(tmp_path / "a.png").tolist() == [[[1, 2, 3]]]


def test_a_very_long_picture_is_refused(tmp_path: Path) -> None:
    for size in ((1, 20000), (20000, 1)):
        Image.new("L", size).save(tmp_path / "long.png")
        with pytest.raises(DataError, match=r"long\.png: found \d+ x \d+ pixels, one side more than 200 times"):
            read_picture(tmp_path / "long.png")
    Image.new("L", (200, 1)).save(tmp_path / "wide.png")
    assert read_picture(tmp_path / "wide.png").size == (200, 1)


def test_a_picture_that_will_be_padded_counts_as_a_square(tmp_path: Path) -> None:
    Image.new("L", (20, 4)).save(tmp_path / "a.png")
    assert read_picture(tmp_path / "a.png", max_pixels=80).size == (20, 4)
    assert read_picture(tmp_path / "a.png", max_pixels=400, pads=True).size == (20, 4)
    with pytest.raises(DataError, match=r"20 x 4 pixels, padded to a square, more than 399; make the picture smaller"):
        read_picture(tmp_path / "a.png", max_pixels=399, pads=True)
    with pytest.raises(DataError, match=r"20 x 4 pixels, more than 79"):
        read_picture(tmp_path / "a.png", max_pixels=79)


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def test_a_decompression_bomb_is_refused_at_once_and_in_little_memory(tmp_path: Path) -> None:
    side, bomb = 30_000, tmp_path / "bomb.png"
    squeezed = zlib.compressobj(9)
    row = bytes(1 + 3 * side)
    pixels = b"".join(squeezed.compress(row) for _ in range(200)) + squeezed.flush()
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    bomb.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b""))
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    with pytest.raises(DataError, match=r"bomb\.png: .*900000000 pixels.*"):
        read_picture(bomb)
    assert time.monotonic() - began < 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


def test_truncated_pictures_are_refused(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    for name in ("a.png", "a.jpg", "a.gif", "a.webp", "a.bmp", "a.tif"):
        file = tmp_path / name
        Image.fromarray(noise).save(file)
        whole = file.read_bytes()
        for share in (2, 10):
            file.write_bytes(whole[: len(whole) // share])
            with pytest.raises(DataError, match=rf"{name}: cannot be decoded .*; replace it"):
                read_picture(file)


def test_what_is_no_picture_of_a_known_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("not a picture")
    # Pillow would start Ghostscript for it.
    (tmp_path / "script.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 1 1\n%%EndComments\nshowpage\n")
    Image.new("L", (2, 2)).save(tmp_path / "icon.ico")
    for name in ("text.jpg", "script.png", "icon.ico"):
        with pytest.raises(DataError, match=rf"{name}: cannot be decoded \(no picture in one of the formats BMP, GIF"):
            read_picture(tmp_path / name)


def test_what_is_no_file_is_refused_without_waiting_for_it(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "device").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        for name in ("folder", "pipe", "device", "socket"):
            with pytest.raises(DataError, match=rf"{name}: found a folder, a pipe or a device"):
                read_picture(tmp_path / name)


def test_missing_and_empty_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    with pytest.raises(DataError, match=r"empty\.png: is empty; replace"):
        read_picture(tmp_path / "empty.png")
    with pytest.raises(DataError, match=r"none\.png: no such image; add it or remove"):
        read_picture(tmp_path / "none.png")
    with pytest.raises(DataError, match=r"cannot be read .*correct the path"):
        read_picture(tmp_path / ("a" * 300 + ".png"))


def test_nothing_outside_the_folder_is_found(tmp_path: Path) -> None:
    root = tmp_path.resolve() / "images"
    root.mkdir()
    (tmp_path / "outside.png").touch()
    (root / "link.png").symlink_to(tmp_path / "outside.png")
    (root / "folder").symlink_to(tmp_path)
    for path in ("../outside.png", str(tmp_path / "outside.png"), "link.png", "folder/outside.png", "/etc/passwd"):
        with pytest.raises(DataError, match=r"outside the image folder .*data\.images"):
            resolve_image(root, path)
    (root / "circle.png").symlink_to(root / "circle.png")
    with pytest.raises(DataError, match=r"circle\.png': cannot be followed"):
        resolve_image(root, "circle.png")
