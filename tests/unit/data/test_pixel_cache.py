"""Shows that the cache reads a picture once, stays within its bound and never hands out its own memory."""

import torch

from megatron_sts.data import PixelCache


class Disk:
    """Counts how often each path is read."""

    def __init__(self) -> None:
        self.reads: list[str] = []

    def read(self, path: str) -> torch.Tensor:
        self.reads.append(path)
        return torch.full((4,), float(path))


def test_what_fits_is_read_once_and_the_rest_each_time() -> None:
    disk, cache = Disk(), PixelCache(capacity_bytes=2 * 16)
    for _ in range(2):
        values = [cache.get(path, disk.read)[0].item() for path in ("1", "2", "3")]
        assert values == [1, 2, 3]
    assert disk.reads == ["1", "2", "3", "3"]


def test_no_capacity_holds_nothing() -> None:
    disk, cache = Disk(), PixelCache(0)
    for _ in range(2):
        cache.get("1", disk.read)
    assert disk.reads == ["1", "1"]


def test_changing_a_picture_does_not_change_the_held_one() -> None:
    disk, cache = Disk(), PixelCache(1024)
    for _ in range(3):
        pixels = cache.get("1", disk.read)
        assert pixels.tolist() == [1, 1, 1, 1]
        pixels.zero_()
    assert disk.reads == ["1"]


def test_a_held_picture_keeps_its_type_and_shape() -> None:
    picture = torch.randn(3, 2, 2).to(torch.bfloat16)
    cache = PixelCache(1024)
    for _ in range(2):
        found = cache.get("1", lambda path: picture)
        assert found.dtype == torch.bfloat16 and torch.equal(found, picture)
