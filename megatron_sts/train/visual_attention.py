"""How much of their attention text tokens give to visual ones: from the queries and keys of forward passes.

Shapes: s positions held by a context-parallel rank, S of the whole sequence, c context-parallel ranks, b micro-batch, a
query heads and g key groups of this tensor-parallel rank, d head size, n text positions.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_sts.config import Recipe
from megatron_sts.model.mllm import MultimodalModel
from megatron_sts.parallel.groups import Place
from megatron_sts.parallel.sequence import own_ranges
from megatron_sts.sts import StepPlan
from megatron_sts.train.held_out import HeldOutSamples


@dataclass(frozen=True)
class _Rows:
    """One micro-batch. is_asked, is_visual: bool [b, S], text behind an image, and visual tokens. held: the positions
    [s] of each context-parallel rank, in the order in which it holds them."""

    is_asked: Tensor
    is_visual: Tensor
    held: Sequence[Tensor]


class VisualAttention:
    """Listens to the attention of this rank's layers while held-out samples pass under a plan.

    What a layer attends to is computed once more from its queries and keys, text row by text row: the attention cores
    keep no scores. Contract: a core takes query, key and value first, scales by 1 / sqrt(d) and is causal.
    """

    def __init__(self, recipe: Recipe, chunks: list[MultimodalModel], place: Place):
        self._chunks, self._place = chunks, place
        layers = recipe.architecture.language.layers
        self._sums = torch.zeros(layers, 2, dtype=torch.float64, device=torch.cuda.current_device())

    @contextmanager
    def listening(self, samples: HeldOutSamples, plan: StepPlan) -> Iterator[None]:
        """Take in one pass over the samples under a plan."""
        rows = [row for forward in samples.passes for row in self._rows(samples, forward, plan)]
        with ExitStack() as hooks:
            for chunk in self._chunks:
                for layer in chunk.language.decoder.layers:
                    sums = self._sums[layer.layer_number - 1]
                    hook = _Hook(sums, rows, chunk.pg_collection.cp)
                    hooks.enter_context(layer.self_attention.core_attention.register_forward_pre_hook(hook))
            yield

    def by_layer(self) -> list[float]:
        """The mean share over heads and text tokens behind an image, the same on every rank; all ranks together.

        0 where there are none.
        """
        sums = self._sums.clone()
        dist.all_reduce(sums)
        return [float(mass / count) if count else 0.0 for mass, count in sums.tolist()]

    def _rows(self, samples: HeldOutSamples, forward: Any, plan: StepPlan) -> Iterator[_Rows]:
        place, length = self._place, samples.padded_length(forward, plan)
        text, lengths = samples.index.text_ranges(plan.visual_tokens), samples.index.lengths(plan.visual_tokens)
        held = [
            torch.cat([torch.arange(*part) for part in own_ranges((length,), 0, 1, rank, place.context_size)])
            for rank in range(place.context_size)
        ]
        for micro_batch in forward.own(place):
            is_text = torch.zeros(len(micro_batch), length, dtype=torch.bool)
            is_visual = torch.zeros_like(is_text)
            for row, at in enumerate(micro_batch):
                if at is None:
                    continue
                for start, end in text[at]:
                    is_text[row, start:end] = True
                is_visual[row, : int(lengths[at])] = ~is_text[row, : int(lengths[at])]
            is_asked = is_text & (is_visual.cumsum(dim=1) > 0)
            yield _Rows(is_asked, is_visual, held)


class _Hook:
    """Adds up one layer's attention over the micro-batches: its mass on visual tokens, and the rows it is of."""

    def __init__(self, sums: Tensor, rows: Sequence[_Rows], group: dist.ProcessGroup):
        self._sums, self._rows, self._group = sums, iter(rows), group

    def __call__(self, core: Any, inputs: tuple[Any, ...]) -> None:
        """query [s, b, a, d], key [s, b, g, d]."""
        query, key, one = inputs[0], inputs[1], next(self._rows)
        if len(one.held) > 1:
            parts = [torch.empty_like(key) for _ in one.held]
            dist.all_gather(parts, key.contiguous(), group=self._group)
            key = torch.cat(parts)
        own, every = one.held[self._group.rank()], torch.cat(list(one.held))
        for row in range(query.size(1)):
            asked = one.is_asked[row, own]
            if asked.any():
                seen = every[None, :] <= own[asked][:, None]
                mass = _visual_mass(query[asked.to(query.device), row], key[:, row], seen, one.is_visual[row, every])
                self._sums += torch.stack([mass.sum(dtype=torch.float64), torch.tensor(float(mass.numel())).to(mass)])


def _visual_mass(query: Tensor, key: Tensor, seen: Tensor, is_visual: Tensor) -> Tensor:
    """query [n, a, d], key [S, g, d], seen [n, S], is_visual [S] -> [n, a], the share of attention on visual keys."""
    groups = key.size(1)
    by_group = query.float().unflatten(1, (groups, -1))
    scores = torch.einsum("ngrd,sgd->ngrs", by_group, key.float()) * query.size(-1) ** -0.5
    scores = scores.masked_fill(~seen.to(query.device)[:, None, None], float("-inf"))
    return scores.softmax(dim=-1)[..., is_visual.to(query.device)].sum(dim=-1).flatten(1)
