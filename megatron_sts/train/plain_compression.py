"""The plain way to compress under sequence parallelism, which a benchmark measures ours against."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_sts.data import Batch
from megatron_sts.model.compressor import compress
from megatron_sts.model.merge import VisualRows, visual_rows
from megatron_sts.model.visual_tokens import VisualTokens
from megatron_sts.parallel.exchange import own_share
from megatron_sts.sts import StepPlan


class PlainVisualTokens(VisualTokens):
    """Gather the features of all images on every rank, project them all, select, keep the own chunk's.

    For a tower that is frozen; the tower's work is shared out here too, so that the rest is compared.
    """

    def gathered(self, batch: Batch, plan: StepPlan) -> Tensor:
        """All features [n, N, w] of the micro-batch, on every rank."""
        count, size = batch.image_rows.size(0), self.group.size()
        shares = [len(own_share(count, rank, size)) for rank in range(size)]
        assert batch.pixels is not None
        own = self.features(batch.pixels)
        # Gathering pads to the longest share; the shares differ by one image at most.
        padded = own.new_zeros(max(shares), *own.shape[1:])
        padded[: len(own)] = own
        gathered = own.new_empty(size * max(shares), *own.shape[1:])
        dist.all_gather_into_tensor(gathered, padded, group=self.group)
        return torch.cat([part[:held] for part, held in zip(gathered.chunk(size), shares, strict=True)])

    def projected_rows(
        self, batch: Batch, plan: StepPlan, segments: Sequence[int] | None = None
    ) -> tuple[Tensor, VisualRows]:
        """As in VisualTokens, by way of every visual token on every rank."""
        features = self.gathered(batch, plan)
        projected = self.projector(features.flatten(0, 1)).unflatten(0, features.shape[:2])
        chunk = self.chunk(segments or (batch.tokens.size(1),), self.group.rank())
        rows = visual_rows(batch.image_rows, batch.image_starts, plan.visual_tokens, chunk)
        kept = compress(projected, plan, self.image_context(batch, plan, slice(0, len(projected)), lambda rows: rows))
        return kept[rows.image, rows.slot], rows
