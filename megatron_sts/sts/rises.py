"""Where the rises of `skip.by: redundancy` come from: the recipe, a probe's json, or the run that is resumed."""

import json
import math
from pathlib import Path

from megatron_sts.config import MeasuredRises, Recipe, SkipConfig, SkippedTokens, StageConfig
from megatron_sts.errors import ConfigError

_KEYS: dict[SkippedTokens, str] = {"all": "loss_rise", "visual": "loss_rise_visual"}


def read_rises(path: Path, tokens: SkippedTokens, layers: int) -> tuple[float, ...]:
    """By layer, from the json of tools/probe.py: how much the loss rises where it is skipped for these tokens.

    Raises ConfigError where the file cannot be read or is of another model.
    """
    key = _KEYS[tokens]
    remedy = "write it with tools/probe.py --json, or remove rises to measure when the stage starts"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["layers"]
        by_layer = {int(layer["layer"]): float(layer[key]) for layer in found}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"rises: {path} cannot be read ({type(error).__name__}: {error}); {remedy}") from error
    if sorted(by_layer) != list(range(layers)):
        raise ConfigError(
            f"rises: {path} has {len(by_layer)} layers, but the language model has {layers}; probe this model"
        )
    rises = tuple(by_layer[layer] for layer in range(layers))
    if not all(map(math.isfinite, rises)):
        raise ConfigError(f"rises: {path} has a {key} that is not finite; {remedy}")
    return rises


def settled_rises(
    recipe: Recipe, stage: StageConfig, skip: SkipConfig, earlier: Recipe | None, is_trained: bool = True
) -> SkipConfig:
    """The skip with its rises as numbers, as far as they are known; `rises` is None where they are to be measured.

    earlier: the resolved recipe of the run that is resumed; the measurements of a stage that has begun go on to hold.
    is_trained: whether the stage is one to train, for which a file is read.
    """
    if skip.by != "redundancy":
        return skip
    layers = recipe.architecture.language.layers
    begun = next((one for one in earlier.stages if one.name == stage.name), None) if earlier is not None else None
    kept = rises_of(begun, skip)
    if kept and all(len(one.rises) == layers for one in kept):
        return skip.model_copy(update={"rises": kept})
    if isinstance(skip.rises, Path):
        if not is_trained:
            return skip
        rises = read_rises(skip.rises, skip.tokens, layers)
        return skip.model_copy(update={"rises": (MeasuredRises(step=0, rises=rises),)})
    return skip


def rises_of(begun: StageConfig | None, skip: SkipConfig) -> tuple[MeasuredRises, ...]:
    """What the checkpoint of a stage knows for the same skip; nothing where it does not go by redundancy."""
    kept = begun.skip_of(skip.tokens) if begun is not None else None
    return kept.rises if kept is not None and isinstance(kept.rises, tuple) and skip.by == "redundancy" else ()


def resumed_rises(stage: StageConfig, begun: StageConfig) -> StageConfig:
    """The stage with the measurements of the checkpoint that it is resumed from, whatever a newer one has."""
    skips = tuple(skip.model_copy(update={"rises": rises_of(begun, skip) or skip.rises}) for skip in stage.skip)
    return stage if skips == stage.skip else stage.model_copy(update={"skip": skips})


def measurements(skip: SkipConfig, layers: int) -> tuple[MeasuredRises, ...]:
    """What was measured, in order, the first from step 0 on; before a measurement every layer is worth the same."""
    found = skip.rises if isinstance(skip.rises, tuple) else ()
    if found and found[0].step == 0:
        return found
    return (MeasuredRises(step=0, rises=(0.0,) * layers), *found)


def with_rises(stage: StageConfig, tokens: SkippedTokens, measured: MeasuredRises) -> StageConfig:
    """The stage after one more measurement; what was measured for that step or a later one is forgotten."""
    changed = []
    for skip in stage.skip:
        if skip.tokens == tokens:
            before = skip.rises if isinstance(skip.rises, tuple) else ()
            kept = tuple(one for one in before if one.step < measured.step)
            skip = skip.model_copy(update={"rises": (*kept, measured)})
        changed.append(skip)
    return stage.model_copy(update={"skip": tuple(changed)})


def to_measure(skip: SkipConfig, step: int) -> bool:
    """Whether the rises are to be measured before a 0-based step."""
    if skip.by != "redundancy":
        return False
    found = skip.rises if isinstance(skip.rises, tuple) else ()
    if not found:
        return True
    return skip.measure_every is not None and step % skip.measure_every == 0 and found[-1].step < step
