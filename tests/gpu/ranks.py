"""Whether two ranks on one GPU, joined by NCCL, train as one does. Right or wrong: how fast says nothing here."""

import contextlib
import functools
import os
import pickle
import random
import socket
from pathlib import Path
from typing import Any

import torch

from megatron_sts.config import Recipe
from megatron_sts.parallel.device import has_gpu
from megatron_sts.parallel.groups import stop_groups
from tests.gpu.first import compare
from tests.gpu.recipes import checked_recipe
from tests.gpu.slot import Slot
from tests.parallel.observe import observe_rank_all, put_together

PART = "ranks"
_LAYOUTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "tensor and sequence parallel, compressed": (
        {"tensor": 2, "sequence_parallel": True},
        {"tune__compress": {"keep_ratio": 0.5}},
    ),
    # Draws that do not depend on the layout.
    "pipeline, layers skipped": (
        {"pipeline": 2},
        {"tune__skip": {"alpha": 0.6, "epsilon": 0.4, "selection": "independent"}},
    ),
}
_STEPS = 1
# Of bf16, where sums are taken in other orders.
_TOLERANCES = (4e-3, 0.04)


def one(slot: Slot) -> None:
    """What is expected of two."""
    _keep(slot, "one", _recipes(slot, laid_out=False))


def rank(slot: Slot) -> None:
    """One of two ranks, by the environment."""
    if has_gpu() and torch.cuda.device_count() < 2 and torch.cuda.nccl.version() < (2, 30):
        raise RuntimeError(
            f"NCCL {torch.cuda.nccl.version()} puts no two ranks on one GPU; 2.30 does: name its libnccl.so.2 by "
            "MEGATRON_STS_NCCL"
        )
    _keep(slot, f"rank{os.environ['RANK']}", _recipes(slot, laid_out=True))
    stop_groups()


def keep(slot: Slot) -> None:
    """Compare what they found."""
    names = ("one", "rank0", "rank1")
    missing = [name for name in names if not _file(slot, name).is_file()]
    if missing:
        slot.check(PART, "two ranks train as one", False, error=f"no result of {', '.join(missing)}")
        return
    alone, *pair = (pickle.loads(_file(slot, name).read_bytes()) for name in names)
    expected, found = put_together([alone]), put_together(pair)
    for name, of_two, of_one in zip(_LAYOUTS, found, expected, strict=True):
        compare(slot, PART, name, of_two, of_one, _TOLERANCES)


def environment(rank: int) -> dict[str, str]:
    """Of one of the two ranks. NCCL puts them on one GPU from 2.30 on; MEGATRON_STS_NCCL names such a library."""
    shared = {
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_port()),
        "MEGATRON_STS_SHARE_GPU": "1",
        "NCCL_MULTI_RANK_GPU_ENABLE": "1",
        "NCCL_MAX_CTAS": "4",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    library = os.environ.get("MEGATRON_STS_NCCL")
    if library and Path(library).is_file():
        shared["LD_PRELOAD"] = library
    return shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}


@functools.cache
def _port() -> int:
    """A free one, the same for both; below those that the system gives to the processes that start beside them."""
    while True:
        with socket.socket() as tried, contextlib.suppress(OSError):
            port = random.randrange(20_000, 32_000)
            tried.bind(("127.0.0.1", port))
            return port


def _recipes(slot: Slot, laid_out: bool) -> list[Recipe]:
    shared: dict[str, Any] = {"optimizer": {"epsilon": 1e-2}, "tune__batch": {"global": 8, "micro": 2}}
    return [
        checked_recipe(slot, "ranks", 4, **shared, **({"parallel": parallel} if laid_out else {}), **changes)
        for parallel, changes in _LAYOUTS.values()
    ]


def _keep(slot: Slot, name: str, recipes: list[Recipe]) -> None:
    partial = _file(slot, name).with_suffix(".partial")
    partial.write_bytes(pickle.dumps(observe_rank_all(recipes, "tune", _STEPS)))
    partial.rename(_file(slot, name))


def _file(slot: Slot, name: str) -> Path:
    return slot.scratch / f"ranks_{name}.pickle"
