"""The data of one stage, and the plan and shape of each of its steps."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist

from megatron_sts.config import Recipe, StageConfig
from megatron_sts.data import (
    Batch,
    Fitted,
    ImageReader,
    MicroBatchLoader,
    StepSampler,
    find_template,
    lacks_guide,
    load_image_processor,
    load_tokenizer,
    prepare_index,
    read_llava_json,
)
from megatron_sts.errors import MegatronStsError
from megatron_sts.parallel.groups import Place
from megatron_sts.parallel.sequence import padded_length
from megatron_sts.sts import StagePlanner, StepFlops, StepPlan, check_sample_count, stage_steps, step_flops

_CACHED_PIXELS_BYTES = 1 << 30


@dataclass(frozen=True)
class StepShape:
    """Sizes of one step that all ranks agree on without sending them.

    length: padded sequence length. samples, images: in the global batch. tokens: positions that are not padding.
    """

    length: int
    samples: int
    images: int
    tokens: int


class StageData:
    """Samples, their lengths and their order; nothing of it changes while the stage runs."""

    def __init__(self, recipe: Recipe, stage: StageConfig):
        """Reads and checks all records. Raises DataError or ConfigError before any training.

        Ranks other than 0 wait for rank 0 to measure the samples, then read its index.
        """
        self._recipe, self._stage = recipe, stage
        self.tokenizer = load_tokenizer(recipe)
        self._template = find_template(stage.data.template, self.tokenizer)
        self.fitted = _on_rank_zero_first(self._measure)
        self.samples, self.index = self.fitted.samples, self.fitted.index
        self.sampler = StepSampler(len(self.samples), stage.batch.global_size, recipe.seed)
        self.total_steps = stage_steps(stage, len(self.samples))
        self.planner = StagePlanner(recipe, stage, self.total_steps, len(self.samples) / stage.batch.global_size)

    @property
    def _guided(self) -> bool:
        compress = self._stage.compress
        return compress is not None and compress.strategy == "text_guided"

    def without_guide(self) -> int:
        """Samples whose visual tokens are to be chosen by words that they do not have; `uniform` steps in."""
        return sum(map(lacks_guide, self.samples)) if self._guided else 0

    def _measure(self) -> Fitted:
        stage = self._stage
        samples = read_llava_json(stage.data.train)
        check_sample_count(stage, len(samples))
        return prepare_index(
            self._recipe.output_dir / "index" / f"{stage.name}.npz",
            stage.data.train,
            samples,
            self._template,
            self.tokenizer,
            stage.data.system_prompt,
            stage.data.images,
            StagePlanner(self._recipe, stage, 1, 1.0).most_visual_tokens(),
            stage.data.max_tokens,
            stage.data.over_long,
        )

    def shape(self, plan: StepPlan) -> StepShape:
        """The shape of a step under a plan: the least legal length for the step's samples."""
        indices = self.sampler.samples_of_step(plan.step)
        lengths = self.index.of(indices).lengths(plan.visual_tokens)
        return StepShape(
            length=padded_length(int(lengths.max()), self._recipe),
            samples=len(indices),
            images=int(self.index.images[indices].sum()),
            tokens=int(lengths.sum()),
        )

    def sample_ids(self, step: int, micro_batch: int) -> list[str]:
        """Ids of the samples in one micro-batch, by its number in the global batch, of a 0-based step."""
        micro = self._stage.batch.micro
        indices = self.sampler.samples_of_step(step)[micro_batch * micro : (micro_batch + 1) * micro]
        return [self.samples[index].id for index in indices]

    def flops(self, plan: StepPlan) -> tuple[StepFlops, StepFlops]:
        """(executed, dense) FLOPs of a step; dense is the same samples with every layer and visual token."""
        layers = self._recipe.architecture.language.layers
        dense_plan = self.planner.dense_plan(plan.step)
        return self._flops(plan, layers - len(plan.skipped_layers)), self._flops(dense_plan, layers)

    def _flops(self, plan: StepPlan, layers_run: int) -> StepFlops:
        shape = self.shape(plan)
        return step_flops(
            self._recipe.architecture,
            self._stage.trains,
            samples=shape.samples,
            images=shape.images,
            length=shape.length,
            visual_tokens=plan.visual_tokens,
            layers_run=layers_run,
            scored_tokens=plan.scored_tokens,
        )

    def batches(self, place: Place, first_step: int) -> Iterator[list[Batch] | None]:
        """This rank's micro-batches of each step from `first_step` on; None on middle pipeline stages.

        Only the first stage reads pictures; the last reads tokens for their labels.
        """
        if not (place.first_stage or place.last_stage):
            yield from (None for _ in range(first_step, self.total_steps))
            return
        stage, vision = self._stage, self._recipe.architecture.vision
        reader = None
        if place.first_stage and stage.data.images is not None:
            processor = load_image_processor(
                self._recipe.model.vision, vision.family, vision.image_size, stage.data.image_aspect_ratio
            )
            reader = ImageReader(processor, stage.data.images)
        loader = MicroBatchLoader(
            self.samples,
            self._template,
            self.tokenizer,
            stage.data.system_prompt,
            reader,
            self.sampler,
            place.data_rank,
            place.data_size,
            stage.batch.micro,
            first_step,
            self.total_steps,
            stage.data.workers,
            _CACHED_PIXELS_BYTES,
            guided=self._guided,
        )
        for step, raw in enumerate(loader, start=first_step):
            plan = self.planner.plan(step)
            yield loader.to_batches(raw, plan.visual_tokens, self.shape(plan).length)


def _on_rank_zero_first(measure: Any) -> Any:
    """Run on rank 0, then on the others, which find its cache; an error of rank 0 is raised by all."""
    if not dist.is_initialized():
        return measure()
    outcome: list[Any] = [None]
    if dist.get_rank() == 0:
        try:
            result = measure()
        except MegatronStsError as error:
            outcome = [error]
    dist.broadcast_object_list(outcome, src=0)
    if outcome[0] is not None:
        raise outcome[0]
    return result if dist.get_rank() == 0 else measure()
