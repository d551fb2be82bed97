"""A forecast as a picture: skip probability over layers and steps, and the load of the pipeline stages."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from megatron_sts.config import Recipe, SkipConfig
from megatron_sts.errors import ConfigError
from megatron_sts.planning.forecast import RecipeForecast, StageForecast, Work
from megatron_sts.planning.sparsity import strided

_DRAWN_STEPS = 300
# Told apart by colour-blind eyes and in grey.
_COLOURS = {"layers": "#4c72b0", "tower, projector": "#dd8452", "logits": "#f2d16b"}


def plot_forecast(found: RecipeForecast, path: Path) -> None:
    """Draw a row a stage of training into a file, one more where it skips for all tokens and for visual ones.

    Raises ConfigError where it cannot be written.
    """
    drawn = [(stage, skip) for stage in found.stages for skip in stage.planned.stage.skip or (None,)]
    rows = len(drawn)
    figure = Figure(figsize=(13, 3.9 * rows), layout="constrained")
    axes = figure.subplots(rows, 2, squeeze=False, width_ratios=(1.1, 1))
    loaded = set()
    for (left, right), (stage, skip) in zip(axes, drawn, strict=True):
        _draw_probabilities(left, found.recipe, stage, skip)
        if stage.planned.stage.name in loaded:
            right.axis("off")
            continue
        loaded.add(stage.planned.stage.name)
        _draw_load(right, found, stage)
    save_figure(figure, path)


def save_figure(figure: Figure, path: Path) -> None:
    """Write what `--plot` asks for. Raises ConfigError where it cannot be written."""
    try:
        figure.savefig(path, dpi=110)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"--plot {path} cannot be written ({error}); give a .png file in a directory there is"
        ) from error


def _draw_probabilities(axes: Axes, recipe: Recipe, stage: StageForecast, skip: SkipConfig | None) -> None:
    planned, found = stage.planned, stage.sparsity
    layers = recipe.architecture.language.layers
    lines = " (lines between virtual pipeline stages)" if recipe.parallel.pipeline > 1 else ""
    tokens = " for visual tokens" if skip is not None and skip.tokens == "visual" else ""
    axes.set_title(f"{planned.stage.name}: skip probability{tokens}{lines if skip is not None else ''}")
    if skip is None:
        axes.axis("off")
        said = [f"all {layers} layers run in every step"]
        if found.visual_tokens < found.visual_tokens_dense:
            said.append(f"{found.visual_tokens} of {found.visual_tokens_dense} visual tokens kept of an image")
        axes.text(0.5, 0.5, "\n".join(said), transform=axes.transAxes, ha="center", va="center", color="0.35")
        return
    planner = planned.planner(recipe)
    steps = strided(planned.steps, _DRAWN_STEPS)
    values = np.array([planner.skip_probabilities(step, skip.tokens) for step in steps]).T
    image = axes.imshow(
        values,
        aspect="auto",
        origin="lower",
        cmap="Oranges",
        vmin=0,
        vmax=max(0.01, values.max()),
        extent=(1, planned.steps + 1, -0.5, layers - 0.5),
        interpolation="nearest",
    )
    axes.figure.colorbar(image, ax=axes, label="probability to be skipped")
    for chunk in recipe.parallel.layers_of_stages(layers)[1:]:
        axes.axhline(chunk.start - 0.5, color="0.75", linewidth=0.6)
    axes.set(xlabel="optimiser step", ylabel="layer (0 is nearest the input)")


def _draw_load(axes: Axes, found: RecipeForecast, stage: StageForecast) -> None:
    if stage.work is None or found.proposed is None:
        axes.axis("off")
        said = f"give stages.{stage.planned.stage.name}.data.text_tokens\nto see the load of the pipeline stages"
        axes.text(0.5, 0.5, said, transform=axes.transAxes, ha="center", va="center", color="0.35")
        return
    splits = {"as the recipe has it": found.own_split}
    if found.proposed.layers != found.own_split:
        splits["proposed"] = found.proposed.layers
    ranks = np.arange(found.recipe.parallel.pipeline)
    width = 0.8 / len(splits)
    for number, (name, split) in enumerate(splits.items()):
        parts = _loads(stage.work, split, len(ranks))
        places = ranks + (number - (len(splits) - 1) / 2) * width
        bottom = np.zeros(len(ranks))
        for part, values in parts.items():
            # The proposal is hatched, the colours stay those of the parts.
            axes.bar(
                places,
                values,
                width * 0.92,
                bottom=bottom,
                color=_COLOURS[part],
                edgecolor="white",
                hatch="////" if name == "proposed" else None,
                linewidth=0.5,
                label=part if number == 0 else None,
            )
            bottom += values
        for rank, place in zip(ranks, places, strict=True):
            count = sum(split[rank :: len(ranks)])
            box = {"facecolor": _COLOURS["layers"], "edgecolor": "none", "pad": 1.5}
            axes.text(place, 0.05, str(count), ha="center", va="bottom", fontsize=8, color="white", bbox=box)
    if len(splits) > 1:
        axes.bar([0], [0], color="0.6", hatch="////", edgecolor="white", label="hatched: proposed split")
    axes.axhline(1.0, color="0.3", linewidth=0.9, linestyle="--", label="even load")
    axes.set(
        xlabel="pipeline stage (in the bars: its layers)",
        ylabel="time of a micro-batch / mean",
        title=f"{stage.planned.stage.name}: load, every layer running",
        ylim=(0, axes.get_ylim()[1] * 1.2),
    )
    axes.set_xticks(ranks)
    axes.legend(fontsize="small", ncols=3, loc="upper center", frameon=False)


def _loads(work: Work, split: Sequence[int], ranks: int) -> dict[str, np.ndarray]:
    """Load of each pipeline rank by part of the model; the mean of the ranks' sums is 1."""
    costs = work.simulation.costs
    parts = {name: np.zeros(ranks) for name in _COLOURS}
    parts["layers"] += [costs.layer.total * sum(split[rank::ranks]) for rank in range(ranks)]
    parts["tower, projector"][0] = costs.first.total
    parts["logits"][-1] = costs.last.total
    mean = sum(values.sum() for values in parts.values()) / ranks
    return {name: values / mean for name, values in parts.items()}
