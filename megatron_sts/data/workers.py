"""Does the same with many things, in as many processes as are wanted."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from torch.utils.data import DataLoader, Dataset

from megatron_sts.config import DataConfig
from megatron_sts.errors import DataError
from megatron_sts.parallel.device import has_gpu

_MOST_LOADING_WORKERS = 4
# Items that a worker process takes at once.
_CHUNK = 64

Item = TypeVar("Item")
Found = TypeVar("Found")

Progress = Callable[[int, int], None]
"""Called with the number of things done and their total."""
StartProgress = Callable[[str], Progress]
"""Given what is counted, returns what is told how far it is."""


def untold(what: str) -> Progress:
    """The StartProgress of a job that nobody watches."""
    return lambda done, total: None


def loading_workers(data: DataConfig) -> int:
    """Processes of each rank that load a stage's data ahead; they change nothing but when it is there."""
    if data.workers is not None:
        return data.workers
    if not (has_gpu() and data.has_images):
        return 0
    cores, ranks = len(os.sched_getaffinity(0)), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    # One core of each rank is for what trains.
    return max(1, min(_MOST_LOADING_WORKERS, cores // ranks - 1))


def in_workers(
    function: Callable[[Item], Found], items: Sequence[Item], workers: int, progress: Progress
) -> Iterator[Found]:
    """`function` of every item, in order; in this process without workers.

    Contract: the function raises nothing that is the user's to mend: from a worker, it would come with a traceback.
    Raises DataError where a worker is lost.
    """
    chunks = _Chunks(function, items)
    loader = DataLoader(chunks, batch_size=None, collate_fn=_unchanged, num_workers=min(workers, len(chunks)))
    done = 0
    for chunk in _loaded(loader):
        yield from chunk
        done += len(chunk)
        progress(done, len(items))


@dataclass(frozen=True)
class _Chunks(Dataset[list[Found]], Generic[Item, Found]):
    """What a function makes of some items, chunk by chunk."""

    function: Callable[[Item], Found]
    items: Sequence[Item]

    def __len__(self) -> int:
        return -(-len(self.items) // _CHUNK)

    def __getitem__(self, number: int) -> list[Found]:
        return [self.function(item) for item in self.items[number * _CHUNK : (number + 1) * _CHUNK]]


def _loaded(loader: DataLoader[list[Found]]) -> Iterator[list[Found]]:
    try:
        yield from loader
    except RuntimeError as error:
        raise DataError(f"a worker process ended ({error}); give the machine more memory, or use fewer") from error


def _unchanged(chunk: list[Found]) -> list[Found]:
    """Keeps DataLoader from converting what a data set returns."""
    return chunk
