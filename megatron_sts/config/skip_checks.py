"""What a stage's `skip` must be, as far as the recipe alone can say; the layout's part is in sts/groups.py."""

import math
from collections.abc import Iterator
from pathlib import Path

from megatron_sts.config.recipe import Recipe
from megatron_sts.config.skip_config import SkipConfig
from megatron_sts.config.stage_config import StageConfig


def probability_problem(skip: SkipConfig, layers: int) -> str | None:
    """Why alpha and epsilon do not give a probability at every layer and step; None where they do."""
    alpha, epsilon = skip.alpha, skip.epsilon
    if abs(epsilon) > 1:
        return (
            f"epsilon is {epsilon:g}; it must be between -1 and 1, else a layer's skip probability "
            "falls below 0 (arXiv 2509.18150)"
        )
    if skip.schedule == "pld":
        if epsilon:
            return (
                f"epsilon is {epsilon:g} with schedule 'pld', whose tilt over depth is its own; remove epsilon, or "
                "choose schedule: sts or constant"
            )
        # The deepest layer is skipped 2 L / (L + 1) times as often as the mean.
        highest, factor = 2 * layers / (layers + 1), "2 L / (L + 1)"
    else:
        highest, factor = 1 + abs(epsilon), "(1 + |epsilon|)"
    largest = 1 / highest
    if alpha < 0:
        return f"alpha is {alpha:g}; a skip probability is at least 0 and here at most {largest:.4g}"
    if alpha * highest > 1:
        return (
            f"alpha is {alpha:g} with epsilon {epsilon:g}: alpha * {factor} = {alpha * highest:.4g} is above 1, more "
            f"than a skip probability can be (arXiv 2509.18150); the largest alpha here is "
            f"{math.floor(largest * 1e4) / 1e4:g}"
        )
    return None


def check_skip(recipe: Recipe, stage: StageConfig) -> Iterator[str]:
    """Skip probabilities are probabilities; groups, exceptions and the fewest layers fit the depth."""
    for tokens in sorted({skip.tokens for skip in stage.skip}):
        count = sum(skip.tokens == tokens for skip in stage.skip)
        if count > 1:
            yield f"stages.{stage.name}.skip has {count} blocks with tokens: {tokens}; give one for each kind of tokens"
    for skip in stage.skip:
        yield from _skip_problems(stage.skip_field(skip), skip, recipe.architecture.language.layers)
    visual = stage.skip_of("visual")
    if visual is not None and not stage.data.has_images:
        yield (
            f"{stage.skip_field(visual)}.tokens is visual, but stages.{stage.name}.data has no images and nothing "
            "would be skipped; set data.images, or remove this skip"
        )


def _skip_problems(field: str, skip: SkipConfig, layers: int) -> Iterator[str]:
    problem = probability_problem(skip, layers)
    if problem is not None:
        yield f"{field}.{problem}"
    if skip.min_layers_run > layers:
        yield f"{field}.min_layers_run is {skip.min_layers_run}, but the language model has {layers} layers; lower it"
    outside = [layer for layer in skip.never_skip if not 0 <= layer < layers]
    if outside:
        yield f"{field}.never_skip names {outside}, but layers are numbered 0 to {layers - 1}; remove them"
    if skip.tokens == "visual" and skip.parameters != "frozen":
        yield (
            f"{field}.parameters is '{skip.parameters}' with tokens: visual, where every weight of a layer trains on "
            "the text; remove parameters"
        )
    yield from _redundancy_problems(field, skip, layers)
    yield from _group_problems(field, skip, layers)


def _redundancy_problems(field: str, skip: SkipConfig, layers: int) -> Iterator[str]:
    if skip.by == "depth":
        given = [name for name in ("rises", "measure_every") if getattr(skip, name) is not None]
        if given:
            yield f"{field}.{given[0]} is given with by: depth, which measures nothing; remove it or set by: redundancy"
        return
    if skip.epsilon:
        yield (
            f"{field}.epsilon is {skip.epsilon:g} with by: redundancy, where the rises of the layers take the place of "
            "their depth; remove epsilon, or set by: depth"
        )
    if skip.schedule == "pld":
        yield f"{field}.schedule is pld with by: redundancy, but its rate is one of depth; choose sts or constant"
    if isinstance(skip.rises, Path) and skip.measure_every is not None:
        yield (
            f"{field}.rises is {skip.rises} with measure_every {skip.measure_every}; remove rises to measure when the "
            "stage starts and again, or measure_every to go by the file"
        )
    for measured in skip.rises if isinstance(skip.rises, tuple) else ():
        if len(measured.rises) != layers:
            yield (
                f"{field}.rises has {len(measured.rises)} numbers, but the language model has {layers} layers; give "
                "one for each"
            )
        if not all(map(math.isfinite, measured.rises)):
            yield f"{field}.rises has numbers that are not finite; measure again with tools/probe.py"


def _group_problems(field: str, skip: SkipConfig, layers: int) -> Iterator[str]:
    groups = skip.skip_groups
    if groups is None:
        return
    if skip.selection != "balanced":
        yield f"{field}.skip_groups is given with selection '{skip.selection}'; remove it, or choose balanced"
    elif isinstance(groups, int):
        if groups < 1 or layers % groups:
            yield (
                f"{field}.skip_groups is {groups}, which does not divide the {layers} layers of the language model; "
                "choose a divisor, or give a list of sizes"
            )
    elif min(groups, default=0) < 1 or sum(groups) != layers:
        yield (
            f"{field}.skip_groups is {list(groups)}, which sums to {sum(groups)}; give sizes of at least 1 that sum "
            f"to the {layers} layers of the language model"
        )
