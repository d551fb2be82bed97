"""What an imported checkpoint holds beside its weights, and a recipe with that `model.init` need not say again."""

from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from megatron_sts.config.architecture import Architecture

ARCHITECTURE_FILE = "architecture.yaml"
_DIRECTORIES = ("vision", "tokenizer")


def write_architecture(checkpoint: Path, architecture: Architecture) -> None:
    """Write the architecture into a checkpoint directory, for a recipe to name or to find."""
    text = OmegaConf.to_yaml(OmegaConf.create(architecture.model_dump(mode="json")))
    (checkpoint / ARCHITECTURE_FILE).write_text(f"# Sizes of this checkpoint's model.\n{text}", encoding="utf-8")


def with_defaults_of_init(values: dict[str, Any]) -> dict[str, Any]:
    """A recipe's plain values; what `model` leaves out is what `model.init` holds: architecture, vision, tokenizer."""
    model = values.get("model")
    init = model.get("init") if isinstance(model, dict) else None
    if not isinstance(init, str):
        return values
    assert isinstance(model, dict)
    found: dict[str, Any] = {}
    if (Path(init) / ARCHITECTURE_FILE).is_file():
        found["architecture"] = str((Path(init) / ARCHITECTURE_FILE).absolute())
    found |= {name: str(Path(init) / name) for name in _DIRECTORIES if (Path(init) / name).is_dir()}
    given = {key: value for key, value in model.items() if value is not None}
    return {**values, "model": {**found, **given}}
