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

    layers: of the language model. max_new_tokens: of an answer. sizes: by size and stage, what differs from the
    example's dense.yaml.
    """

    name: str
    layers: int
    max_new_tokens: int
    sizes: dict[str, dict[str, dict[str, Any]]]
    worth_questions: int = 100

    @property
    def made(self) -> Path:
        """What the example's own run has made: its data, and the weights that alignment starts from."""
        return Path("runs") / self.name

    def recipe(self, size: str) -> dict[str, Any]:
        """The dense recipe of both stages at a size, as plain values."""
        recipe: dict[str, Any] = yaml.safe_load((EXAMPLES / self.name / "dense.yaml").read_text())
        recipe["model"]["architecture"] = str(EXAMPLES / self.name / recipe["model"]["architecture"])
        recipe["parallel"] = {}
        recipe["logging"] = {"every_steps": 10}
        for stage in recipe["stages"]:
            stage.update(self.sizes[size].get(stage["name"], {}))
        return recipe


MODELS = {
    "smollm2": Model(
        "smollm2",
        layers=30,
        max_new_tokens=4,
        sizes={
            "whole": {},
            "short": {
                "align": {"steps": 150},
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
        },
    ),
    "quickstart": Model(
        "quickstart",
        layers=8,
        max_new_tokens=12,
        sizes={"whole": {}, "short": {}, "tiny": {"align": {"steps": 2}, "tune": {"steps": 2}}},
    ),
}


@dataclass(frozen=True)
class Arm:
    """One way to train. align, tune: keys that the stage has beside the dense recipe's; steps: share of the steps."""

    name: str
    about: str
    tune: dict[str, Any] = field(default_factory=dict)
    align: dict[str, Any] = field(default_factory=dict)
    steps: float = 1.0


def arms_of(model: str) -> dict[str, Arm]:
    """The arms of a model, by name, in their order."""
    found = yaml.safe_load((HERE / "arms.yaml").read_text())[model]
    return {name: Arm(name, **values) for name, values in found.items()}


def root(model: Model, size: str) -> Path:
    """Where the runs of a model at a size lie."""
    return RUN / f"{model.name}_{size}"


def start_recipe(model: Model, size: str, arm: Arm) -> dict[str, Any]:
    """Of the alignment that an arm's tuning begins from; arms with a dense alignment share it."""
    recipe = model.recipe(size)
    place = root(model, size) / (f"start_{arm.name}" if arm.align else "start")
    recipe["stages"] = [stage | arm.align for stage in recipe["stages"] if stage["name"] == "align"]
    return recipe | {"output_dir": str(place)}


def arm_recipe(model: Model, size: str, arm: Arm, seed: int, start: Path, rises: Path) -> dict[str, Any]:
    """Of an arm's tuning. start: the aligned checkpoint; rises: the probe's json for `rises: align`."""
    recipe = model.recipe(size)
    stage = next(stage for stage in recipe["stages"] if stage["name"] == "tune") | arm.tune
    stage["steps"] = round(stage["steps"] * arm.steps)
    if stage.get("skip", {}).get("rises") == "align":
        stage["skip"] = stage["skip"] | {"rises": str(rises)}
    recipe["model"]["init"] = str(start)
    recipe["stages"] = [stage]
    return recipe | {"seed": seed, "output_dir": str(root(model, size) / arm.name / str(seed))}
