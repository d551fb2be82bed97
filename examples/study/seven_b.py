"""What an arm's settings save in LLaVA-1.5-7B, where most positions are visual tokens, unlike in these small models."""

import json

from models import EXAMPLES, Arm

from megatron_sts.config import load_recipe
from megatron_sts.planning import forecast

RECIPE = EXAMPLES / "llava15_7b" / "dense.yaml"


def saved_of_7b(arm: Arm, layers: int) -> float:
    """Share of LLaVA-1.5-7B's tuning FLOPs that the arm's settings would save, against all steps dense, by its plan.

    layers: of the studied language model; a list of its layers names those of the 7B at the same relative depth.
    """
    deep = load_recipe(RECIPE, check_files=False).architecture.language.layers
    settings = {key: dict(values) for key, values in arm.tune.items()}
    for values in settings.values():
        values.pop("rises", None)
        if kept := values.get("never_skip"):
            values["never_skip"] = [layer for layer in range(deep) if layer * layers // deep in kept]
    overrides = [f"stages.tune.{key}={json.dumps(values)}" for key, values in settings.items()]
    work = next(
        one.work
        for one in forecast(load_recipe(RECIPE, overrides, check_files=False)).stages
        if one.planned.stage.name == "tune"
    )
    assert work is not None
    return 1 - arm.steps * work.flops_executed / work.flops_dense
