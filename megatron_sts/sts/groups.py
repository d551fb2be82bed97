"""The groups of balanced selection: from the recipe, the layout, or the run that is gone on with.

Of all that a plan follows from, only groups that the recipe leaves open depend on the layout. They are resolved
once, when a run starts, and stay in its checkpoints, so that a resume on another layout keeps the plan.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import accumulate

from megatron_sts.config import EarlierGroups, Recipe, SkipConfig, StageConfig, report
from megatron_sts.errors import ConfigError
from megatron_sts.sts.balanced import balanced_peaks
from megatron_sts.sts.redundancy import alpha_problems, redundancy_probabilities
from megatron_sts.sts.rises import measurements, settled_rises
from megatron_sts.sts.schedule import peak_probabilities

# Rounding of sums of a few probabilities.
_TOLERANCE = 1e-9


def group_sizes(recipe: Recipe, skip: SkipConfig) -> tuple[int, ...]:
    """Layers of each group in order of depth; those of the layout's virtual stages where the recipe names none."""
    layers, groups = recipe.architecture.language.layers, skip.skip_groups
    if groups is None:
        return tuple(len(stage) for stage in recipe.parallel.layers_of_stages(layers))
    return (layers // groups,) * groups if isinstance(groups, int) else groups


def layers_of_groups(recipe: Recipe, skip: SkipConfig, step: int | None = None) -> list[range]:
    """The layers of each group, of a 0-based step, or of the newest groups where it is None.

    Independent draws have no groups: all layers are one.
    """
    if skip.selection == "independent":
        return [range(recipe.architecture.language.layers)]
    sizes = group_sizes(recipe, skip)
    if step is not None:
        sizes = next((earlier.sizes for earlier in skip.earlier_groups if step < earlier.before_step), sizes)
    ends = list(accumulate(sizes))
    return [range(start, end) for start, end in zip([0, *ends], ends, strict=False)]


def skippable_layers(recipe: Recipe, skip: SkipConfig, step: int | None = None) -> list[list[int]]:
    """Of each group the layers that may be skipped: of the groups of a 0-based step, of the newest where it is None."""
    groups = layers_of_groups(recipe, skip, step)
    return [[layer for layer in group if layer not in skip.never_skip] for group in groups]


def stage_peaks(recipe: Recipe, skip: SkipConfig, rises: Sequence[float], step: int | None = None) -> tuple[float, ...]:
    """The highest skip probability of each layer, those of never_skip 0: by depth, or by the layers' rises.

    step: as for `layers_of_groups`. Raises ConfigError where alpha and epsilon, or alpha and the rises, do not give
    probabilities.
    """
    if skip.by == "redundancy":
        return redundancy_probabilities(rises, skip, layers_of_groups(recipe, skip, step))
    peaks = peak_probabilities(recipe.architecture.language.layers, skip)
    return tuple(0.0 if layer in skip.never_skip else peak for layer, peak in enumerate(peaks))


def resolve_skip_groups(
    recipe: Recipe,
    earlier: Recipe | None = None,
    trained: Collection[str] | None = None,
    regrouped: Mapping[str, int] | None = None,
) -> Recipe:
    """The recipe with the groups of every balanced stage written out as sizes, and rises as numbers, for good.

    `earlier`: the resolved recipe of the run that is gone on with, whose groups are kept where this one leaves them
    open. `trained`: names of the stages that are trained on this layout, all where None; the others keep what they
    have. `regrouped`: by the field of a `skip` whose groups may change, the steps done under the old ones. Raises one
    ConfigError that lists every stage that this layout or these groups cannot honour.
    """
    stages, problems = [], []
    for stage in recipe.stages:
        is_trained, skips = trained is None or stage.name in trained, []
        for skip in stage.skip:
            field = stage.skip_field(skip)
            kept = _kept(recipe, stage, skip, earlier)
            skips.append(_with_groups(recipe, skip, kept, is_trained, (regrouped or {}).get(field)))
            try:
                skips[-1] = settled_rises(recipe, stage, skips[-1], earlier, is_trained)
            except ConfigError as error:
                problems.append(f"{field}.{error}")
                continue
            if is_trained:
                is_kept = skip.skip_groups is None and kept is not None
                problems += [
                    f"{field}.{problem}" for problem in _problems(recipe, skips[-1], field if is_kept else None)
                ]
        stages.append(stage.model_copy(update={"skip": tuple(skips)}))
    if problems:
        raise report("the recipe's layer skipping", problems)
    return recipe.model_copy(update={"stages": tuple(stages)})


def _with_groups(
    recipe: Recipe, skip: SkipConfig, kept: SkipConfig | None, is_trained: bool, steps_done: int | None
) -> SkipConfig:
    """A skip with its groups written out: its own, else the kept ones, else those of the layout.

    steps_done: where the groups may differ from the kept ones from this step on; else None.
    """
    if skip.selection != "balanced" or (kept is None and not is_trained):
        return skip
    if kept is None:
        return skip.model_copy(update={"skip_groups": group_sizes(recipe, skip), "earlier_groups": ()})
    old, history = group_sizes(recipe, kept), kept.earlier_groups
    sizes = group_sizes(recipe, skip) if skip.skip_groups is not None else old
    if steps_done is not None:
        if skip.skip_groups is None and next(_straddling(recipe, kept, None), None) is not None:
            sizes = group_sizes(recipe, skip)
        if sizes != old:
            history = (*history, EarlierGroups(before_step=steps_done, sizes=old))
    return skip.model_copy(update={"skip_groups": sizes, "earlier_groups": history})


def settled_groups(
    recipe: Recipe, stage: StageConfig, skip: SkipConfig, earlier: Recipe | None
) -> tuple[int, ...] | None:
    """Sizes of a stage's balanced groups that no layout changes: the recipe's, else those of the run gone on with.

    None where the layout decides.
    """
    if skip.skip_groups is not None:
        return group_sizes(recipe, skip)
    kept = _kept(recipe, stage, skip, earlier)
    return group_sizes(recipe, kept) if kept is not None else None


def _kept(recipe: Recipe, stage: StageConfig, skip: SkipConfig, earlier: Recipe | None) -> SkipConfig | None:
    """The skip of the run gone on with for the same stage and tokens, where its groups fit the model."""
    old_stages = earlier.stages if earlier is not None else ()
    kept = next((old.skip_of(skip.tokens) for old in old_stages if old.name == stage.name), None)
    if earlier is None or kept is None or kept.selection != "balanced" or kept.skip_groups is None:
        return None
    same_depth = earlier.architecture.language.layers == recipe.architecture.language.layers
    return kept if same_depth else None


def _problems(recipe: Recipe, skip: SkipConfig, kept_field: str | None) -> Iterator[str]:
    """Why layers cannot be skipped as asked, one message each, beginning with the key.

    kept_field: the field of the skip whose groups are the checkpoint's; None where they are the recipe's or layout's.
    """
    layers = recipe.architecture.language.layers
    if skip.by == "redundancy":
        yield from _redundancy_problems(recipe, skip, kept_field)
        return
    try:
        peaks = peak_probabilities(layers, skip)
    except ConfigError:
        return  # Already among the problems of the recipe.
    most = layers - skip.min_layers_run
    if skip.selection == "independent":
        certain = sum(peak >= 1.0 for layer, peak in enumerate(peaks) if layer not in skip.never_skip)
        if certain > most:
            yield (
                f"min_layers_run is {skip.min_layers_run} of {layers}, but {certain} layers have the skip probability "
                "1 at their highest; lower min_layers_run or alpha"
            )
        return
    yield from _straddling(recipe, skip, kept_field)
    yield from _overfull(skip, skippable_layers(recipe, skip), peaks, most)


def _redundancy_problems(recipe: Recipe, skip: SkipConfig, kept_field: str | None) -> Iterator[str]:
    layers, groups = recipe.architecture.language.layers, layers_of_groups(recipe, skip)
    if skip.selection == "balanced":
        yield from _straddling(recipe, skip, kept_field)
        yield from _too_few_skipped(skip, len(groups), layers - skip.min_layers_run)
    for measured in measurements(skip, layers):
        yield from alpha_problems(measured.rises, skip, groups)


def _straddling(recipe: Recipe, skip: SkipConfig, kept_field: str | None) -> Iterator[str]:
    """Groups that lie on two virtual stages: the stages would not get faster together."""
    sizes = group_sizes(recipe, skip)
    ends = list(accumulate(sizes))
    origin, remedy = "", "choose groups that lie inside a virtual stage"
    if kept_field is not None:
        origin = ", those that the run in output_dir was begun with,"
        remedy = f"to go on with groups of this layout give --accept {kept_field}.skip_groups"
    for number, stage in enumerate(recipe.parallel.layers_of_stages(recipe.architecture.language.layers)):
        if stage.stop in ends:
            continue
        group = next(index for index, end in enumerate(ends) if end > stage.stop)
        yield (
            f"skip_groups {list(sizes)}{origin} has the layers {ends[group] - sizes[group]} to {ends[group] - 1} in "
            f"one group, but virtual pipeline stage {number} of this layout ends after layer {stage.stop - 1}; "
            f"{remedy}, or choose a layout whose virtual stages are made of whole groups "
            "(parallel.pipeline, parallel.virtual_pipeline, parallel.layers_per_stage)"
        )
        return


def _overfull(skip: SkipConfig, groups: list[list[int]], peaks: tuple[float, ...], most: int) -> Iterator[str]:
    """Groups that cannot meet the count that all groups share."""
    sizes = [len(group) for group in groups]
    expected = sum(peaks[layer] for group in groups for layer in group) / len(groups)
    if expected == 0:
        return  # Nothing is ever skipped, whatever the groups.
    smallest = sizes.index(min(sizes))
    if min(sizes) == 0 or expected > min(sizes) + _TOLERANCE:
        exempt = f", those of never_skip {list(skip.never_skip)} left out" if skip.never_skip else ""
        yield (
            f"alpha {skip.alpha:g} has every group skip {expected:.4g} layers at its highest, but group {smallest} "
            f"has {min(sizes)} that may be skipped{exempt}; lower alpha, make the groups more even, or take layers off "
            "never_skip"
        )
        return
    probabilities = [peak for group in balanced_peaks(groups, peaks) for peak in group]
    if min(probabilities) < -_TOLERANCE or max(probabilities) > 1 + _TOLERANCE:
        worst = max(probabilities, key=lambda value: abs(value - 0.5))
        yield (
            f"epsilon {skip.epsilon:g} with groups of {sizes} layers that may be skipped gives a layer the skip "
            f"probability {worst:.4g}; lower epsilon or alpha, or make the groups more even"
        )
    yield from _too_few_skipped(skip, len(groups), most)


def _too_few_skipped(skip: SkipConfig, groups: int, most: int) -> Iterator[str]:
    if most < groups:
        yield (
            f"min_layers_run is {skip.min_layers_run}, which leaves {most} layers to skip, fewer than the "
            f"{groups} groups that skip the same number each; lower it to at most "
            f"{skip.min_layers_run + most - groups}, or choose fewer skip_groups"
        )
