"""Ways to train a stage, timed side by side on one model: dense, with its sparsity, with another selection of layers.

Every step trains on made-up samples of the stage's planned size, so neither data nor weights are needed and the
loader takes no part. The ways alternate step by step in one process group, over the same steps of the stage.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.distributed as dist
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_sts.config import Recipe, StageConfig
from megatron_sts.data import IGNORED_LABEL, Batch, Encoded, RawItem, collate
from megatron_sts.model.precision import fp8_settings
from megatron_sts.parallel.device import device_name, has_gpu, peak_memory_bytes, reset_peak_memory, synchronize
from megatron_sts.parallel.groups import Place, start_groups
from megatron_sts.parallel.sequence import Ranges, padded_length, sample_multiple
from megatron_sts.sts import StagePlanner, StepPlan, step_flops
from megatron_sts.train.comparison import Comparison, summary
from megatron_sts.train.loop import prepare_stage
from megatron_sts.train.resume import Start
from megatron_sts.train.step_input import StepInput

Say = Callable[[str], None]
"""Tells a line of progress."""


@dataclass
class Run:
    """One way's measurements.

    plans: one per step that is timed. times: seconds of the steps, by how many layers each virtual stage ran, and how
    many of these their MLP for text alone. memory: the most bytes of any step.
    """

    plans: list[StepPlan]
    times: dict[tuple[tuple[int, int], ...], list[float]]
    memory: int = 0

    @property
    def step_time_s(self) -> float:
        """Seconds of a step: the median of the steps that ran as many layers, the mean over all steps."""
        weights = [len(times) for times in self.times.values()]
        return statistics.fmean(map(statistics.median, self.times.values()), weights)


def compare(recipe: Recipe, comparison: Comparison, say: Say) -> dict[str, object]:
    """Time the ways on this process group; every rank returns the same figures, in the form of the json output."""
    stage, total_steps = recipe.stage(comparison.stage), comparison.total_steps(recipe)
    runs = {}
    for name in comparison.ways:
        changed = comparison.recipe_of(name, recipe)
        planner = StagePlanner(changed, changed.stage(stage.name), total_steps, total_steps)
        runs[name] = Run([planner.plan(step) for step in comparison.steps(total_steps)], {})

    place = start_groups(recipe.parallel, recipe.seed)
    stepper = Stepper(recipe, stage, total_steps, place, draws_weights=False)
    for warm_up in range(comparison.warm_up):
        for name, run in runs.items():
            say(f"warm-up {warm_up + 1}/{comparison.warm_up}: {name}, {stepper.time(run.plans[0])[0]:.3f} s")
    virtual_stages = recipe.parallel.layers_of_stages(recipe.architecture.language.layers)
    for repeat in range(comparison.repeats):
        for number in range(comparison.plans):
            for run in runs.values():
                plan = run.plans[number]
                seconds, memory = stepper.time(plan)
                run.times.setdefault(plan.layers_run(virtual_stages), []).append(seconds)
                run.memory = max(run.memory, memory)
            done = repeat * comparison.plans + number + 1
            means = ", ".join(f"{name} {run.step_time_s:.3f} s" for name, run in runs.items())
            say(f"{done}/{comparison.repeats * comparison.plans} steps of each: {means}")
    figures = {name: _figures(run, stepper) for name, run in runs.items()}
    return {
        "stage": stage.name,
        "samples": stage.batch.global_size,
        "device": device_name(),
        "layout": recipe.parallel.model_dump() | {"data": place.data_size},
        "plans": comparison.plans,
        "repeats": comparison.repeats,
        **summary(figures),
    }


class Stepper:
    """Trains single steps of a stage on made-up samples.

    draws_weights: whether the weights are those of the recipe's seed, which takes longer (train/loop.py).
    """

    def __init__(self, recipe: Recipe, stage: StageConfig, total_steps: int, place: Place, draws_weights: bool = True):
        self._recipe, self.stage, self._place = recipe, stage, place
        self._images = int(stage.data.has_images)
        self.parts = prepare_stage(recipe, stage, total_steps, Start(None, 0), place, draws_weights)
        self._micro_batches = stage.batch.global_size // (stage.batch.micro * place.data_size)
        self._generator = torch.Generator().manual_seed(recipe.seed + place.data_rank)

    @property
    def precision(self) -> str:
        """Of the coming steps."""
        return self._recipe.precision

    def length(self, plan: StepPlan) -> int:
        """Padded sequence length of a step."""
        return padded_length(self._text_tokens() + self._images * plan.visual_tokens, self._recipe)

    def _text_tokens(self) -> int:
        assert self.stage.data.text_tokens is not None
        return self.stage.data.text_tokens

    def flops(self, plan: StepPlan) -> float:
        """FLOPs that a step executes, over the global batch."""
        samples = self.stage.batch.global_size
        return step_flops(
            self._recipe.architecture,
            self.stage.trains,
            rows=samples,
            images=samples * self._images,
            length=self.length(plan),
            visual_tokens=plan.visual_tokens,
            layers_run=self._recipe.architecture.language.layers - len(plan.skipped_layers),
            layers_skipped_for_visual=len(plan.layers_skipped_for_visual),
            text_tokens=samples * self._text_tokens(),
            scored_tokens=plan.scored_tokens,
        ).total

    def time(self, plan: StepPlan, samples: StepInput | None = None) -> tuple[float, int]:
        """(seconds, peak memory in bytes) of one step, of the slowest and of the largest rank.

        samples: of an earlier step with as many visual tokens and as long, to be trained on once more.
        """
        given = self.step_input(plan) if samples is None else replace(samples, plan=plan, text=self._text(plan))
        return self.timed(lambda: self.parts.step.run(given))

    def step_input(self, plan: StepPlan) -> StepInput:
        """Made-up samples for one step under a plan."""
        length = self.length(plan)
        needs_data = self._place.first_stage or self._place.last_stage
        batches = list(self.batches(plan, length)) if needs_data else None
        return StepInput(plan, batches, self._micro_batches, self.stage.batch.micro, length, text=self._text(plan))

    def take_precision(self, precision: Literal["bf16", "fp8"]) -> None:
        """Run the products of the coming steps in this precision, of a model that was built for `fp8`.

        Weights and modules are the same in both; the FP8 copies of the weights are dropped with `bf16`. Not for
        `fp8_recipe: delayed`, whose scales would go by steps that they have not seen.
        """
        self._recipe = self._recipe.model_copy(update={"precision": precision})
        wanted = fp8_settings(self._recipe).get("fp8")
        for chunk in self.parts.chunks:
            for module in chunk.modules():
                if isinstance(getattr(module, "config", None), TransformerConfig):
                    module.config.fp8 = wanted
                if wanted is None and hasattr(module, "_fp8_workspaces"):
                    module._fp8_workspaces.clear()

    def _text(self, plan: StepPlan) -> list[list[Ranges]] | None:
        """Where text is in the micro-batches of `batches`; None where no layer is skipped for visual tokens."""
        if not plan.layers_skipped_for_visual:
            return None
        start = self._images * plan.visual_tokens
        return [[((start, start + self._text_tokens()),)] * self.stage.batch.micro] * self._micro_batches

    def timed(self, run: Callable[[], object]) -> tuple[float, int]:
        """As `time`, of whatever a step is on this rank."""
        reset_peak_memory()
        synchronize()
        dist.barrier()
        began = time.perf_counter()
        run()
        synchronize()
        measured = torch.tensor([time.perf_counter() - began, peak_memory_bytes()], dtype=torch.float64)
        measured = measured.to(torch.cuda.current_device())
        dist.all_reduce(measured, op=dist.ReduceOp.MAX)
        seconds, memory = measured.tolist()
        return seconds, int(memory)

    def batches(self, plan: StepPlan, length: int) -> Iterator[Batch]:
        """Micro-batches of random tokens and noise, one picture first where the stage has pictures."""
        micro = self.stage.batch.micro
        for _ in range(self._micro_batches):
            yield self.batch([self._text_tokens()] * micro, [self._images] * micro, plan, length)

    def batch(
        self, text_tokens: Sequence[int], images: Sequence[int], plan: StepPlan, length: int, packed: bool = False
    ) -> Batch:
        """A micro-batch of samples with so many random tokens behind so many pictures of noise each."""
        size = self._recipe.architecture.vision.image_size
        image_token = self._recipe.architecture.language.vocabulary_size - 1
        share = self._place.own_images(sum(images)) if self._place.first_stage else range(0)
        items: list[RawItem] = []
        passed = 0
        for of_text, of_images in zip(text_tokens, images, strict=True):
            text = torch.randint(0, image_token, (of_text,), generator=self._generator).tolist()
            places = range(passed, passed + of_images)
            noise = [torch.rand(3, size, size, generator=self._generator) if n in share else None for n in places]
            encoded = Encoded([image_token] * of_images + text, [IGNORED_LABEL] * of_images + text)
            items.append(RawItem(encoded, noise, len(items), text))
            passed += of_images
        multiple = sample_multiple(self._recipe.parallel.context)
        return collate(items, plan.visual_tokens, length, image_token, 0, packed, has_gpu(), multiple)


def _figures(run: Run, stepper: Stepper) -> dict[str, float]:
    return {
        "step_time_s": run.step_time_s,
        "flops": statistics.fmean(map(stepper.flops, run.plans)),
        "peak_memory_bytes": run.memory,
        "layers_skipped": statistics.fmean(len(plan.skipped_layers) for plan in run.plans),
        "layers_skipped_for_visual": statistics.fmean(len(plan.layers_skipped_for_visual) for plan in run.plans),
        "visual_tokens": run.plans[0].visual_tokens,
        "sequence_length": stepper.length(run.plans[0]),
    }
