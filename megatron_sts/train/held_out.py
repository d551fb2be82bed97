"""Samples to measure a loss on without training: cut into forward passes, the same on every layout."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from megatron_sts.config import Recipe
from megatron_sts.data import Batch, RawItem, RawItems, to_batch
from megatron_sts.parallel.groups import Place
from megatron_sts.parallel.sequence import Ranges, padded_length
from megatron_sts.parallel.together import from_all_ranks
from megatron_sts.sts import StepPlan
from megatron_sts.train.stage_data import StageData

# Micro-batches of a forward pass for each pipeline stage: the more, the smaller the share in which stages wait.
_MICRO_BATCHES_PER_PIPELINE_STAGE = 4


@dataclass(frozen=True)
class ForwardPass:
    """Samples that go through the model together, by micro-batch; those of the data-parallel ranks take turns.

    places: of each micro-batch the places of its samples among all; None fills up with a copy without labels.
    """

    places: tuple[tuple[int | None, ...], ...]

    def own(self, place: Place) -> tuple[tuple[int | None, ...], ...]:
        """The micro-batches of this data-parallel rank."""
        return self.places[place.data_rank :: place.data_size]


class HeldOutSamples:
    """Some samples of a stage's data, never packed, those of like length in the same forward pass.

    indices: numbers of the samples in the data. micro: samples of a micro-batch. Items are read once and kept with
    their pixels in the memory of the ranks that need them. A sample with an image that cannot be read on some rank
    carries no loss on any.
    """

    def __init__(
        self,
        recipe: Recipe,
        data: StageData,
        place: Place,
        indices: Sequence[int],
        micro: int,
        items: RawItems | None = None,
    ):
        """items: reads the samples in place of the data's own reading."""
        assert len(indices) > 0 and micro >= 1
        self.data, self.indices, self.micro = data, list(indices), micro
        self.index = data.index.of(self.indices)
        self._recipe, self._place = recipe, place
        self._reads = place.first_stage or place.last_stage
        self._items = items or data.raw_items(place)
        self.passes = self._cut()
        self._kept: dict[ForwardPass, list[list[RawItem]]] = {}

    def __len__(self) -> int:
        return len(self.indices)

    def _cut(self) -> tuple[ForwardPass, ...]:
        place = self._place
        lengths = self.index.lengths(self._recipe.architecture.visual_tokens)
        order: list[int] = np.argsort(-lengths, kind="stable").tolist()
        # A pipeline wants many micro-batches at a time, the interleaved schedule a multiple of its stages.
        most = 1 if place.pipeline_size == 1 else _MICRO_BATCHES_PER_PIPELINE_STAGE * place.pipeline_size
        together = self.micro * place.data_size * place.pipeline_size
        needed = -(-len(order) // together) * (1 if place.pipeline_size == 1 else place.pipeline_size)
        micro_batches = min(most, needed) * place.data_size
        passes = []
        for start in range(0, len(order), micro_batches * self.micro):
            taken = order[start : start + micro_batches * self.micro]
            # The last pass is no larger than it has to be.
            count = -(-len(taken) // together) * together // self.micro
            filled = [*taken, *[None] * (count * self.micro - len(taken))]
            passes.append(
                ForwardPass(tuple(tuple(filled[n * self.micro : (n + 1) * self.micro]) for n in range(count)))
            )
        return tuple(passes)

    def sample(self, forward: ForwardPass, place: int | None) -> int:
        """The number in the data of what stands at a place; a filling is a copy of the pass's first sample."""
        first = forward.places[0][0]
        assert first is not None
        return self.indices[first if place is None else place]

    def lengths(self, forward: ForwardPass, plan: StepPlan) -> list[list[int]]:
        """Positions of each sample of this data-parallel rank's micro-batches; a filling has none."""
        whole = self.index.lengths(plan.visual_tokens)
        return [
            [0 if place is None else int(whole[place]) for place in micro_batch]
            for micro_batch in forward.own(self._place)
        ]

    def padded_length(self, forward: ForwardPass, plan: StepPlan) -> int:
        """The padded sequence length of a pass, the same on all ranks."""
        places = [place for micro_batch in forward.places for place in micro_batch if place is not None]
        return padded_length(int(self.index.lengths(plan.visual_tokens)[places].max()), self._recipe)

    def text(self, forward: ForwardPass, plan: StepPlan) -> list[list[Ranges]] | None:
        """Positions of text in each row of this data-parallel rank's micro-batches, as `StageData.own_text` has them.

        A filling has none, since nobody asks what becomes of it.
        """
        if not plan.layers_skipped_for_visual:
            return None
        whole = self.index.text_ranges(plan.visual_tokens)
        return [[() if at is None else whole[at] for at in micro_batch] for micro_batch in forward.own(self._place)]

    def batches(self, forward: ForwardPass, plan: StepPlan) -> list[Batch] | None:
        """This rank's micro-batches of a pass; None on middle pipeline stages. All ranks together the first time."""
        if forward not in self._kept:
            self._kept[forward] = self._read(forward)
        if not self._reads:
            return None
        length = self.padded_length(forward, plan)
        return [to_batch(items, self._items.tokenizer, plan.visual_tokens, length) for items in self._kept[forward]]

    def _read(self, forward: ForwardPass) -> list[list[RawItem]]:
        own = forward.own(self._place)
        read = [self._items.read([self.sample(forward, at) for at in batch]) for batch in own] if self._reads else []
        problems = {item.sample_index for items in read for item in items if item.problem is not None}
        bad = set().union(*from_all_ranks(problems))
        return [
            [
                item.blank() if at is None or item.sample_index in bad else item
                for at, item in zip(places, items, strict=True)
            ]
            for places, items in zip(own, read, strict=False)
        ]


def held_out_samples(recipe: Recipe, data: StageData, place: Place, count: int) -> HeldOutSamples:
    """`count` samples to measure a stage's model on, as many as there are where there are fewer.

    Of the stage's validation data; where it has none, of the samples that its first epoch takes last, which training
    has not seen until then. Of twice as many, those with the most supervised tokens for their length: they say most
    for what they cost.
    """
    source = data.validation or data
    if data.validation is None:
        taken = np.array(data.sampler.last_of_first_epoch(2 * count))
    else:
        total = len(source.samples)
        some = min(2 * count, total)
        taken = np.arange(some) * total // some
    index = source.index.of(taken)
    density = index.supervised / index.lengths(recipe.architecture.visual_tokens)
    densest = np.sort(np.argsort(-density, kind="stable")[:count])
    return HeldOutSamples(recipe, source, place, taken[densest].tolist(), data.micro)
