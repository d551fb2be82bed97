"""run.json: what a checkpoint says of its own making."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from megatron_sts.config.not_a_checkpoint import RUN_FILE, why_no_checkpoint
from megatron_sts.config.recipe import Recipe
from megatron_sts.errors import CheckpointError
from megatron_sts.versions import installed_versions

_FORMAT = 1


@dataclass(frozen=True, slots=True)
class Run:
    """`step` optimiser steps of `stage` are done, under `recipe`.

    versions: of the libraries that did them. validation_loss: of these weights, None where it was not measured.
    """

    stage: str
    step: int
    recipe: Recipe
    versions: dict[str, str]
    validation_loss: float | None = None


def write_run(checkpoint: Path, stage: str, step: int, recipe: Recipe, validation_loss: float | None = None) -> None:
    """Write the run.json of a checkpoint directory."""
    content = {
        "format": _FORMAT,
        "stage": stage,
        "step": step,
        "recipe": recipe.resolved(),
        "versions": installed_versions(),
        # json has no other numbers.
        "validation_loss": validation_loss if validation_loss is not None and math.isfinite(validation_loss) else None,
    }
    (checkpoint / RUN_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_run(checkpoint: Path) -> Run:
    """The run.json of a checkpoint directory; CheckpointError where it is missing or not one of ours."""
    file = checkpoint / RUN_FILE
    if not file.is_file():
        raise CheckpointError(f"{checkpoint}: {why_no_checkpoint(checkpoint)}")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if content["format"] != _FORMAT:
            raise CheckpointError(
                f"{file}: found format {content['format']!r}, this version reads {_FORMAT}; "
                "use the version of megatron_sts that wrote it"
            )
        recipe = Recipe.model_validate_json(json.dumps(_as_named_now(content["recipe"])))
        loss = content.get("validation_loss")
        return Run(
            str(content["stage"]),
            int(content["step"]),
            recipe,
            dict(content.get("versions", {})),
            None if loss is None else float(loss),
        )
    except (OSError, ValueError, KeyError, TypeError, ValidationError) as error:
        raise CheckpointError(
            f"{file}: cannot be read ({type(error).__name__}: {error}); use another checkpoint"
        ) from error


def _as_named_now(recipe: dict[str, Any]) -> dict[str, Any]:
    """A resolved recipe with the keys of this version: `data.too_long` was `over_long`, its `set_aside` was `drop`."""
    for stage in recipe["stages"]:
        if "over_long" in stage["data"]:
            policy = stage["data"].pop("over_long")
            stage["data"]["too_long"] = "set_aside" if policy == "drop" else policy
    return recipe
