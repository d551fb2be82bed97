"""Measures what each layer and what whole plans are worth on a stage's own data: the work of tools/probe.py."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from megatron.core.transformer.module import Float16Module

from megatron_sts.config import Recipe, SkippedTokens, StageConfig
from megatron_sts.data import Picture, Sample
from megatron_sts.model.build import build_chunks
from megatron_sts.parallel.groups import Place, group_collection
from megatron_sts.sts import StepPlan, full_plan, step_flops
from megatron_sts.sts.probe import DRAWS, RATES, Trial, plans_of, trials
from megatron_sts.train.block_influence import BlockInfluence
from megatron_sts.train.checkpoint import load_checkpoint
from megatron_sts.train.evaluation_step import Estimate, EvaluationStep, SampleLosses
from megatron_sts.train.held_out import HeldOutSamples, held_out_samples
from megatron_sts.train.layer_rises import plan_without
from megatron_sts.train.stage_data import StageData
from megatron_sts.train.visual_attention import VisualAttention


@dataclass(frozen=True)
class LayerWorth:
    """One layer.

    rise, rise_visual: of the loss without it, and without its MLP for visual tokens. attention_to_visual: share of the
    attention of text tokens behind an image that visual tokens get. Both None where there are no images.
    """

    layer: int
    rise: Estimate
    rise_visual: Estimate | None
    block_influence: float
    attention_to_visual: float | None


@dataclass(frozen=True)
class PlanWorth:
    """One way to make a step sparse. flops_saved: share of the stage's training FLOPs on these samples."""

    trial: Trial
    rise: Estimate
    flops_saved: float


@dataclass(frozen=True)
class ProbeResult:
    """What was measured on `samples` samples of a stage; image: what their images are worth (None: there are none)."""

    stage: str
    samples: int
    tokens: int
    loss: float
    image: Estimate | None
    layers: tuple[LayerWorth, ...]
    plans: tuple[PlanWorth, ...]


class Probe:
    """Measures losses of a stage's held-out samples under forced plans, on all ranks together."""

    def __init__(
        self, recipe: Recipe, stage: StageConfig, data: StageData, checkpoint: Path | None, place: Place, samples: int
    ):
        self._recipe, self._stage, self._place = recipe, stage, place
        chunks = build_chunks(recipe, group_collection(), draw_weights=checkpoint is None)
        if checkpoint is not None:
            load_checkpoint(checkpoint, chunks)
        modules: list[torch.nn.Module] = list(chunks)
        if recipe.precision != "fp32":
            modules = [Float16Module(chunk.config, chunk) for chunk in chunks]
        self._evaluation = EvaluationStep(recipe, chunks, modules, place)
        self._influence = BlockInfluence(recipe, chunks, place)
        self._attention = VisualAttention(recipe, chunks, place)
        self._samples = held_out_samples(recipe, data, place, samples)
        self._layers = recipe.architecture.language.layers
        self._full = full_plan(recipe.architecture.visual_tokens)
        self._has_images = bool(self._samples.index.images.any())

    def run(
        self,
        protect_above: float,
        say: Callable[[str], None],
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> ProbeResult:
        """Measure everything; says beforehand what it will cost. progress: told how many evaluations are done."""
        kinds: tuple[SkippedTokens, ...] = ("all", "visual") if self._has_images else ("all",)
        # Twice: the first time reads the images and makes what libraries make once.
        with self._attention.listening(self._samples, self._full) if self._has_images else nullcontext():
            self._losses(self._full)
        began = time.perf_counter()
        with self._influence.listening(self._samples, self._full):
            base = self._losses(self._full)
        influence = self._influence.by_layer()
        attention = self._attention.by_layer() if self._has_images else [None] * self._layers
        seconds = time.perf_counter() - began
        most = self._most_evaluations(len(kinds))
        forward = self._flops(self._full, ())
        say(
            f"{most} evaluations of {len(self._samples)} samples ({int(base.tokens.sum()):,} supervised tokens), at "
            f"most {most * forward:.2g} FLOPs, about {most * seconds:,.0f} s more; fewer --samples cost less"
        )
        done, total = 0, most

        def losses(plan: StepPlan, samples: HeldOutSamples | None = None) -> SampleLosses:
            nonlocal done
            found = self._losses(plan, samples)
            done += 1
            progress(done, total)
            return found

        worth: dict[SkippedTokens, list[Estimate]] = {}
        for tokens in kinds:
            plans = [plan_without(layer, tokens, self._full.total_visual_tokens) for layer in range(self._layers)]
            worth[tokens] = [losses(plan).rise_over(base) for plan in plans]
        image = self._worth_of_images(base, losses) if self._has_images else None
        rises = {tokens: [one.mean for one in found] for tokens, found in worth.items()}
        measured = []
        tried = [
            (trial, plans_of(trial, self._recipe, self._stage, rises, protect_above))
            for trial in trials(rises, protect_above, self._has_images)
        ]
        total = done + sum(len(drawn) for _, drawn in tried)
        for trial, drawn in tried:
            found = [losses(plan) for plan in drawn]
            mean = SampleLosses(np.mean([one.losses for one in found], axis=0), base.tokens)
            measured.append(PlanWorth(trial, mean.rise_over(base), self._saved(drawn)))
        layers = tuple(
            LayerWorth(layer, worth["all"][layer], worth["visual"][layer] if "visual" in worth else None, turned, given)
            for layer, (turned, given) in enumerate(zip(influence, attention, strict=True))
        )
        return ProbeResult(
            self._stage.name, len(self._samples), int(base.tokens.sum()), base.mean, image, layers, tuple(measured)
        )

    def _losses(self, plan: StepPlan, samples: HeldOutSamples | None = None) -> SampleLosses:
        return self._evaluation.losses(plan, samples or self._samples)

    def _most_evaluations(self, kinds: int) -> int:
        rates = sum(map(len, list(RATES.values())[:kinds])) * 2 * DRAWS
        return kinds * self._layers + rates + (3 if kinds > 1 else 0)

    def _worth_of_images(self, base: SampleLosses, losses: Callable[..., SampleLosses]) -> Estimate | None:
        """How much the loss of samples with images rises where each shows an image of another sample."""
        held_out = self._samples
        swapped = swapped_images([held_out.data.samples[index] for index in held_out.indices])
        if swapped is None:
            return None
        own = held_out.data.raw_items(self._place)
        items = replace(own, samples=_Replaced(own.samples, dict(zip(held_out.indices, swapped, strict=True))))
        others = HeldOutSamples(self._recipe, held_out.data, self._place, held_out.indices, held_out.micro, items)
        found = losses(self._full, others)
        shown = held_out.index.images > 0
        return SampleLosses(found.losses[shown], found.tokens[shown]).rise_over(
            SampleLosses(base.losses[shown], base.tokens[shown])
        )

    def _saved(self, plans: Sequence[StepPlan]) -> float:
        executed = np.mean([self._flops(plan, self._stage.trains) for plan in plans])
        return float(1 - executed / self._flops(self._full, self._stage.trains))

    def _flops(self, plan: StepPlan, trains: tuple[str, ...]) -> float:
        """FLOPs of a step over the samples without their padding; trains: (): of the forward pass."""
        index = self._samples.index
        lengths = index.lengths(plan.visual_tokens).tolist()
        return step_flops(
            self._recipe.architecture,
            trains,
            rows=1,
            images=int(index.images.sum()),
            length=sum(lengths),
            segments=[lengths],
            visual_tokens=plan.visual_tokens,
            layers_run=self._layers - len(plan.skipped_layers),
            layers_skipped_for_visual=len(plan.layers_skipped_for_visual),
            text_tokens=int(index.text_tokens.sum()),
            scored_tokens=plan.scored_tokens,
        ).total


def swapped_images(samples: Sequence[Sample]) -> list[Sample] | None:
    """The samples with each image replaced by that of another sample, moved on by the distance at which the fewest
    stay what they are; None where all samples show one image."""
    images: list[Picture] = [image for sample in samples for image in sample.images]
    same = [
        (sum(image == images[place - shift] for place, image in enumerate(images)), shift)
        for shift in range(1, len(images))
    ]
    if not same or min(same)[0] == len(images):
        return None
    _, shift = min(same)
    moved: Iterator[Picture] = (images[place - shift] for place in range(len(images)))
    return [replace(sample, images=tuple(next(moved) for _ in sample.images)) for sample in samples]


class _Replaced(Sequence[Sample]):
    """Samples of which some are others."""

    def __init__(self, samples: Sequence[Sample], others: dict[int, Sample]):
        self._samples, self._others = samples, others

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: Any) -> Any:
        return self._others[index] if index in self._others else self._samples[index]
