"""What a recipe would do, in words, before anything is loaded or started."""

from megatron_sts.config import Recipe, StageConfig, resolved_yaml
from megatron_sts.data import StepSampler, read_llava_json
from megatron_sts.parallel.sequence import padded_length
from megatron_sts.sts import StagePlanner, step_flops

_SHOWN_STEPS = 3
# Means over a stage are taken over at most so many of its steps.
_SAMPLED_STEPS = 1000


def describe(recipe: Recipe) -> str:
    """The resolved recipe and each stage's plan. Reads the data's records where they are there, no weights."""
    stages = [_describe_stage(recipe, stage) for stage in recipe.stages]
    parallel = recipe.parallel
    held = [
        f"{layers.start}-{layers.stop - 1}" for layers in parallel.layers_of_stages(recipe.architecture.language.layers)
    ]
    layout = (
        f"layout: tensor {parallel.tensor}{' with sequence parallelism' if parallel.sequence_parallel else ''}, "
        f"pipeline {parallel.pipeline} x {parallel.virtual_pipeline} (layers {', '.join(held)}), "
        "data parallel is what is left"
    )
    return "\n".join([resolved_yaml(recipe).rstrip(), "", layout, *stages])


def _describe_stage(recipe: Recipe, stage: StageConfig) -> str:
    samples = len(read_llava_json(stage.data.train)) if stage.data.train.is_file() else stage.data.samples
    if samples is None and stage.steps is None:
        return f"{stage.name}: {stage.data.train} is not here; give stages.{stage.name}.data.samples to plan without it"
    steps = stage.steps
    if steps is None:
        assert samples is not None and stage.epochs is not None
        steps = StepSampler(samples, stage.batch.global_size, recipe.seed).steps_in(stage.epochs)
    per_epoch = samples / stage.batch.global_size if samples is not None else float(steps)
    planner = StagePlanner(recipe, stage, steps, per_epoch)
    lines = [
        f"{stage.name}: {f'{samples:,} samples, ' if samples is not None else ''}{steps:,} steps of "
        f"{stage.batch.global_size}; trains {', '.join(stage.trains)}",
        *_sparsity(recipe, stage, planner, steps),
    ]
    return "\n  ".join(lines)


def _sparsity(recipe: Recipe, stage: StageConfig, planner: StagePlanner, steps: int) -> list[str]:
    layers, first = recipe.architecture.language.layers, planner.plan(0)
    sampled = range(0, steps, -(-steps // _SAMPLED_STEPS))
    mean_skip = sum(sum(planner.skip_probabilities(step)) for step in sampled) / (len(sampled) * layers)
    lines = [f"visual tokens: {first.visual_tokens} of {first.total_visual_tokens} kept per image"]
    if stage.skip is not None:
        start = planner.skip_probabilities(0)
        shown = [sorted(planner.plan(step).skipped_layers) for step in range(min(_SHOWN_STEPS, steps))]
        lines.append(
            f"layers: mean skip probability {mean_skip:.4f} (first step {start[0]:.3f} to {start[-1]:.3f} over depth), "
            f"{layers * (1 - mean_skip):.2f} of {layers} run on average; first steps skip {shown}"
        )
    else:
        lines.append(f"layers: all {layers} run")
    if stage.data.text_tokens is not None:
        lines.append(_flops_line(recipe, stage, first.visual_tokens, first.total_visual_tokens, mean_skip))
    return lines


def _flops_line(recipe: Recipe, stage: StageConfig, kept: int, total: int, mean_skip: float) -> str:
    assert stage.data.text_tokens is not None
    images = 0 if stage.data.images is None else 1
    layers = recipe.architecture.language.layers

    def flops(visual_tokens: int, share_run: float) -> float:
        length = padded_length(stage.data.text_tokens + images * visual_tokens, recipe.parallel)  # type: ignore[operator]
        sized = step_flops(
            recipe.architecture,
            stage.trains,
            samples=1,
            images=images,
            length=length,
            visual_tokens=visual_tokens,
            layers_run=layers,
        )
        return sized.total - sized.layers * (1 - share_run)

    dense, executed = flops(total, 1.0), flops(kept, 1.0 - mean_skip)
    return f"FLOPs per sample: dense {dense:.3e}, executed {executed:.3e}, ideal speed-up {dense / executed:.2f}x"
