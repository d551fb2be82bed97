"""The StepPlan: what one training step skips and keeps, a pure function of (recipe, stage, step).

Contract: every rank computes the plan by itself and nobody sends it, so it may depend on nothing but the resolved
recipe, the stage and the step: not on the rank, the layout or what was drawn before.
"""

from dataclasses import dataclass
from typing import Protocol

from megatron_sts.config import Recipe, StageConfig
from megatron_sts.sts.balanced import BalancedSelection
from megatron_sts.sts.compression import Draws, kept_tokens, most_kept_tokens, scored_tokens
from megatron_sts.sts.groups import skippable_layers
from megatron_sts.sts.independent import IndependentSelection
from megatron_sts.sts.schedule import decay, peak_probabilities, uniform_indices


@dataclass(frozen=True)
class StepPlan:
    """What one training step does.

    step: 0-based step of the stage. skipped_layers: 0-based numbers of the layers that do not run, ascending.
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

    @property
    def visual_tokens(self) -> int:
        """Visual tokens that reach the language model per image."""
        return len(self.kept_tokens)

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
        self._stage = stage
        self._layers = recipe.architecture.language.layers
        self._total_steps = total_steps
        self._steps_per_epoch = steps_per_epoch
        self._seed = recipe.seed
        self._total_visual_tokens = recipe.architecture.visual_tokens
        self._selection = self._layer_selection(recipe)

    def _layer_selection(self, recipe: Recipe) -> LayerSelection | None:
        skip = self._stage.skip
        if skip is None:
            return None
        most_skipped = self._layers - skip.min_layers_run
        peaks = [
            0.0 if layer in skip.never_skip else peak
            for layer, peak in enumerate(peak_probabilities(self._layers, skip))
        ]
        if skip.selection == "balanced":
            groups = skippable_layers(recipe, skip)
            factors = [decay(self.progress(step), skip) for step in range(self._total_steps)]
            return BalancedSelection(recipe.seed, self._stage.name, groups, peaks, factors, most_skipped // len(groups))

        def probabilities(step: int) -> tuple[float, ...]:
            factor = decay(self.progress(step), skip)
            return tuple(factor * peak for peak in peaks)

        return IndependentSelection(recipe.seed, self._stage.name, probabilities, most_skipped)

    def visual_tokens(self, step: int) -> int:
        """Visual tokens that an image keeps in a step; a schedule moves with the share of the steps that passed."""
        return kept_tokens(self._stage.compress, self._total_visual_tokens, step / self._total_steps)

    def most_visual_tokens(self) -> int:
        """The most visual tokens that an image keeps in any step, however long the stage is."""
        return most_kept_tokens(self._stage.compress, self._total_visual_tokens)

    def progress(self, step: int) -> float:
        """e / E of the schedule at a step: by steps, or by whole epochs passed (`skip.progress`)."""
        skip = self._stage.skip
        if skip is not None and skip.progress == "epoch":
            epochs = self._total_steps / self._steps_per_epoch
            return min(1.0, (step // self._steps_per_epoch) / max(epochs, 1.0))
        return step / self._total_steps

    def skip_probabilities(self, step: int) -> tuple[float, ...]:
        """Probability of each layer to be skipped in a step; zeros where the stage has no `skip`."""
        return (0.0,) * self._layers if self._selection is None else self._selection.probabilities(step)

    def plan(self, step: int) -> StepPlan:
        """The plan of a 0-based step of the stage."""
        assert 0 <= step < self._total_steps
        skipped = frozenset() if self._selection is None else self._selection.skipped(step)
        compress, total = self._stage.compress, self._total_visual_tokens
        kept = uniform_indices(total, self.visual_tokens(step))
        if compress is None:
            return StepPlan(step, skipped, kept, total)
        draws = Draws(self._seed, self._stage.name, step)
        return StepPlan(step, skipped, kept, total, compress.strategy, compress.window or 1, draws)

    def dense_plan(self, step: int) -> StepPlan:
        """The plan of a step that runs everything: the measure of what sparsity saves."""
        return full_plan(self._total_visual_tokens, step)
