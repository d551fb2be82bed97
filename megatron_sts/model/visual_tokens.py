"""From pictures to the visual tokens of a rank's own part of the sequence: tower, compressor, exchange.

Shapes: n images, m of them this rank's share, K visual tokens kept of an image, v tokens of the own chunk, w the
tower's width, h hidden size.
"""

from collections.abc import Callable, Sequence
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
from megatron_sts.parallel.chunk import places_in
from megatron_sts.parallel.device import to_device
from megatron_sts.parallel.exchange import own_share, send_to_owners
from megatron_sts.parallel.sequence import own_ranges
from megatron_sts.sts import StepPlan


@dataclass(frozen=True)
class VisualTokens:
    """Makes the visual tokens of a micro-batch, the tower's work shared out over the ranks that train on it.

    group: those ranks, the tensor- and context-parallel ones, of which the tensor-parallel ones are neighbours.
    tensor: the tensor-parallel ones alone, which share the vocabulary.
    """

    vision: VisionTower
    projector: Projector
    language: GPTModel
    group: dist.ProcessGroup
    tensor: dist.ProcessGroup
    config: TransformerConfig

    def embed_into(self, text: Tensor, batch: Batch, plan: StepPlan, segments: Sequence[int] | None = None) -> Tensor:
        """Text embeddings [s, b, h] of the own chunk -> those with the kept visual tokens in their slots.

        segments: as in MultimodalModel.forward.
        """
        projected, rows = self.projected_rows(batch, plan, segments)
        if rows.image.numel():
            return merge(text, projected, rows)
        # No visual token here: a row weighted with zero, so that every gradient arrives everywhere.
        return text + 0.0 * projected.sum() if projected.requires_grad else text

    def projected_rows(
        self, batch: Batch, plan: StepPlan, segments: Sequence[int] | None = None
    ) -> tuple[Tensor, VisualRows]:
        """The kept visual tokens [v, h] of the own chunk and their places; one row where there are none."""
        features, rows = self.own_rows(batch, plan, segments)
        if not features.size(0):
            features = torch.cat([features, features.new_zeros(1, features.size(1))])
        return self.projector(features), rows

    def own_rows(
        self, batch: Batch, plan: StepPlan, segments: Sequence[int] | None = None
    ) -> tuple[Tensor, VisualRows]:
        """Features [v, w] of the kept visual tokens in this rank's chunk of the sequence, and where each belongs.

        1. Run the tower on this rank's share of the images and compress them: [m, K, w].
        2. Send each kept row to the rank whose chunk has its slot; without sequence parallelism the tensor-parallel
           ranks hold the same chunk, and each gets it.

        Contract: planning/costs.py counts the tower as shared out; model/build.py marks its gradients as shares to
        be put together; the batch has the pixels of `Place.own_images` alone.
        """
        count, size = batch.image_rows.size(0), self.group.size()
        chunks = [self.chunk(segments or (batch.tokens.size(1),), rank) for rank in range(size)]
        rows = visual_rows(batch.image_rows, batch.image_starts, plan.visual_tokens, chunks[self.group.rank()])
        shares = [own_share(count, rank, size) for rank in range(size)]
        own = shares[self.group.rank()]
        kept = self._kept(batch, plan, own).flatten(0, 1)
        if size == 1 or not count:
            return kept, rows
        slots = batch.image_starts[own.start : own.stop, None] + torch.arange(plan.visual_tokens)
        held = {chunk: (places_in(chunk, slots.flatten()) >= 0).nonzero().flatten() for chunk in set(chunks)}
        leaving = torch.cat([held[chunk] for chunk in chunks])
        # Shares are neighbours in the order of the ranks, so that what arrives is in the order of `rows`.
        source = torch.repeat_interleave(torch.tensor([len(share) for share in shares]))
        received = torch.bincount(source[rows.image], minlength=size)
        return (
            send_to_owners(
                kept[to_device(leaving, kept.device)],
                [len(held[chunk]) for chunk in chunks],
                received.tolist(),
                self.group,
            ),
            rows,
        )

    def chunk(self, segments: Sequence[int], rank: int) -> tuple[tuple[int, int], ...]:
        """What a rank of the group holds of a row of segments."""
        tensor_size = self.tensor.size()
        context_rank, tensor_rank = divmod(rank, tensor_size)
        place = (tensor_rank, tensor_size) if self.config.sequence_parallel else (0, 1)
        return own_ranges(segments, *place, context_rank, self.group.size() // tensor_size)

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
        assert batch.pixels is not None and batch.pixels.size(0) == len(own)
        assert batch.visual_tokens == plan.visual_tokens
        return compress(self.features(batch.pixels), plan, context)

    def image_context(
        self, batch: Batch, plan: StepPlan, images: slice, project: Callable[[Tensor], Tensor]
    ) -> ImageContext:
        """What a strategy may know of some images; all ranks call it, as words may be summed over them."""
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

        Each rank looks up its own part of the vocabulary; the sums go over the tensor-parallel ranks once.
        """
        words = self.language.embedding.word_embeddings
        local = guides - words.vocab_start_index
        held = (guides != NO_TOKEN) & (local >= 0) & (local < words.weight.size(0))
        sums = (words.weight[local * held].float() * held[:, :, None]).sum(dim=1)
        if self.tensor.size() > 1:
            dist.all_reduce(sums, group=self.tensor)
        return sums / (guides != NO_TOKEN).sum(dim=1, keepdim=True).clamp_min(1)


def is_trained(module: torch.nn.Module) -> bool:
    """Whether any parameter of a module has gradients."""
    return any(parameter.requires_grad for parameter in module.parameters())
