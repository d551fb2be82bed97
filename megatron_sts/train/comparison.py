"""What a benchmark compares, and what its figures say. No torch: the program that starts the ranks needs it too."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from megatron_sts.config import Recipe, Selection, StageConfig
from megatron_sts.errors import ConfigError
from megatron_sts.sts import resolve_skip_groups
from megatron_sts.sts.steps import stage_steps


def _dense(stage: StageConfig) -> StageConfig:
    return stage.model_copy(update={"skip": (), "compress": None})


def _selecting(selection: Selection) -> Callable[[StageConfig], StageConfig]:
    def change(stage: StageConfig) -> StageConfig:
        if not stage.skip:
            raise ConfigError(f"stages.{stage.name} has no skip, so there is no '{selection}' run to compare")
        return stage.selecting(selection)

    return change


WAYS: dict[str, Callable[[StageConfig], StageConfig]] = {
    "dense": _dense,
    "sts": lambda stage: stage,
    "balanced": _selecting("balanced"),
    "independent": _selecting("independent"),
}
"""Ways to train a stage, by name: dense, as the recipe has it, or that with one selection of layers or the other."""


@dataclass(frozen=True)
class Comparison:
    """What is compared and how often.

    stage: of training. ways: of `changes`, dense among them. plans: steps, spread over the stage, that are timed, each
    `repeats` times. warm_up: untimed steps of each way. changes: what a way makes of the stage, by name.
    """

    stage: str
    ways: tuple[str, ...]
    plans: int = 6
    repeats: int = 2
    warm_up: int = 1
    changes: Mapping[str, Callable[[StageConfig], StageConfig]] = field(default_factory=lambda: WAYS)

    def recipe_of(self, way: str, recipe: Recipe) -> Recipe:
        """The recipe whose plan a way follows, for the stage that is compared; ConfigError where it does not fit."""
        return resolve_skip_groups(recipe.model_copy(update={"stages": (self.changes[way](recipe.stage(self.stage)),)}))

    def steps(self, total_steps: int) -> list[int]:
        """The steps that are timed, 0-based: the middle of each part of the stage, so that the mean over a schedule
        that fades is not off to one side."""
        return [total_steps * (2 * number + 1) // (2 * self.plans) for number in range(self.plans)]

    def total_steps(self, recipe: Recipe) -> int:
        """Steps of the stage, from the recipe alone; ConfigError where it has not the sizes."""
        stage = recipe.stage(self.stage)
        field = f"stages.{stage.name}"
        if stage.data.text_tokens is None:
            raise ConfigError(
                f"{field}.data.text_tokens is not set; give the mean text tokens of a record, of which the benchmark "
                "makes its samples"
            )
        if stage.steps is None and stage.data.samples is None:
            raise ConfigError(f"{field} is measured in epochs and {field}.data.samples is not set; give it, or steps")
        return stage_steps(stage, stage.data.samples or 0)


def check_comparison(comparison: Comparison, recipe: Recipe) -> None:
    """Raise ConfigError, naming the option or the field, where the comparison cannot be made."""
    ways, known = comparison.ways, comparison.changes
    if any(way not in known for way in ways) or "dense" not in ways or len(set(ways)) != len(ways) or len(ways) < 2:
        raise ConfigError(
            f"--compare is '{','.join(ways)}'; give dense and at least one other, each once, of {', '.join(known)}"
        )
    check_counts(comparison)
    comparison.total_steps(recipe)
    for way in ways:
        comparison.recipe_of(way, recipe)


def check_counts(comparison: Comparison) -> None:
    """Raise ConfigError, naming the option, where nothing would be timed."""
    for option, value in (("plans", comparison.plans), ("repeats", comparison.repeats)):
        if value < 1:
            raise ConfigError(f"--{option} is {value}; give at least 1")


def check_compression(comparison: Comparison, recipe: Recipe) -> None:
    """Raise ConfigError, naming the field, where the compression suite cannot be run on the recipe's layout."""
    stage, parallel = recipe.stage(comparison.stage), recipe.parallel
    if parallel.tensor * parallel.context == 1 or parallel.pipeline > 1:
        raise ConfigError(
            f"parallel has tensor {parallel.tensor}, context {parallel.context}, pipeline {parallel.pipeline}; --suite "
            "compression measures what moves between ranks that share the images of a micro-batch: set tensor or "
            "context: 2 or more, and pipeline: 1"
        )
    if stage.compress is None or stage.compress.strategy in ("none", "mean_pool"):
        raise ConfigError(
            f"stages.{stage.name}.compress keeps every visual token or makes new ones; --suite compression compares "
            "ways to select: set its strategy to uniform, random or text_guided"
        )
    if stage.trains != ("projector",) or not stage.data.has_images:
        raise ConfigError(
            f"stages.{stage.name} trains {', '.join(stage.trains)}, with data.images {stage.data.images}; --suite "
            "compression measures alignment on pictures: set trains: [projector] and data.images"
        )
    if comparison.repeats < 1:
        raise ConfigError(f"--repeats is {comparison.repeats}; give at least 1")
    comparison.total_steps(recipe)


def compression_table(result: dict[str, Any]) -> str:
    """The compression suite's result to read."""
    kept, names = result["visual_tokens"], ("visual_bytes_ratio", "projector_time_ratio", "step_time_ratio")
    lines = [
        f"stage {result['stage']}, {result['strategy']}: {kept['kept']} of {kept['total']} visual tokens, over plain"
    ]
    lines += [f"{name:<22}{result[name]:.3f}" for name in (*names, "bytes_over_least")]
    return "\n".join(lines)


def packing_table(result: dict[str, Any]) -> str:
    """The packing suite's result to read."""
    lines = [
        f"stage {result['stage']}, {result['steps']} steps of {result['samples']} samples on {result['device']}",
        f"{'run':<10}{'step s':>10}{'tokens/s':>12}{'padding':>10}{'row':>10}{'memory GiB':>12}",
    ]
    for name, run in result["runs"].items():
        lines.append(
            f"{name:<10}{run['step_time_s']:>10.4f}{run['tokens_per_second']:>12,.0f}{run['padding']:>10.1%}"
            f"{run['sequence_length']:>10,.0f}{run['peak_memory_bytes'] / 2**30:>12.2f}"
        )
    return "\n".join([*lines, f"packed is {result['speedup']:.3f} times as fast"])


def summary(figures: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Each run's figures with its saving against `dense`; that of the first other run once more by itself.

    speedup, ideal_speedup: dense over run, of step time and of FLOPs. retained_saving: the share of the FLOPs' saving
    that the step time shows, (1 - T / T_dense) / (1 - F / F_dense); null where no FLOPs are saved.
    """
    dense = figures["dense"]
    savings = {}
    for name, run in figures.items():
        time_ratio, flops_ratio = run["step_time_s"] / dense["step_time_s"], run["flops"] / dense["flops"]
        retained = (1 - time_ratio) / (1 - flops_ratio) if flops_ratio < 1 else None
        savings[name] = {"speedup": 1 / time_ratio, "ideal_speedup": 1 / flops_ratio, "retained_saving": retained}
    first = next(name for name in figures if name != "dense")
    return {"runs": {name: {**run, **savings[name]} for name, run in figures.items()}, **savings[first]}


def table(result: dict[str, Any]) -> str:
    """A comparison's result to read."""
    layout = result["layout"]
    lines = [
        f"stage {result['stage']} on {result['device']}; tensor {layout['tensor']} x pipeline {layout['pipeline']} "
        f"(virtual {layout['virtual_pipeline']}) x data {layout['data']}",
        "samples are all of the mean length, so that none is padded to another; --suite packing takes the data's",
        f"{'run':<14}{'step s':>10}{'FLOPs':>12}{'memory GiB':>12}{'speed-up':>10}{'ideal':>8}{'retained':>10}",
    ]
    for name, run in result["runs"].items():
        retained = "" if run["retained_saving"] is None else f"{run['retained_saving']:.3f}"
        lines.append(
            f"{name:<14}{run['step_time_s']:>10.4f}{run['flops']:>12.3e}{run['peak_memory_bytes'] / 2**30:>12.2f}"
            f"{run['speedup']:>10.3f}{run['ideal_speedup']:>8.3f}{retained:>10}"
        )
    return "\n".join(lines)
