"""The plain way to compress under sequence parallelism, which a benchmark measures ours against."""

from torch import Tensor

from megatron_sts.data import Batch
from megatron_sts.model.compressor import compress
from megatron_sts.model.merge import VisualRows, visual_rows
from megatron_sts.model.visual_tokens import VisualTokens
from megatron_sts.parallel.exchange import gather_from_all, own_share
from megatron_sts.sts import StepPlan


class PlainVisualTokens(VisualTokens):
    """Gather the features of all images on every rank, project them all, select, keep the own chunk's.

    For a tower that is frozen; the tower's work is shared out here too, so that the rest is compared.
    """

    def gathered(self, batch: Batch, plan: StepPlan) -> Tensor:
        """All features [n, N, w] of the micro-batch, on every rank."""
        count, size = batch.image_rows.size(0), self.group.size()
        shares = [own_share(count, rank, size) for rank in range(size)]
        assert batch.pixels is not None
        own = self.features(batch.pixels[shares[self.group.rank()].start : shares[self.group.rank()].stop])
        return gather_from_all(own, [len(share) for share in shares], self.group)

    def projected_rows(self, batch: Batch, plan: StepPlan) -> tuple[Tensor, VisualRows]:
        """As in VisualTokens, by way of every visual token on every rank."""
        features = self.gathered(batch, plan)
        projected = self.projector(features.flatten(0, 1)).unflatten(0, features.shape[:2])
        chunk = self.chunk(batch.tokens.size(1), self.group.rank())
        rows = visual_rows(batch.image_rows, batch.image_starts, plan.visual_tokens, chunk)
        kept = compress(projected, plan, self.image_context(batch, plan, slice(0, len(projected)), lambda rows: rows))
        return kept[rows.image, rows.slot], rows
