"""The data of one stage, and the plan and shape of each of its steps."""

import copy
from collections.abc import Collection
from dataclasses import replace
from itertools import accumulate
from pathlib import Path

import numpy as np

from megatron_sts.config import Recipe, Run, SkipConfig, StageConfig
from megatron_sts.data import (
    FittedSamples,
    ImageReader,
    LengthGroups,
    MicroBatchLoader,
    PixelCache,
    RawItems,
    SampleIndex,
    StepSampler,
    cut_by_length,
    find_template,
    load_image_processor,
    load_tokenizer,
    rank_slice,
    to_batch,
    with_tail,
)
from megatron_sts.data.raw_items import RawMicroBatch
from megatron_sts.data.workers import loading_workers
from megatron_sts.errors import DataError
from megatron_sts.model.precision import parameter_dtype
from megatron_sts.parallel.device import has_gpu
from megatron_sts.parallel.groups import Place
from megatron_sts.parallel.sequence import Ranges, legal_length, padded_length, round_up, sample_multiple
from megatron_sts.sts import StagePlanner, StepFlops, StepPlan, step_flops, with_length
from megatron_sts.train.held_out_data import is_held_out, validation_stage
from megatron_sts.train.inputs_ahead import InputsAhead
from megatron_sts.train.measured_data import measure_together
from megatron_sts.train.quarantine import Quarantine
from megatron_sts.train.step_input import StepInput
from megatron_sts.train.step_shape import StepShape

_CACHED_PIXELS_BYTES = 1 << 30


class StageData:
    """Samples, their lengths and their order; nothing of it changes while the stage runs."""

    def __init__(self, recipe: Recipe, stage: StageConfig, run: Run | None = None, accepted: Collection[str] = ()):
        """Reads and checks all records. Raises DataError, ConfigError or CheckpointError before any training.

        run: of the checkpoint that the stage resumes from. accepted: the keys of `--accept`. Ranks other than 0 wait
        for rank 0 to measure the samples, then read its index.
        """
        self._recipe, self._stage = recipe, stage
        self._multiple = sample_multiple(recipe.parallel.context)
        self.tokenizer = load_tokenizer(recipe)
        self._template = find_template(stage.data.template, self.tokenizer)
        self.prepared = measure_together(recipe, stage, self._template, self.tokenizer)
        held_out = is_held_out(stage, self.prepared.samples.numbers)
        self.samples, self.index = self._part(~held_out)
        self.validation = self._validation(held_out)
        if not len(self.samples):
            raise DataError(
                f"stages.{stage.name}.data.validation is {stage.data.validation}, which leaves none of the "
                f"{len(self.prepared.samples):,} samples to train on; hold out less"
            )
        groups = None
        if stage.data.group_by_length:
            # As long as they are without compression, so that a schedule of it does not change the order.
            lengths = self.index.lengths(recipe.architecture.visual_tokens)
            groups = LengthGroups(lengths, self.index.images > 0)
        self.sampler = StepSampler(len(self.samples), stage.batch.global_size, recipe.seed, groups)
        self.stage = with_length(stage, len(self.samples), run, accepted)
        self.total_steps = self.stage.lengths[-1].steps
        self.planner = StagePlanner(recipe, self.stage, self.total_steps, len(self.samples) / stage.batch.global_size)

    def _part(self, is_in_it: np.ndarray) -> tuple[FittedSamples, SampleIndex]:
        samples, places = self.prepared.samples, np.flatnonzero(is_in_it)
        return replace(samples, numbers=samples.numbers[places]), self.prepared.index.of(places)

    def _validation(self, is_in_it: np.ndarray) -> "StageData | None":
        """The held-out samples: of a file of their own, or the part of this data that is not trained on."""
        held_out = self._stage.data.validation
        if isinstance(held_out, Path):
            return StageData(self._recipe, validation_stage(self._recipe, self._stage, held_out))
        if held_out is None:
            return None
        if not is_in_it.any():
            raise DataError(
                f"stages.{self._stage.name}.data.validation is {held_out}, which holds out none of the "
                f"{len(is_in_it):,} samples; hold out more, or give a file of held-out records"
            )
        part = copy.copy(self)
        part.samples, part.index = self._part(is_in_it)
        return part

    @property
    def micro(self) -> int:
        """Samples of a micro-batch."""
        return self._stage.batch.micro

    def with_skip(self, skip: tuple[SkipConfig, ...]) -> "StageData":
        """The same data under plans that skip otherwise."""
        changed = copy.copy(self)
        stage = self.stage.model_copy(update={"skip": skip})
        changed.planner = StagePlanner(
            self._recipe, stage, self.total_steps, len(self.samples) / stage.batch.global_size
        )
        return changed

    @property
    def _guided(self) -> bool:
        compress = self._stage.compress
        return compress is not None and compress.strategy == "text_guided"

    def without_guide(self) -> int:
        """Samples whose visual tokens are to be chosen by words that they do not have; `uniform` steps in."""
        return int(self.index.lacks_guide.sum()) if self._guided else 0

    def shape(self, plan: StepPlan, cut_as: StepPlan | None = None) -> StepShape:
        """The shape of a step under a plan, as long as its samples, `length_rounding` and the layout ask for.

        cut_as: the plan whose lengths decide which samples are packed together; by default the same.
        """
        indices = self.sampler.samples_of_step(plan.step)
        index = self.index.of(indices)
        lengths = index.lengths(plan.visual_tokens)
        tokens, images = int(lengths.sum()), int(index.images.sum())
        if not self._stage.data.packing:
            return StepShape(padded_length(int(lengths.max()), self._recipe), len(indices), images, tokens, None)
        micro_batches = self._cut(index.lengths((cut_as or plan).visual_tokens).tolist())
        rows = [[round_up(length, self._multiple) for length in lengths[places].tolist()] for places in micro_batches]
        length = legal_length(max(map(sum, rows)), self._recipe)
        segments = tuple(with_tail(row, length) for row in rows)
        return StepShape(length, len(segments), images, tokens, segments)

    def step_input(
        self, plan: StepPlan, shape: StepShape, items: list[RawMicroBatch] | None, place: Place
    ) -> StepInput:
        """What this rank is given for a step: the items of its micro-batches, under a plan and its shape."""
        sparse, teacher = self.planner.teacher_plan(plan.step), None
        if sparse is not None:
            teacher = self._input(sparse, self.shape(sparse, cut_as=plan), items, place)
        return replace(self._input(plan, shape, items, place), teacher=teacher)

    def _input(self, plan: StepPlan, shape: StepShape, items: list[RawMicroBatch] | None, place: Place) -> StepInput:
        batch, batches = self._stage.batch, None
        if items is not None:
            sizes = (self.tokenizer, plan.visual_tokens, shape.length, self._stage.data.packing, self._multiple)
            batches = [to_batch(of_micro_batch, *sizes) for of_micro_batch in items]
        return StepInput(
            plan,
            batches,
            micro_batches=batch.global_size // (batch.micro * place.data_size),
            micro=batch.micro,
            length=shape.length,
            segments=shape.own_segments(place),
            text=self.own_text(plan, place),
        )

    def own_text(self, plan: StepPlan, place: Place) -> list[list[Ranges]] | None:
        """Of this rank's micro-batches the positions of text in each row, on every pipeline stage.

        None where no layer of the plan is skipped for visual tokens, so that nobody asks.
        """
        if not plan.layers_skipped_for_visual:
            return None
        found = []
        for indices in self.micro_batches(plan.step)[place.data_rank :: place.data_size]:
            index = self.index.of(indices)
            rows = index.text_ranges(plan.visual_tokens)
            if self._stage.data.packing:
                lengths = [round_up(length, self._multiple) for length in index.lengths(plan.visual_tokens).tolist()]
                starts = accumulate(lengths, initial=0)
                rows = [tuple((a + start, b + start) for start, row in zip(starts, rows, strict=False) for a, b in row)]
            found.append(rows)
        return found

    def micro_batches(self, step: int) -> list[list[int]]:
        """Samples of each micro-batch of a 0-based step; those of the data-parallel ranks take turns."""
        indices = self.sampler.samples_of_step(step)
        if not self._stage.data.packing:
            return rank_slice(indices, 0, 1, self._stage.batch.micro)
        lengths = self.index.of(indices).lengths(self.planner.visual_tokens(step))
        return [[indices[place] for place in places] for places in self._cut(lengths.tolist())]

    def _cut(self, lengths: list[int]) -> list[list[int]]:
        return cut_by_length(lengths, len(lengths) // self._stage.batch.micro)

    def sample_ids(self, step: int, micro_batch: int) -> list[str]:
        """Ids of the samples in one micro-batch, by its number in the global batch, of a 0-based step."""
        return [self.samples[index].id for index in self.micro_batches(step)[micro_batch]]

    def flops(self, plan: StepPlan, shape: StepShape) -> tuple[StepFlops, StepFlops]:
        """(executed, dense) FLOPs of a step; dense is the same samples with every layer and visual token.

        What a step executes includes the forward pass that it distills from.
        """
        dense_plan = self.planner.dense_plan(plan.step)
        dense_shape = shape if plan.visual_tokens == dense_plan.visual_tokens else self.shape(dense_plan)
        executed, trains = self._flops(plan, shape, self._stage.trains), self._stage.trains
        teacher = self.planner.teacher_plan(plan.step)
        if teacher is not None:
            executed += self._flops(teacher, self.shape(teacher, cut_as=plan), ())
        return executed, self._flops(dense_plan, dense_shape, trains)

    def _flops(self, plan: StepPlan, shape: StepShape, trains: tuple[str, ...]) -> StepFlops:
        return step_flops(
            self._recipe.architecture,
            trains,
            rows=shape.rows,
            images=shape.images,
            length=shape.length,
            segments=shape.segments,
            visual_tokens=plan.visual_tokens,
            layers_run=self._recipe.architecture.language.layers - len(plan.skipped_layers),
            layers_skipped_for_visual=len(plan.layers_skipped_for_visual),
            text_tokens=shape.tokens - shape.images * plan.visual_tokens,
            scored_tokens=plan.scored_tokens,
        )

    def inputs(self, place: Place, first_step: int, aside: bool | None = None) -> InputsAhead:
        """What this rank is given for each step from `first_step` on.

        aside: whether it is made in a thread of its own while the step before runs; None: where there is a GPU.
        Only the first stage reads pictures, each rank those that its tower sees; the last reads tokens for their
        labels. Records whose pictures cannot be read are blank on all ranks (train/quarantine.py), which is settled by
        all of them together.
        """
        quarantine = Quarantine(self._recipe, self._stage, self.prepared, first_step)
        loader = self._loader(place, first_step) if place.first_stage or place.last_stage else None
        return InputsAhead(self, place, quarantine, loader, first_step, has_gpu() if aside is None else aside)

    def input_of(self, step: int, items: list[RawMicroBatch] | None, place: Place) -> StepInput:
        """What this rank is given for a 0-based step, by the items of its micro-batches; None where it reads none."""
        plan = self.planner.plan(step)
        return self.step_input(plan, self.shape(plan), items, place)

    def raw_items(self, place: Place) -> RawItems:
        """Reads the stage's samples on this rank: pictures where it holds the tower, those that its tower sees."""
        stage, vision = self._stage, self._recipe.architecture.vision
        reader = None
        if place.first_stage and stage.data.has_images:
            processor = load_image_processor(
                self._recipe.model.vision, vision.family, vision.image_size, stage.data.image_aspect_ratio
            )
            reader = ImageReader(processor, stage.data.images, dtype=parameter_dtype(self._recipe))
        return RawItems(
            self.samples,
            self._template,
            self.tokenizer,
            stage.data.system_prompt,
            reader,
            # Every worker holds a cache of its own.
            PixelCache(_CACHED_PIXELS_BYTES // max(1, loading_workers(stage.data))),
            self._guided,
            place.own_images,
        )

    def _loader(self, place: Place, first_step: int) -> MicroBatchLoader:
        stage = self._stage
        loader = MicroBatchLoader(
            self.raw_items(place),
            self.sampler,
            place.data_rank,
            place.data_size,
            stage.batch.micro,
            self.total_steps,
            loading_workers(stage.data),
            packed=self.micro_batches if stage.data.packing else None,
        )
        loader.load_state_dict({"step": first_step})
        return loader
