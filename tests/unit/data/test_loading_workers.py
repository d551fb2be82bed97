"""Shows how many processes load a stage's data where the recipe does not say."""

import os
from pathlib import Path

import pytest

from megatron_sts.config import DataConfig
from megatron_sts.data import workers
from megatron_sts.data.workers import loading_workers


@pytest.mark.parametrize(
    ("gpu", "cores", "ranks", "images", "expected"),
    [
        (True, 128, 8, "images", 4),
        (True, 16, 8, "images", 1),
        (True, 2, 1, "images", 1),
        (True, 24, 8, "images", 2),
        (True, 128, 8, None, 0),
        (False, 128, 8, "images", 0),
    ],
)
def test_as_many_as_there_are_cores_for(
    monkeypatch: pytest.MonkeyPatch, gpu: bool, cores: int, ranks: int, images: str | None, expected: int
) -> None:
    monkeypatch.setattr(workers, "has_gpu", lambda: gpu)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(cores)))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
    data = DataConfig(train=Path("data.json"), images=None if images is None else Path(images))
    assert loading_workers(data) == expected
    assert loading_workers(data.model_copy(update={"workers": 3})) == 3
