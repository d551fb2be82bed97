"""Block influence: how far a layer turns its hidden states, 1 - cosine of its input and output (arXiv 2403.03853)."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_sts.config import Recipe
from megatron_sts.model.mllm import MultimodalModel
from megatron_sts.parallel.chunk import take
from megatron_sts.parallel.groups import Place
from megatron_sts.parallel.sequence import own_ranges
from megatron_sts.sts import StepPlan
from megatron_sts.train.held_out import HeldOutSamples


class BlockInfluence:
    """Listens to the layers of this rank's chunks while held-out samples pass; padding does not count."""

    def __init__(self, recipe: Recipe, chunks: list[MultimodalModel], place: Place):
        self._chunks, self._place = chunks, place
        self._splits_sequence = recipe.parallel.sequence_parallel
        layers = recipe.architecture.language.layers
        self._sums = torch.zeros(layers, 2, dtype=torch.float64, device=torch.cuda.current_device())

    @contextmanager
    def listening(self, samples: HeldOutSamples, plan: StepPlan) -> Iterator[None]:
        """Take in one pass over the samples under a plan."""
        masks = self._masks(samples, plan)
        with ExitStack() as hooks:
            for chunk in self._chunks:
                for layer in chunk.language.decoder.layers:
                    hook = _Hook(self._sums[layer.layer_number - 1], masks)
                    hooks.enter_context(layer.register_forward_hook(hook, with_kwargs=True))
            yield

    def by_layer(self) -> list[float]:
        """The mean over all positions, the same on every rank; all ranks together."""
        sums = self._sums.clone()
        if self._place.tensor_rank and not self._splits_sequence:
            # Without sequence parallelism every tensor-parallel rank has the same rows.
            sums.zero_()
        dist.all_reduce(sums)
        return [float(total / count) if count else 0.0 for total, count in sums.tolist()]

    def _masks(self, samples: HeldOutSamples, plan: StepPlan) -> list[Tensor]:
        """Of each of this rank's micro-batches, in order, which of the rows [s, b] it holds are no padding."""
        place, found = self._place, []
        for forward in samples.passes:
            length = samples.padded_length(forward, plan)
            split = (place.tensor_rank, place.tensor_size) if self._splits_sequence else (0, 1)
            held = own_ranges((length,), *split, place.context_rank, place.context_size)
            for lengths in samples.lengths(forward, plan):
                is_real = torch.arange(length)[None, :] < torch.tensor(lengths)[:, None]
                found.append(take(is_real, held).T.to(self._sums.device))
        return found


class _Hook:
    """Adds up one layer's turns over the micro-batches."""

    def __init__(self, sums: Tensor, masks: list[Tensor]):
        self._sums, self._masks = sums, iter(masks)

    def __call__(self, layer: Any, inputs: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
        before = named["hidden_states"] if "hidden_states" in named else inputs[0]
        mask = next(self._masks)
        turned = 1 - torch.nn.functional.cosine_similarity(before.double(), output[0].double(), dim=-1)
        self._sums += torch.stack([(turned * mask).sum(), mask.sum().to(turned.dtype)])
