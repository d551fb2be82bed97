"""The models that are studied, and the arms of arms.yaml as recipes."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).resolve().parent
EXAMPLES = HERE.parent
# Below the working directory, as the recipes have it.
RUN = Path("runs/study")


@dataclass(frozen=True)
class Model:
    """An example that arms are compared on.

    example: folder of its recipes. layers: of the language model. max_new_tokens: of an answer. sizes: by size and
    stage, what differs from the example's dense.yaml, and as `arm` what differs in the arms' own stage. begins_after:
    the last stage, trained densely, that all arms share.
    """

    name: str
    example: str
    layers: int
    max_new_tokens: int
    sizes: dict[str, dict[str, dict[str, Any]]]
    worth_questions: int = 100
    begins_after: str = "align"

    @property
    def made(self) -> Path:
        """What the example's own run has made: its data, and the weights that alignment starts from."""
        return Path("runs") / self.example

    def recipe(self, size: str) -> dict[str, Any]:
        """The dense recipe of both stages at a size, as plain values."""
        recipe: dict[str, Any] = yaml.safe_load((EXAMPLES / self.example / "dense.yaml").read_text())
        recipe["model"]["architecture"] = str(EXAMPLES / self.example / recipe["model"]["architecture"])
        recipe["parallel"] = {}
        recipe["logging"] = {"every_steps": 10}
        for stage in recipe["stages"]:
            stage.update(self.sizes[size].get(stage["name"], {}))
        return recipe


_SMOLLM2 = {
    "whole": {},
    "short": {
        "align": {"steps": 95},
        "tune": {
            "steps": 90,
            "batch": {"global": 8, "micro": 8},
            "learning_rate_schedule": {"warmup_steps": 8, "minimum_ratio": 0.1},
        },
    },
    "tiny": {
        "align": {"steps": 2, "batch": {"global": 4, "micro": 4}},
        "tune": {"steps": 2, "batch": {"global": 4, "micro": 4}},
    },
}
_LATER = _SMOLLM2 | {"short": _SMOLLM2["short"] | {"arm": {"steps": 60}}}
_QUICKSTART = {"whole": {}, "short": {}, "tiny": {"align": {"steps": 2}, "tune": {"steps": 2}}}

MODELS = {
    model.name: model
    for model in (
        Model("smollm2", "smollm2", layers=30, max_new_tokens=4, sizes=_SMOLLM2),
        # From a model that already answers: what sparsity costs after the first learning.
        Model("smollm2_tuned", "smollm2", layers=30, max_new_tokens=4, sizes=_LATER, begins_after="tune"),
        Model("quickstart", "quickstart", layers=8, max_new_tokens=12, sizes=_QUICKSTART),
    )
}


@dataclass(frozen=True)
class Arm:
    """One way to train. align, tune: keys that the stage has beside the dense recipe's; steps: share of the steps."""

    name: str
    about: str
    tune: dict[str, Any] = field(default_factory=dict)
    align: dict[str, Any] = field(default_factory=dict)
    steps: float = 1.0

    @property
    def asks_for_rises(self) -> bool:
        """Whether its skipping goes by what was measured once on the weights and the data that all arms begin from."""
        return bool(self.tune.get("skip", {}).get("rises") == "start")


def arms_of(model: str) -> dict[str, Arm]:
    """The arms of a model, by name, in their order."""
    found = yaml.safe_load((HERE / "arms.yaml").read_text())[model]
    return {name: Arm(name, **values) for name, values in found.items()}


def root(model: Model, size: str) -> Path:
    """Where the runs of a model at a size lie."""
    return RUN / f"{model.name}_{size}"


def start_recipe(model: Model, size: str, arm: Arm) -> dict[str, Any]:
    """Of what an arm's tuning begins from; arms with a dense alignment share it."""
    recipe = model.recipe(size)
    place = root(model, size) / (f"start_{arm.name}" if arm.align else "start")
    align, tune = recipe["stages"]
    recipe["stages"] = [align | arm.align, *([tune] if model.begins_after == "tune" else [])]
    return recipe | {"output_dir": str(place)}


def probe_recipe(model: Model, size: str, start: Path) -> dict[str, Any]:
    """Of measuring what the layers are worth to these weights, on data that they fit: that of their last stage."""
    recipe = start_recipe(model, size, Arm("dense", ""))
    recipe["model"]["init"] = str(start)
    recipe["stages"] = recipe["stages"][-1:]
    return recipe | {"output_dir": str(root(model, size) / "probe")}


def arm_recipe(model: Model, size: str, arm: Arm, seed: int, start: Path, rises: Path | None) -> dict[str, Any]:
    """Of an arm's tuning. start: the checkpoint; rises: the probe's json, for an arm that asks for it."""
    recipe = model.recipe(size)
    stage = recipe["stages"][-1] | model.sizes[size].get("arm", {}) | arm.tune
    stage["steps"] = round(stage["steps"] * arm.steps)
    if arm.asks_for_rises:
        stage["skip"] = stage["skip"] | {"rises": str(rises)}
    recipe["model"]["init"] = str(start)
    recipe["stages"] = [stage]
    return recipe | {"seed": seed, "output_dir": str(root(model, size) / arm.name / str(seed))}
