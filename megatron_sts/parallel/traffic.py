"""Counts the bytes that collectives move, for benchmarks."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch.distributed as dist
from megatron.core.tensor_parallel import layers, mappings
from torch import Tensor


@contextmanager
def count_traffic() -> Iterator[Counter[str]]:
    """Bytes that this rank sends to others while inside, by collective; torch.distributed's functions are wrapped, and
    those of them that megatron-core's tensor-parallel layers took for themselves.

    all_to_all_single: the rows for others. all_gather_into_tensor: the own part to each other rank.
    reduce_scatter_tensor: the parts of others. all_reduce: twice the tensor less the own share, as a ring does. Other
    collectives are not counted.
    """
    sent: Counter[str] = Counter()
    all_to_all, gather, reduce = dist.all_to_all_single, dist.all_gather_into_tensor, dist.all_reduce
    reduce_scatter = dist.reduce_scatter_tensor

    def counted_all_to_all(output: Tensor, rows: Tensor, received: Any, splits: Any, *, group: Any) -> Any:
        row_bytes = rows.element_size() * rows[:1].numel() if len(rows) else 0
        sent["all_to_all_single"] += (sum(splits) - splits[group.rank()]) * row_bytes
        return all_to_all(output, rows, received, splits, group=group)

    def counted_gather(output: Tensor, own: Tensor, *, group: Any, **options: Any) -> Any:
        sent["all_gather_into_tensor"] += own.nbytes * (group.size() - 1)
        return gather(output, own, group=group, **options)

    def counted_reduce_scatter(output: Tensor, parts: Tensor, *, group: Any, **options: Any) -> Any:
        sent["reduce_scatter_tensor"] += parts.nbytes - output.nbytes
        return reduce_scatter(output, parts, group=group, **options)

    def counted_reduce(tensor: Tensor, *, group: Any) -> Any:
        sent["all_reduce"] += 2 * tensor.nbytes * (group.size() - 1) // group.size()
        return reduce(tensor, group=group)

    wrapped: dict[str, Any] = {
        "all_to_all_single": counted_all_to_all,
        "all_gather_into_tensor": counted_gather,
        "all_reduce": counted_reduce,
        "reduce_scatter_tensor": counted_reduce_scatter,
    }
    taken: dict[str, Any] = {"dist_all_gather_func": counted_gather, "dist_reduce_scatter_func": counted_reduce_scatter}
    with patch.multiple(dist, **wrapped), patch.multiple(layers, **taken), patch.multiple(mappings, **taken):
        yield sent
