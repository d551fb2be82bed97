"""The StepPlan: what one training step skips and keeps, a pure function of (recipe, stage, step).

Contract: every rank computes the plan by itself and nobody sends it, so it may depend on nothing but the resolved
recipe, the stage and the step: not on the rank, the layout or what was drawn before.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

from megatron_sts.config import Recipe, SkipConfig, SkippedTokens, StageConfig
from megatron_sts.sts.balanced import BalancedSelection, RegroupedSelection
from megatron_sts.sts.compression import Draws, kept_tokens, most_kept_tokens, scored_tokens
from megatron_sts.sts.full_steps import is_full_step
from megatron_sts.sts.groups import skippable_layers, stage_peaks
from megatron_sts.sts.independent import IndependentSelection
from megatron_sts.sts.lengths import Span, progress, spans
from megatron_sts.sts.rises import measurements
from megatron_sts.sts.schedule import decay, ramp, uniform_indices
from megatron_sts.sts.streams import stream


@dataclass(frozen=True)
class StepPlan:
    """What one training step does.

    step: 0-based step of the stage. skipped_layers: 0-based numbers of the layers that do not run.
    layers_skipped_for_visual: those that run, but leave out their MLP for the visual tokens.
    kept_tokens: indices of the visual tokens that each image keeps, ascending; where the strategy chooses others for
    each image (random, text_guided) or makes new ones (mean_pool), only their number counts. total_visual_tokens:
    tokens that the tower yields for an image. strategy, window: as in the recipe's `compress`. draws: names the
    random draws of the step.
    """

    step: int
    skipped_layers: frozenset[int]
    kept_tokens: tuple[int, ...]
    total_visual_tokens: int
    strategy: str = "none"
    window: int = 1
    draws: Draws | None = None
    layers_skipped_for_visual: frozenset[int] = frozenset()

    @property
    def visual_tokens(self) -> int:
        """Visual tokens that reach the language model per image."""
        return len(self.kept_tokens)

    @property
    def leaves_out(self) -> tuple[frozenset[int], frozenset[int], int]:
        """Layers skipped for all tokens and for visual ones, and the number of visual tokens dropped per image."""
        dropped = self.total_visual_tokens - self.visual_tokens
        return self.skipped_layers, self.layers_skipped_for_visual, dropped

    def layers_run(self, stages: Iterable[Iterable[int]]) -> tuple[tuple[int, int], ...]:
        """Of the layers of each stage how many run, and how many of these run their MLP for text alone."""
        held = [set(layers) for layers in stages]
        return tuple((len(one - self.skipped_layers), len(one & self.layers_skipped_for_visual)) for one in held)

    @property
    def scored_tokens(self) -> int:
        """Visual tokens per image that the projector projects to score them, beside those that are kept."""
        return scored_tokens(self.strategy, self.visual_tokens, self.total_visual_tokens)


def full_plan(visual_tokens: int, step: int = 0) -> StepPlan:
    """The plan that skips nothing and keeps every visual token, as evaluation and inference do."""
    return StepPlan(step, frozenset(), tuple(range(visual_tokens)), visual_tokens)


class LayerSelection(Protocol):
    """Which layers a 0-based step skips, and with what probability each."""

    def probabilities(self, step: int) -> tuple[float, ...]:
        """The probability of each layer to be skipped."""
        ...

    def skipped(self, step: int) -> frozenset[int]:
        """The layers that are skipped."""
        ...


class StagePlanner:
    """Gives the StepPlan of any step of one stage; holds no state that a step changes."""

    def __init__(self, recipe: Recipe, stage: StageConfig, total_steps: int, steps_per_epoch: float):
        """`total_steps` of the stage; `steps_per_epoch` may be fractional (samples / global batch).

        Groups of layers that the recipe leaves open are those of its layout: see `resolve_skip_groups`.
        """
        assert total_steps >= 1 and steps_per_epoch > 0
        self._recipe, self.stage = recipe, stage
        self._layers = recipe.architecture.language.layers
        self._total_steps, self._steps_per_epoch = total_steps, steps_per_epoch
        self._lengths = spans(stage) or (Span(0, total_steps, steps_per_epoch),)
        self._seed = recipe.seed
        self._total_visual_tokens = recipe.architecture.visual_tokens
        self._selections = {skip.tokens: self._layer_selections(skip) for skip in stage.skip}

    def _layer_selections(self, skip: SkipConfig) -> list[tuple[int, LayerSelection]]:
        """Selections, each with the step from which it holds: one, or with measured rises one for each measurement."""
        if skip.by == "depth":
            return [(0, self._layer_selection(skip, ()))]
        return [(one.step, self._layer_selection(skip, one.rises)) for one in measurements(skip, self._layers)]

    def _selection(self, step: int, tokens: SkippedTokens) -> LayerSelection | None:
        found = [selection for start, selection in self._selections.get(tokens, ()) if start <= step]
        return found[-1] if found else None

    def _layer_selection(self, skip: SkipConfig, rises: Sequence[float]) -> LayerSelection:
        # The layers skipped for all tokens are drawn as they always were.
        name = self.stage.name if skip.tokens == "all" else f"{self.stage.name}/{skip.tokens}"
        most_skipped = self._layers - skip.min_layers_run
        if skip.selection == "balanced":
            factors = [self._factor(step, skip) for step in range(self._total_steps)]
            ends = [*(earlier.before_step for earlier in skip.earlier_groups), self._total_steps]
            fresh, selections = skip.by == "redundancy", []
            for end in ends:
                groups = skippable_layers(self._recipe, skip, end - 1)
                peaks = stage_peaks(self._recipe, skip, rises, end - 1)
                most = most_skipped // len(groups)
                selections.append(BalancedSelection(self._seed, name, groups, peaks, factors, most, fresh))
            return selections[0] if len(selections) == 1 else RegroupedSelection(ends, selections)

        peaks = stage_peaks(self._recipe, skip, rises)

        def probabilities(step: int) -> tuple[float, ...]:
            factor = self._factor(step, skip)
            return tuple(factor * peak for peak in peaks)

        return IndependentSelection(self._seed, name, probabilities, most_skipped)

    def _factor(self, step: int, skip: SkipConfig) -> float:
        """The share of its peak that every skip probability has in a step."""
        if is_full_step(self._seed, self.stage.name, skip.full_share, step):
            return 0.0
        return decay(self.progress(step, skip), skip) * ramp(progress(self._lengths, step), skip)

    def visual_tokens(self, step: int) -> int:
        """Visual tokens that an image keeps in a step; a schedule moves with the share of the steps that passed."""
        if self._keeps_all(step):
            return self._total_visual_tokens
        return kept_tokens(self.stage.compress, self._total_visual_tokens, progress(self._lengths, step))

    def _keeps_all(self, step: int) -> bool:
        compress = self.stage.compress
        return compress is not None and is_full_step(self._seed, self.stage.name, compress.full_share, step)

    def most_visual_tokens(self) -> int:
        """The most visual tokens that an image keeps in any step, however long the stage is."""
        if self.stage.compress is not None and self.stage.compress.full_share > 0:
            return self._total_visual_tokens
        return most_kept_tokens(self.stage.compress, self._total_visual_tokens)

    def progress(self, step: int, skip: SkipConfig) -> float:
        """e / E of a schedule at a step: by steps, or by whole epochs passed (`skip.progress`)."""
        return progress(self._lengths, step, by_epochs=skip.progress == "epoch")

    def skip_probabilities(self, step: int, tokens: SkippedTokens = "all") -> tuple[float, ...]:
        """Probability of each layer to be skipped for these tokens in a step; zeros where the stage has no such skip.

        For visual tokens it is that of the draw, before a layer that is skipped for all tokens hands its turn on.
        """
        selection = self._selection(step, tokens)
        return (0.0,) * self._layers if selection is None else selection.probabilities(step)

    def _skipped(self, step: int, tokens: SkippedTokens) -> frozenset[int]:
        selection = self._selection(step, tokens)
        return frozenset() if selection is None else selection.skipped(step)

    def plan(self, step: int) -> StepPlan:
        """The plan of a 0-based step of the stage."""
        assert 0 <= step < self._total_steps
        skipped = self._skipped(step, "all")
        visual = self._skipped(step, "visual")
        if skipped & visual:
            visual = self._handed_on(step, skipped, visual)
        compress, total = self.stage.compress, self._total_visual_tokens
        kept = uniform_indices(total, self.visual_tokens(step))
        if compress is None or self._keeps_all(step):
            return StepPlan(step, skipped, kept, total, layers_skipped_for_visual=visual)
        draws = Draws(self._seed, self.stage.name, step)
        return StepPlan(step, skipped, kept, total, compress.strategy, compress.window or 1, draws, visual)

    def _handed_on(self, step: int, skipped: frozenset[int], visual: frozenset[int]) -> frozenset[int]:
        """Layers skipped for visual tokens, of those that run.

        Where balanced draws name a layer that is skipped for all tokens, another one of its group takes its turn, if
        one is left: groups that skip the same number for all tokens still skip the same number for visual ones.
        """
        config, given = self.stage.skip_of("visual"), visual - skipped
        assert config is not None
        if config.selection != "balanced":
            return given
        # Layers that are never skipped, as those protected by their rises, take no turn.
        probabilities = self.skip_probabilities(step, "visual")
        for number, group in enumerate(skippable_layers(self._recipe, config, step)):
            draws = stream(self._seed, self.stage.name, step, "turns handed on", number)
            free = [layer for layer in group if layer not in skipped | visual and probabilities[layer] > 0]
            order = sorted((draws.random(), layer) for layer in free)
            given |= {layer for _, layer in order[: len(skipped & visual & set(group))]}
        return given

    def teacher_plan(self, step: int) -> StepPlan | None:
        """The sparse plan whose predictions a full step is drawn towards (`distill`); None where it is not.

        That of the step as it would be without the full steps of the blocks that distill.
        """
        asked = [block.full_share for block in self.stage.sparse_blocks.values() if block.distill]
        if not any(is_full_step(self._seed, self.stage.name, share, step) for share in asked):
            return None
        full, sparse = self.plan(step), self._never_full.plan(step)
        return None if full.leaves_out == sparse.leaves_out else sparse

    @cached_property
    def _never_full(self) -> "StagePlanner":
        """The planner of the stage whose blocks that distill have no full steps."""

        def without(block: Any) -> Any:
            return block.model_copy(update={"full_share": 0.0}) if block is not None and block.distill else block

        changes = {"skip": tuple(map(without, self.stage.skip)), "compress": without(self.stage.compress)}
        stage = self.stage.model_copy(update=changes)
        return StagePlanner(self._recipe, stage, self._total_steps, self._steps_per_epoch)

    def dense_plan(self, step: int) -> StepPlan:
        """The plan of a step that runs everything: the measure of what sparsity saves."""
        return full_plan(self._total_visual_tokens, step)
