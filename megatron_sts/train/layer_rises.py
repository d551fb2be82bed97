"""What each layer is worth: how much the loss of held-out samples rises without it."""

from collections.abc import Callable

from megatron_sts.config import MeasuredRises, Recipe, SkippedTokens, StageConfig
from megatron_sts.parallel.groups import Place
from megatron_sts.sts import StepPlan, full_plan
from megatron_sts.sts.rises import to_measure, with_rises
from megatron_sts.train.evaluation_step import Estimate, EvaluationStep, SampleLosses
from megatron_sts.train.held_out import HeldOutSamples, held_out_samples
from megatron_sts.train.stage_data import StageData

# Of a training run; tools/probe.py lets the user choose.
_SAMPLES = 32
# Rises below it, in nats, are no noise of these samples: leaving a layer out helps, so the rises say little of it.
_FITS = -0.25


def plan_without(layer: int, tokens: SkippedTokens, visual_tokens: int) -> StepPlan:
    """The plan that keeps every visual token and skips one layer, or its MLP for visual tokens."""
    full = full_plan(visual_tokens)
    skipped = frozenset({layer})
    if tokens == "visual":
        return StepPlan(0, frozenset(), full.kept_tokens, visual_tokens, layers_skipped_for_visual=skipped)
    return StepPlan(0, skipped, full.kept_tokens, visual_tokens)


class LayerRises:
    """Measures the rises that a stage's skips go by, where they are to be measured, on all ranks together.

    On held-out samples (see `held_out_samples`); all layers run but the one that is measured, and all visual tokens are
    kept.
    """

    def __init__(
        self,
        recipe: Recipe,
        data: StageData,
        evaluation: EvaluationStep,
        place: Place,
        say: Callable[[str], None],
        gets_on: Callable[[str], None],
    ):
        """say: tells the user. gets_on: told what is at work, so that nobody takes a long measurement for a hang."""
        self._recipe, self._data, self._place = recipe, data, place
        self._evaluation = evaluation
        self._say, self._gets_on = say, gets_on
        self._samples: HeldOutSamples | None = None

    def measured(self, stage: StageConfig, step: int) -> StageConfig:
        """The stage with rises of before a 0-based step, where any of its skips asks for them; else the same."""
        due = [skip for skip in stage.skip if to_measure(skip, step)]
        if not due:
            return stage
        layers, visual_tokens = self._recipe.architecture.language.layers, self._recipe.architecture.visual_tokens
        if self._samples is None:
            self._samples = held_out_samples(self._recipe, self._data, self._place, _SAMPLES)
        samples = self._samples
        self._say(
            f"{stage.name} {step} | measures what each layer is worth: {1 + len(due) * layers} times "
            f"{len(samples)} samples"
        )
        base = self._losses(full_plan(visual_tokens), samples, f"{stage.name} step {step + 1}, rises")
        for skip in due:
            rises: list[Estimate] = []
            for layer in range(layers):
                plan = plan_without(layer, skip.tokens, visual_tokens)
                found = self._losses(plan, samples, f"{stage.name} step {step + 1}, rise of layer {layer}")
                rises.append(found.rise_over(base))
            # Rounded, so that a plan made of them does not hang on the order in which ranks have summed.
            kept = tuple(round(rise.mean, 4) for rise in rises)
            stage = with_rises(stage, skip.tokens, MeasuredRises(step=step, rises=kept))
            self._say(f"{stage.name} {step} | {told(kept, skip.tokens, skip.protect_above, base.mean)}")
        return stage

    def _losses(self, plan: StepPlan, samples: HeldOutSamples, what: str) -> SampleLosses:
        return self._evaluation.losses(plan, samples, lambda passes: self._gets_on(what))


def told(rises: tuple[float, ...], tokens: SkippedTokens, protect_above: float, base: float) -> str:
    """A measurement in words, with a warning where it cannot be gone by. base: the loss with all layers."""
    protected = [layer for layer, rise in enumerate(rises) if rise > protect_above]
    what = "without a layer" if tokens == "all" else "without a layer's MLP for visual tokens"
    kept = (
        f"never skipped: {protected}, which rise by more than {protect_above:g}" if protected else "none is protected"
    )
    line = f"loss {base:.3f}; {what} it rises by {min(rises):.3f} to {max(rises):.3f} nats; {kept}"
    if min(rises) > _FITS:
        return line
    return (
        f"{line}; a loss that falls without a layer says that the weights do not fit this data yet: measure on data "
        "that they fit, and give that as rises (docs/redundancy.md)"
    )
