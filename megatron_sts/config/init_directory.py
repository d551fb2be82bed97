"""What the checkpoint of `model.init` says beside its weights, and a recipe need not say again."""

from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from megatron_sts.config.architecture import Architecture
from megatron_sts.config.not_a_checkpoint import RUN_FILE, why_no_checkpoint
from megatron_sts.config.run_file import read_run
from megatron_sts.errors import ConfigError

ARCHITECTURE_FILE = "architecture.yaml"
_DIRECTORIES = ("vision", "tokenizer")


def write_architecture(checkpoint: Path, architecture: Architecture) -> None:
    """Write the architecture into a checkpoint directory, for a recipe to name or to find."""
    text = OmegaConf.to_yaml(OmegaConf.create(architecture.model_dump(mode="json")))
    (checkpoint / ARCHITECTURE_FILE).write_text(f"# Sizes of this checkpoint's model.\n{text}", encoding="utf-8")


def with_defaults_of_init(values: dict[str, Any]) -> dict[str, Any]:
    """A recipe's plain values; what `model` leaves out is what `model.init` has: architecture, vision, tokenizer.

    An imported checkpoint holds them; that of a training run says in its run.json which ones it was trained with.
    """
    model = values.get("model")
    init = model.get("init") if isinstance(model, dict) else None
    if not isinstance(init, str):
        return values
    assert isinstance(model, dict)
    given = {key: value for key, value in model.items() if value is not None}
    found: dict[str, Any] = {}
    if (Path(init) / ARCHITECTURE_FILE).is_file():
        found["architecture"] = str((Path(init) / ARCHITECTURE_FILE).absolute())
    found |= {name: str(Path(init) / name) for name in _DIRECTORIES if (Path(init) / name).is_dir()}
    if (Path(init) / RUN_FILE).is_file() and not {"architecture", *_DIRECTORIES} <= found.keys() | given.keys():
        trained = read_run(Path(init)).recipe.model.model_dump(mode="json")
        found = {key: trained[key] for key in ("architecture", *_DIRECTORIES) if trained[key] is not None} | found
    return {**values, "model": {**found, **given}}


def check_init(values: dict[str, Any], source: str) -> None:
    """Raise ConfigError where the architecture is left out, and `model.init` is no checkpoint that has one."""
    model = values.get("model")
    init = model.get("init") if isinstance(model, dict) else None
    if isinstance(model, dict) and isinstance(init, str) and model.get("architecture") is None:
        raise ConfigError(f"'model.init' in {source} is '{init}': {why_no_checkpoint(Path(init))}")
