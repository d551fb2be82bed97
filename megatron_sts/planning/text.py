"""A forecast in words and small tables."""

from collections.abc import Sequence

from megatron_sts.config import Recipe, SkipConfig
from megatron_sts.planning.forecast import RecipeForecast, Split, StageForecast, Work
from megatron_sts.planning.lengths import STEPS, RoundedLengths
from megatron_sts.planning.prediction import Prediction
from megatron_sts.planning.sparsity import Probabilities
from megatron_sts.planning.usage_text import fit_lines, machine_lines, usage_lines
from megatron_sts.sts.groups import layers_of_groups, stage_peaks
from megatron_sts.sts.redundancy import expected_rise, redundancy_probabilities, unprotected
from megatron_sts.sts.rises import measurements

# Independent selection that keeps so much less of the saving than balanced is worth a word.
_WARNED_LOSS = 0.1


def forecast_text(found: RecipeForecast) -> str:
    """The whole forecast: layout, every stage of training, the split for all of them."""
    parallel = found.recipe.parallel
    ranks = parallel.tensor * parallel.pipeline * parallel.context * found.data_parallel
    lines = [
        f"layout on {_counted(ranks, 'rank')}: tensor {parallel.tensor}"
        f"{' with sequence parallelism' if parallel.sequence_parallel else ''}, pipeline {parallel.pipeline}"
        f"{f' x {parallel.virtual_pipeline} virtual' if parallel.virtual_pipeline > 1 else ''}, "
        f"{f'context {parallel.context}, ' if parallel.context > 1 else ''}"
        f"data {found.data_parallel}; layers of the {'virtual ' if parallel.virtual_pipeline > 1 else ''}stages "
        f"{_numbers(found.own_split)}"
    ]
    for stage in found.stages:
        lines += ["", *_stage_lines(found, stage)]
    lines += ["", *machine_lines(found), *fit_lines(found)]
    if found.proposed is not None and parallel.pipeline > 1:
        lines += ["", *_proposal_lines(found, found.proposed)]
    return "\n".join(lines)


def _stage_lines(found: RecipeForecast, stage: StageForecast) -> list[str]:
    planned, config = stage.planned, stage.planned.stage
    samples = f"{_counted(planned.samples, 'sample')}, " if planned.samples is not None else ""
    micro_batches = _counted(stage.micro_batches, "micro-batch", "micro-batches")
    lines = [
        f"{config.name}: {samples}{_counted(planned.steps, 'step')} of {config.batch.global_size} "
        f"({micro_batches} of {config.batch.micro} a rank); trains {', '.join(config.trains)}",
        *_sparsity_lines(found.recipe, stage),
    ]
    if stage.work is None:
        lines.append(
            f"  give stages.{config.name}.data.text_tokens to see FLOPs, time and the split of the layers: the mean of "
            "'text' that tools/prepare_data.py check --config tells"
        )
    else:
        lines += _work_lines(found, stage, stage.work)
    return [*lines, *usage_lines(found, stage), *_table(found.recipe, stage)]


def _sparsity_lines(recipe: Recipe, stage: StageForecast) -> list[str]:
    found, config, layers = stage.sparsity, stage.planned.stage, recipe.architecture.language.layers
    skip, visual = config.skip_of("all"), config.skip_of("visual")
    lines = [f"  visual tokens: {found.visual_tokens} of {found.visual_tokens_dense} kept of an image"]
    if skip is None:
        lines.append(f"  layers: all {layers} run")
    else:
        lines += [
            f"  skip probability: mean {found.skip.overall:.4f}; {_by_depth(found.skip)}",
            f"  layers run: {_of_layers(found.layers_run, layers)}; {_how(skip)}",
        ]
    if visual is not None:
        lines += [
            f"  for visual tokens: mean {found.skip_for_visual.overall:.4f}; {_by_depth(found.skip_for_visual)}",
            f"  layers whose MLP sees text alone: {_of_layers(found.layers_for_text, layers)}; {_how(visual)}",
        ]
    return [*lines, *(line for one in config.skip for line in _redundancy_lines(recipe, one))]


def _redundancy_lines(recipe: Recipe, skip: SkipConfig) -> list[str]:
    """What layers by redundancy were measured to be worth, and what it costs that groups share the count."""
    if skip.by != "redundancy":
        return []
    what = "layers" if skip.tokens == "all" else "MLPs for visual tokens"
    rises = measurements(skip, recipe.architecture.language.layers)[-1].rises
    if not any(rises):
        return [f"  {what} by redundancy: not measured yet, so all alike here; training measures when the stage starts"]
    groups = layers_of_groups(recipe, skip)
    kept = [layer for layer in range(len(rises)) if layer not in unprotected(rises, skip)]
    cost = expected_rise(stage_peaks(recipe, skip, rises), rises)
    lines = [
        f"  {what} by redundancy: {f'never {_numbers(kept)}' if kept else 'none protected'}; what is skipped rises by "
        f"{cost:.3f} nats, taken one by one"
    ]
    if len(groups) > 1:
        free = expected_rise(redundancy_probabilities(rises, skip, [range(len(rises))]), rises)
        lines[0] += f" ({free:.3f} if the {len(groups)} groups need not share the count)"
    return lines


def _of_layers(counts: tuple[float, int, int], layers: int) -> str:
    mean, fewest, most = counts
    return f"{mean:.2f} of {layers} on average, {fewest} to {most} in a step"


def _how(skip: SkipConfig) -> str:
    return f"selection {skip.selection}, schedule {skip.schedule}, progress by {skip.progress}"


def _by_depth(found: Probabilities) -> str:
    shown = dict.fromkeys((0, len(found.mean) // 2, len(found.mean) - 1))
    return ", ".join(
        f"layer {layer} {found.mean[layer]:.3f} ({found.lowest[layer]:.3f} to {found.highest[layer]:.3f})"
        for layer in shown
    )


def _work_lines(found: RecipeForecast, stage: StageForecast, work: Work) -> list[str]:
    config, pipelined = stage.planned.stage, found.recipe.parallel.pipeline > 1
    length = f"{work.length:,}" + (f" ({work.length_dense:,} dense)" if work.length != work.length_dense else "")
    lines = _distill_lines(stage)
    lines += [
        f"  sequence: {length} tokens, padded, of a mean sample",
        f"  not in it: {'packing' if config.data.packing else 'padding to the longest sample of a step'}, which "
        "prepare_data.py check --config measures on the data",
        *_rounding_lines(work.rounded),
        f"  FLOPs: {work.flops_executed:.4g} executed, {work.flops_dense:.4g} dense; ideal speed-up "
        f"{work.ideal_speedup:.3f}x",
    ]
    if config.skip and pipelined:
        shown = [f"{name} {_speedup(prediction)}" for name, prediction in work.predictions.items()]
        lines.append(f"  predicted speed-up over the dense step: {', '.join(shown)}")
        lines += _warning(stage, work)
    elif config.skip or config.compress is not None:
        lines.append(f"  predicted speed-up over the dense step: {_speedup(work.planned)}")
    if pipelined:
        lines.append(f"  bubble: {work.planned.bubble:.1%} of the ranks' time ({work.planned.dense_bubble:.1%} dense)")
        lines.append(f"  split for this stage alone: {_split_text(found, work.proposed, bool(config.skip))}")
    return lines


def _distill_lines(stage: StageForecast) -> list[str]:
    teacher = stage.sparsity.teacher
    if teacher is None:
        return []
    return [
        f"  distilled: {teacher.share:.1%} of the steps go forward once more, under a sparse plan with "
        f"{teacher.visual_tokens} visual tokens"
    ]


def _rounding_lines(found: RoundedLengths | None) -> list[str]:
    if found is None or found.multiple == 1:
        return []
    return [
        f"  nor: lengths of steps in multiples of {found.multiple} (length_rounding): {found.distinct} distinct ones "
        f"in {STEPS:,} steps, {found.distinct_unrounded} without, for {found.more_positions:.1%} more positions, by "
        "text lengths made up around the mean"
    ]


def _speedup(found: Prediction | None) -> str:
    if found is None:
        return "not possible on this layout"
    retained = f" ({found.retained_saving:.0%} of the saving)" if found.retained_saving is not None else ""
    return f"{found.speedup:.3f}x{retained}"


def _warning(stage: StageForecast, work: Work) -> list[str]:
    balanced, independent = work.predictions["balanced"], work.predictions["independent"]
    if balanced is None or independent is None:
        return []
    if balanced.retained_saving is None or independent.retained_saving is None:
        return []
    if balanced.retained_saving - independent.retained_saving < _WARNED_LOSS:
        return []
    config = stage.planned.stage
    if all(skip.selection == "balanced" for skip in config.skip):
        return []
    return [
        f"  WARNING: with independent draws the pipeline waits for its slowest stage and keeps "
        f"{independent.retained_saving:.0%} of the saving, with balanced ones {balanced.retained_saving:.0%}; "
        f"set stages.{config.name}.skip.selection: balanced"
    ]


def _split_text(found: RecipeForecast, split: Split, skips: bool) -> str:
    if split.layers == found.own_split:
        return "the recipe's own"
    over_dense = ""
    if split.balanced_speedup is not None and split.balanced_speedup > 1:
        over_dense = f"; there {split.balanced_speedup:.3f}x over dense{' with balanced selection' if skips else ''}"
    return (
        f"{_numbers(split.layers)}: {split.planned_speedup:.3f}x as fast as the recipe's own split, a dense step "
        f"{split.dense_speedup:.3f}x{over_dense}"
    )


def _table(recipe: Recipe, stage: StageForecast) -> list[str]:
    """One line a pipeline stage. Bytes are those of one rank, with activations where they are known; parameters and
    FLOPs those of the whole stage."""
    head = [
        "pipeline stage",
        "layers",
        "parameters",
        "FLOPs",
        "share of step",
        "weights",
        "gradients",
        "optimiser",
        "activations",
        "sum",
    ]
    rows = [head]
    chunks = recipe.parallel.layers_of_stages(recipe.architecture.language.layers)
    for rank, held in enumerate(stage.bytes):
        ranges = [f"{layers.start}-{layers.stop - 1}" for layers in chunks[rank :: recipe.parallel.pipeline]]
        work, usage = stage.work, stage.usage
        activations = round(usage.activations[rank].total) if usage else 0
        rows.append(
            [
                str(rank),
                " ".join(ranges),
                f"{stage.parameters[rank] / 1e6:,.1f} M",
                f"{work.flops_by_rank[rank]:.3g}" if work else "-",
                f"{work.planned.busy[rank]:.1%}" if work else "-",
                *map(_gigabytes, (held.parameters, held.gradients, held.optimizer)),
                _gigabytes(activations) if usage else "-",
                _gigabytes(held.total + activations),
            ]
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    return ["  " + "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]


def _gigabytes(count: int) -> str:
    if not count:
        return "0"
    return f"{count / 2**30:,.2f} GiB" if count >= 2**24 else f"{count / 2**20:,.2f} MiB"


def _proposal_lines(found: RecipeForecast, split: Split) -> list[str]:
    if split.layers == found.own_split:
        return ["split of the layers: no other one gains 0.1% over the whole recipe"]
    parallel = found.recipe.parallel.model_copy(update={"layers_per_stage": split.layers})
    values = ", ".join(f"{key}: {_yaml(value)}" for key, value in parallel.model_dump(exclude_defaults=True).items())
    skips = any(stage.skip for stage in found.recipe.stages)
    return [f"split for the whole recipe: {_split_text(found, split, skips)}. To paste:", f"parallel: {{{values}}}"]


def _yaml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return _numbers(value) if isinstance(value, tuple) else str(value)


def _counted(count: int, one: str, several: str | None = None) -> str:
    return f"{count:,} {one if count == 1 else several or one + 's'}"


def _numbers(values: Sequence[int]) -> str:
    return f"[{', '.join(map(str, values))}]"
