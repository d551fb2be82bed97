"""The StepPlan: what one training step skips and keeps, a pure function of (recipe, stage, step).

Contract: every rank computes the plan by itself and nobody sends it, so it may depend on nothing but the
recipe, the stage and the step: not on the rank, the layout or what was drawn before.
"""

import hashlib
import random
from dataclasses import dataclass

from megatron_sts.config import Recipe, StageConfig
from megatron_sts.sts.schedule import kept_visual_tokens, skip_probabilities, uniform_indices


@dataclass(frozen=True)
class StepPlan:
    """What one training step does.

    step: 0-based step of the stage. skipped_layers: 0-based numbers of the layers that do not run, ascending.
    kept_tokens: indices of the visual tokens that each image keeps, ascending. total_visual_tokens: tokens that
    the tower yields for an image.
    """

    step: int
    skipped_layers: frozenset[int]
    kept_tokens: tuple[int, ...]
    total_visual_tokens: int

    @property
    def visual_tokens(self) -> int:
        """Visual tokens that reach the language model per image."""
        return len(self.kept_tokens)


def full_plan(visual_tokens: int, step: int = 0) -> StepPlan:
    """The plan that skips nothing and keeps every visual token, as evaluation and inference do."""
    return StepPlan(step, frozenset(), tuple(range(visual_tokens)), visual_tokens)


def _stream(seed: int, stage: str, step: int, purpose: str) -> random.Random:
    """A random stream of its own for each (seed, stage, step, purpose), the same on every machine."""
    text = f"{seed}/{stage}/{step}/{purpose}".encode()
    return random.Random(int.from_bytes(hashlib.sha256(text).digest()[:8], "big"))


class StagePlanner:
    """Gives the StepPlan of any step of one stage; holds no state that a step changes."""

    def __init__(self, recipe: Recipe, stage: StageConfig, total_steps: int, steps_per_epoch: float):
        """`total_steps` of the stage; `steps_per_epoch` may be fractional (samples / global batch)."""
        assert total_steps >= 1 and steps_per_epoch > 0
        self._seed = recipe.seed
        self._stage = stage
        self._layers = recipe.architecture.language.layers
        self._total_steps = total_steps
        self._steps_per_epoch = steps_per_epoch
        self._total_visual_tokens = recipe.architecture.visual_tokens
        self._kept_tokens = uniform_indices(self._total_visual_tokens, self._kept_count())

    def _kept_count(self) -> int:
        compress = self._stage.compress
        if compress is None or compress.strategy == "none":
            return self._total_visual_tokens
        if compress.keep_tokens is not None:
            return compress.keep_tokens
        ratio = 0.5 if compress.keep_ratio is None else compress.keep_ratio
        return kept_visual_tokens(self._total_visual_tokens, ratio)

    def progress(self, step: int) -> float:
        """e / E of the schedule at a step: by steps, or by whole epochs passed (`skip.progress`)."""
        skip = self._stage.skip
        if skip is not None and skip.progress == "epoch":
            epochs = self._total_steps / self._steps_per_epoch
            return min(1.0, (step // self._steps_per_epoch) / max(epochs, 1.0))
        return step / self._total_steps

    def skip_probabilities(self, step: int) -> tuple[float, ...]:
        """Probability of each layer to be skipped in a step; zeros where the stage has no `skip`."""
        skip = self._stage.skip
        if skip is None:
            return (0.0,) * self._layers
        return skip_probabilities(self._layers, self.progress(step), skip.alpha, skip.epsilon)

    def plan(self, step: int) -> StepPlan:
        """The plan of a 0-based step of the stage."""
        assert 0 <= step < self._total_steps
        draws = _stream(self._seed, self._stage.name, step, "skip")
        skipped = frozenset(
            layer for layer, probability in enumerate(self.skip_probabilities(step)) if draws.random() < probability
        )
        return StepPlan(step, skipped, self._kept_tokens, self._total_visual_tokens)

    def dense_plan(self, step: int) -> StepPlan:
        """The plan of a step that runs everything: the measure of what sparsity saves."""
        return full_plan(self._total_visual_tokens, step)
