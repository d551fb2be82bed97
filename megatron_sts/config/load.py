"""From a YAML file and overrides to a checked recipe."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from megatron_sts.config.architecture import Architecture
from megatron_sts.config.architecture_checks import architecture_problems
from megatron_sts.config.checks import check_recipe, report
from megatron_sts.config.init_directory import check_init, with_defaults_of_init
from megatron_sts.config.messages import Sources, key_problems, type_problems
from megatron_sts.config.overrides import Override, apply_overrides, parse_override
from megatron_sts.config.recipe import Recipe
from megatron_sts.config.yaml_values import read_mapping, resolve
from megatron_sts.errors import ConfigError

ConfigType = TypeVar("ConfigType", bound=BaseModel)


def load_recipe(path: str | Path, overrides: Sequence[str] = (), check_files: bool = True) -> Recipe:
    """Read a recipe, set the dotted overrides and check it.

    Relative paths in a recipe start at the current directory; `model.architecture` is looked up beside the
    recipe first, and where it is left out, in `model.init`. Without `check_files` only the recipe and its
    architecture have to exist: enough to plan.
    Raises ConfigError: one, that lists every problem with its field, the value found and the remedy.
    """
    path = Path(path)
    parsed = tuple(map(parse_override, overrides))
    inside = tuple(override for override in parsed if _is_in_architecture(override))
    others = tuple(override for override in parsed if not _is_in_architecture(override))
    sources = Sources(str(path), overrides=parsed)

    # Interpolations see the overrides. Those into the architecture come last: it may be a file of its own.
    values = resolve(apply_overrides(read_mapping(path, "recipe"), others, str(path)), str(path))
    values = with_defaults_of_init(values)
    check_init(values, sources.of("model.init"))
    values, architecture_file = _with_architecture(values, path)
    if architecture_file is not None:
        sources = replace(sources, architecture=str(architecture_file))
    values = apply_overrides(values, inside, str(path))

    recipe = _validated(Recipe, values, sources)
    check_recipe(recipe, check_files, str(path))
    return recipe


def load_architecture(path: str | Path) -> Architecture:
    """Read and check the sizes of a model from a YAML file; ConfigError lists every problem."""
    values = resolve(read_mapping(Path(path), "architecture"), str(path))
    architecture = _validated(Architecture, values, Sources(str(path)))
    problems = architecture_problems(architecture)
    if problems:
        raise report(str(path), problems)
    return architecture


def _is_in_architecture(override: Override) -> bool:
    return len(override.keys) > 2 and override.keys[:2] == ("model", "architecture")


def _with_architecture(values: dict[str, Any], recipe_path: Path) -> tuple[dict[str, Any], Path | None]:
    """The recipe's values with the architecture file, if it names one, in its place; and that file."""
    model = values.get("model")
    name = model.get("architecture") if isinstance(model, dict) else None
    if not isinstance(name, str):
        return values, None
    beside, here = recipe_path.parent / name, Path(name)
    found = next((candidate for candidate in (beside, here) if os.path.isfile(candidate)), None)
    if found is None:
        looked = " and ".join(dict.fromkeys([f"'{beside}'", f"'{here}'"]))
        raise ConfigError(
            f"'model.architecture' in {recipe_path} is '{name}', but there is no such file "
            f"(looked at {looked}); give the path of an architecture file, or its content"
        )
    sizes = resolve(read_mapping(found, "architecture"), str(found))
    return {**values, "model": {**values["model"], "architecture": sizes}}, found


def _validated(model: type[ConfigType], values: Mapping[str, Any], sources: Sources) -> ConfigType:
    """A typed configuration from plain values; one ConfigError for all wrong keys and types."""
    problems = key_problems(values, model, sources)
    try:
        # As JSON, because there pydantic can be strict and still take text for a Path and a list for a
        # tuple: `tensor: true` and `steps: "10"` are mistakes.
        text = json.dumps(values)
    except (TypeError, ValueError) as error:
        problems.append(f"{sources.file} holds a value that is not plain: {error}; write text or numbers")
        raise report(sources.file, problems) from error
    try:
        config = model.model_validate_json(text, strict=True)
    except ValidationError as error:
        problems += type_problems(error, values, model, sources)
        raise report(sources.file, problems) from error
    if problems:
        raise report(sources.file, problems)
    return config
