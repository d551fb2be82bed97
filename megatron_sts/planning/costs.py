"""What a pass of one micro-batch through a part of the model costs a rank, in FLOPs.

Planning takes FLOPs for time: every product is thought to run at the same rate, and nothing else to take any.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from megatron_sts.config import Recipe, StageConfig
from megatron_sts.parallel.sequence import legal_length
from megatron_sts.sts import ModelSizes, StepFlops, scored_tokens, step_flops


def images_per_sample(stage: StageConfig) -> int:
    """Images that planning gives every sample: one, or none where the stage has no images."""
    return int(stage.data.has_images)


def planned_length(recipe: Recipe, stage: StageConfig, visual_tokens: int) -> int:
    """Legal sequence length of a sample with the mean number of text tokens and so many visual ones.

    What a step adds, padding to its longest sample and `length_rounding`, is told apart (planning/lengths.py).
    """
    assert stage.data.text_tokens is not None
    return legal_length(stage.data.text_tokens + images_per_sample(stage) * visual_tokens, recipe)


def sample_flops(
    recipe: Recipe,
    stage: StageConfig,
    visual_tokens: int,
    layers_run: int,
    trains: tuple[str, ...],
    layers_skipped_for_visual: int = 0,
) -> StepFlops:
    """FLOPs of one mean sample with so many visual tokens kept and layers run, some with their MLP for text alone."""
    assert stage.data.text_tokens is not None
    return step_flops(
        recipe.architecture,
        trains,
        rows=1,
        images=images_per_sample(stage),
        length=planned_length(recipe, stage, visual_tokens),
        visual_tokens=visual_tokens,
        layers_run=layers_run,
        layers_skipped_for_visual=layers_skipped_for_visual,
        text_tokens=stage.data.text_tokens,
        scored_tokens=_scored(recipe, stage, visual_tokens),
    )


def _scored(recipe: Recipe, stage: StageConfig, visual_tokens: int) -> int:
    strategy = "none" if stage.compress is None else stage.compress.strategy
    return scored_tokens(strategy, visual_tokens, recipe.architecture.visual_tokens)


@dataclass(frozen=True)
class PassCost:
    """Forward and backward pass of one micro-batch, in FLOPs of one rank."""

    forward: float
    backward: float

    @property
    def total(self) -> float:
        """Both passes."""
        return self.forward + self.backward


@dataclass(frozen=True)
class MicroBatchCosts:
    """One layer of the language model, whole and with its MLP for text alone; what the first stage (tower, projector)
    and the last (logits) have beside."""

    layer: PassCost
    layer_for_text: PassCost
    first: PassCost
    last: PassCost

    def of_stages(self, layers_run: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
        """(forward, backward) by virtual stage, given how many layers run on each, and how many of these their MLP for
        text alone."""
        whole, text = self.layer, self.layer_for_text
        forward = [(run - few) * whole.forward + few * text.forward for run, few in layers_run]
        backward = [(run - few) * whole.backward + few * text.backward for run, few in layers_run]
        for place, extra in ((0, self.first), (-1, self.last)):
            forward[place] += extra.forward
            backward[place] += extra.backward
        return forward, backward


def micro_batch_costs(recipe: Recipe, stage: StageConfig, visual_tokens: int) -> MicroBatchCosts:
    """Costs with so many visual tokens kept of each image.

    Tensor- and context-parallel ranks share layers, logits and the tower; the projector too, tensor-parallel ones only
    under sequence parallelism. Recomputation adds the forward pass of the layers, or of the modules that are
    recomputed, to the backward pass; norms, as everywhere, cost nothing.
    Contract: model/visual_tokens.py shares the tower's images and the scoring of visual tokens out over them. A
    micro-batch with fewer images than ranks leaves some of them idle: the busiest one's cost counts. Text is taken to
    be even over context-parallel ranks; over tensor-parallel ones it is (model/text_rows.py).
    """
    micro, parallel, text_tokens = stage.batch.micro, recipe.parallel, stage.data.text_tokens
    assert text_tokens is not None
    forward, both = (sample_flops(recipe, stage, visual_tokens, 1, trains) for trains in ((), stage.trains))
    sizes, length = ModelSizes(recipe.architecture), planned_length(recipe, stage, visual_tokens)
    images = micro * images_per_sample(stage)
    ranks = parallel.tensor * parallel.context
    busiest = -(-images // ranks)
    projector_ranks = ranks if parallel.sequence_parallel else parallel.context
    scored = sizes.projector(_scored(recipe, stage, visual_tokens))

    def first_stage(flops: StepFlops) -> float:
        kept = flops.projector - images_per_sample(stage) * scored
        return busiest * (flops.tower + scored) + micro * kept / projector_ranks

    def layer(for_text: int) -> PassCost:
        there, back = (
            sample_flops(recipe, stage, visual_tokens, 1, trains, for_text).layers for trains in ((), stage.trains)
        )
        modules = recipe.recompute if isinstance(recipe.recompute, tuple) else ()
        recomputed = there if recipe.recompute == "full" else 0.0
        if "core_attn" in modules:
            recomputed += sizes.layer_attention(length)
        if "mlp" in modules:
            recomputed += sizes.layer_mlp(text_tokens if for_text else length)
        return PassCost(micro * there / ranks, micro * (back - there + recomputed) / ranks)

    return MicroBatchCosts(
        layer=layer(0),
        layer_for_text=layer(1),
        first=PassCost(first_stage(forward), first_stage(both) - first_stage(forward)),
        last=PassCost(micro * forward.head / ranks, micro * (both.head - forward.head) / ranks),
    )
