"""The rows of a micro-batch that hold text, for layers that leave out their MLP for visual tokens.

Shapes: s positions that this rank holds, S of all tensor-parallel ranks, b micro-batch, h hidden size; n text rows of
its own, N of all tensor-parallel ranks, k rows that it works on.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megatron_sts.config import FP8_MULTIPLE
from megatron_sts.parallel.chunk import take
from megatron_sts.parallel.device import to_device
from megatron_sts.parallel.exchange import deal_evenly, send_to_owners
from megatron_sts.parallel.sequence import Ranges, own_ranges, round_up


@dataclass(frozen=True)
class TextRows:
    """Where a rank's text rows are, and which of them it works on.

    own: int64 [n], their places in the flattened [s * b]. worked: k. sent, received: under sequence parallelism, rows
    that go to each rank of `group` and come from it, so that all work on as many; elsewhere None. gathered: int64 [N],
    the places of text in the flattened [S * b] for layers that work on the rows of all tensor-parallel ranks; then k is
    at least N, and no rows are sent.
    """

    own: Tensor
    worked: int
    sent: Sequence[int] | None = None
    received: Sequence[int] | None = None
    group: dist.ProcessGroup | None = None
    gathered: Tensor | None = None

    def apply(self, function: Callable[[Tensor], Tensor], hidden_states: Tensor) -> Tensor:
        """hidden_states [s, b, h] with `function`, which takes rows [k, 1, h] and returns as many, done to the text.

        Rows that are short of k are zeros, and what becomes of them is dropped.
        """
        flat = hidden_states.flatten(0, 1)
        rows = self._move(flat.index_select(0, self.own), self.sent, self.received)
        count = rows.size(0)
        if self.worked > count:
            # Even a padding of nothing would be a copy.
            rows = F.pad(rows, (0, 0, 0, self.worked - count))
        done = self._move(function(rows.unsqueeze(1)).squeeze(1)[:count], self.received, self.sent)
        return flat.index_copy(0, self.own, done).view_as(hidden_states)

    def _move(self, rows: Tensor, sent: Sequence[int] | None, received: Sequence[int] | None) -> Tensor:
        if sent is None or received is None or self.group is None:
            return rows
        return send_to_owners(rows, sent, received, self.group)


def text_rows(
    text: Sequence[Ranges],
    segments: Sequence[int],
    config: TransformerConfig,
    groups: ProcessGroupCollection,
    gathered: bool = False,
) -> TextRows:
    """This rank's text rows of a micro-batch; all tensor-parallel ranks agree on them without sending anything.

    text: of each row the positions of its text. segments: as for `own_ranges`. gathered: for layers that work on the
    rows of all tensor-parallel ranks.
    Under sequence parallelism text lies unevenly on the ranks, and the MLP's gather and reduce-scatter want as many
    rows of each: a rank with more than its share gives the rest to those that have fewer. Elsewhere every
    tensor-parallel rank works on all rows. At least one row is worked on, so that weights have a gradient and
    collectives their partners also where there is no text; FP8 products want whole blocks of rows.
    """
    is_text = torch.zeros(len(text), sum(segments), dtype=torch.bool, device="cpu")
    for row, ranges in enumerate(text):
        for start, end in ranges:
            is_text[row, start:end] = True
    held = own_ranges(segments, context_rank=groups.cp.rank(), context_size=groups.cp.size())
    places = take(is_text, held).t().flatten().nonzero().flatten()
    size = groups.tp.size() if config.sequence_parallel else 1
    shares = 1 if gathered else size
    worked = round_up(max(1, -(-len(places) // shares)), FP8_MULTIPLE[config.fp8_recipe] if config.fp8 else 1)
    device = torch.cuda.current_device()
    everywhere = to_device(places, device)
    if size == 1:
        return TextRows(everywhere, worked, gathered=everywhere)
    rank, chunk = groups.tp.rank(), len(text) * sum(end - start for start, end in held) // size
    owners = places // chunk
    own = places[owners == rank] - rank * chunk
    if gathered:
        return TextRows(to_device(own, device), worked, gathered=everywhere)
    moved = deal_evenly(torch.bincount(owners, minlength=size).tolist())
    received = [of_rank[rank] for of_rank in moved]
    return TextRows(to_device(own, device), worked, moved[rank], received, groups.tp)
