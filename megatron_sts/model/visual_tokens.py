"""From pictures to the visual tokens of a rank's own part of the sequence: tower, compressor, exchange.

Shapes: n images, m of them this rank's share, K visual tokens kept of an image, v tokens of the own chunk, w the
tower's width, h hidden size.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from megatron.core.models.gpt import GPTModel
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megatron_sts.data import NO_TOKEN, Batch
from megatron_sts.model.compressor import NEEDS_GUIDE, ImageContext, compress
from megatron_sts.model.merge import VisualRows, merge, visual_rows
from megatron_sts.model.projector import Projector
from megatron_sts.model.vision import VisionTower
from megatron_sts.parallel.exchange import gather_from_all, own_share, send_to_owners
from megatron_sts.parallel.sequence import own_ranges
from megatron_sts.sts import StepPlan


@dataclass(frozen=True)
class VisualTokens:
    """Makes the visual tokens of a micro-batch, the work shared out over the tensor-parallel ranks.

    group: those ranks. context: the context-parallel ones, each of which does this for its own part of the sequence
    and runs the tower for all images.
    """

    vision: VisionTower
    projector: Projector
    language: GPTModel
    group: dist.ProcessGroup
    context: dist.ProcessGroup
    config: TransformerConfig

    def embed_into(self, text: Tensor, batch: Batch, plan: StepPlan) -> Tensor:
        """Text embeddings [s, b, h] of the own chunk -> those with the kept visual tokens in their slots."""
        projected, rows = self.projected_rows(batch, plan)
        if rows.image.numel():
            return merge(text, projected, rows)
        # No visual token here: a row weighted with zero, so that every gradient arrives everywhere.
        return text + 0.0 * projected.sum() if projected.requires_grad else text

    def projected_rows(self, batch: Batch, plan: StepPlan) -> tuple[Tensor, VisualRows]:
        """The kept visual tokens [v, h] of the own chunk and their places; one row where there are none."""
        features, rows = self.own_rows(batch, plan)
        if not features.size(0):
            features = torch.cat([features, features.new_zeros(1, features.size(1))])
        return self.projector(features), rows

    def own_rows(self, batch: Batch, plan: StepPlan) -> tuple[Tensor, VisualRows]:
        """Features [v, w] of the kept visual tokens in this rank's chunk of the sequence, and where each belongs.

        1. Run the tower on this rank's share of the images and compress them: [m, K, w].
        2. Under sequence parallelism send each kept row to the rank whose chunk has its slot; without it every rank
           needs all of them.

        Contract: planning/costs.py counts the tower as shared out, except where it is trained without sequence
        parallelism: its gradients would then be shares that megatron-core does not sum.
        """
        rank, size, length = self.group.rank(), self.group.size(), batch.tokens.size(1)
        count = batch.image_rows.size(0)
        exchanges = self.config.sequence_parallel and size > 1
        shared = size > 1 and (exchanges or not is_trained(self.vision))
        chunks = [self.chunk(length, other) for other in range(size)]
        own_chunk = chunks[rank]
        rows = visual_rows(batch.image_rows, batch.image_starts, plan.visual_tokens, own_chunk)
        shares = [own_share(count, other, size) for other in range(size)] if shared else [range(count)]
        own = shares[rank] if shared else shares[0]
        kept = self._kept(batch, plan, own).flatten(0, 1)
        if not exchanges:
            if count and shared:
                kept = gather_from_all(kept, [len(share) * plan.visual_tokens for share in shares], self.group)
            # Without context parallelism all rows are held, in their order.
            return kept if self.context.size() == 1 else kept[rows.image * plan.visual_tokens + rows.slot], rows
        if not count:
            return kept, rows
        places = [visual_rows(batch.image_rows, batch.image_starts, plan.visual_tokens, chunk) for chunk in chunks]
        mine = [(place.image >= own.start) & (place.image < own.stop) for place in places]
        order = torch.cat(
            [
                (place.image[held] - own.start) * plan.visual_tokens + place.slot[held]
                for place, held in zip(places, mine, strict=True)
            ]
        )
        sent = [int(held.sum()) for held in mine]
        # Shares are neighbours in the order of the ranks, so that what arrives is in the order of `rows`.
        received = [int(((rows.image >= share.start) & (rows.image < share.stop)).sum()) for share in shares]
        return send_to_owners(kept[order], sent, received, self.group), rows

    def chunk(self, length: int, rank: int) -> tuple[tuple[int, int], ...]:
        """What a tensor-parallel rank beside this one holds of a sequence."""
        place = (rank, self.group.size()) if self.config.sequence_parallel else (0, 1)
        return own_ranges(length, *place, self.context.rank(), self.context.size())

    def _kept(self, batch: Batch, plan: StepPlan, own: range) -> Tensor:
        """[m, K, w] of the own images. A trained tower takes part also without one, on a black picture."""
        images = slice(own.start, own.stop)
        context = self.image_context(batch, plan, images, self._project_to_score)
        if not len(own):
            weight = next(self.vision.parameters())
            if torch.is_grad_enabled() and is_trained(self.vision):
                black = torch.zeros(1, 3, *self.vision.image_shape, dtype=weight.dtype, device=weight.device)
                return self.features(black)[:0, : plan.visual_tokens]
            return torch.zeros(
                0,
                plan.visual_tokens,
                self.projector.linear_1.in_features,
                dtype=self.projector.linear_1.weight.dtype,
                device=weight.device,
            )
        assert batch.pixels is not None and batch.visual_tokens == plan.visual_tokens
        return compress(self.features(batch.pixels[images]), plan, context)

    def image_context(
        self, batch: Batch, plan: StepPlan, images: slice, project: Callable[[Tensor], Tensor]
    ) -> ImageContext:
        """What a strategy may know of some images; all ranks of the group call it, as words may be summed over it."""
        guided = batch.image_rows.size(0) and plan.strategy in NEEDS_GUIDE
        return ImageContext(
            batch.image_samples[images], self._guides(batch.guides)[images] if guided else None, project
        )

    def features(self, pixels: Tensor) -> Tensor:
        """pixels [m, 3, H, W] -> the tower's features [m, N, w], with gradients only where the tower is trained."""
        dtype = next(self.vision.parameters()).dtype
        with torch.set_grad_enabled(torch.is_grad_enabled() and is_trained(self.vision)):
            return self.vision(pixels.to(dtype))

    @torch.no_grad()
    def _project_to_score(self, features: Tensor) -> Tensor:
        return self.projector(features)

    @torch.no_grad()
    def _guides(self, guides: Tensor) -> Tensor:
        """guides [n, g] token ids -> the mean of their embeddings [n, h] in fp32, zero for an image without any.

        Each rank looks up its own part of the vocabulary; the sums go over the group once.
        """
        words = self.language.embedding.word_embeddings
        local = guides - words.vocab_start_index
        held = (guides != NO_TOKEN) & (local >= 0) & (local < words.weight.size(0))
        sums = (words.weight[local * held].float() * held[:, :, None]).sum(dim=1)
        if self.group.size() > 1:
            dist.all_reduce(sums, group=self.group)
        return sums / (guides != NO_TOKEN).sum(dim=1, keepdim=True).clamp_min(1)


def is_trained(module: torch.nn.Module) -> bool:
    """Whether any parameter of a module has gradients."""
    return any(parameter.requires_grad for parameter in module.parameters())
