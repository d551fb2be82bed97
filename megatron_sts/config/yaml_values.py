"""Plain values from YAML text by OmegaConf, for its numbers (1e-3 is one) and its `${…}` interpolation."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from megatron_sts.errors import ConfigError

# Reading catches Exception, not one type: beside its own errors, PyYAML lets ValueError, AttributeError or
# IndexError through when a tag such as !!int stands before something else. All mean: unusable text.


def read_mapping(path: Path, what: str) -> dict[str, Any]:
    """The mapping in a YAML file, interpolations unresolved; ConfigError names the file and `what` it is."""
    if not os.path.isfile(path):
        found = "is a directory" if os.path.isdir(path) else "does not exist"
        raise ConfigError(f"{what} '{path}' {found}; give the path of a YAML file")
    try:
        loaded = OmegaConf.load(path)
        values = OmegaConf.to_container(loaded, resolve=False) if isinstance(loaded, DictConfig) else None
    except Exception as error:
        raise ConfigError(f"{what} '{path}' is not readable as YAML: {error}; correct the file") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{what} '{path}' is not a mapping; write keys and values, as the examples do")
    return {str(key): value for key, value in values.items()}


def parse_value(text: str) -> Any:
    """The value of an override, interpolations unresolved; ValueError where it is not YAML."""
    try:
        parsed = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]), resolve=False)
    except Exception as error:
        raise ValueError(_first_line(error)) from error
    assert isinstance(parsed, dict)
    return parsed["value"]


def resolve(values: dict[str, Any], source: str) -> dict[str, Any]:
    """The values with every `${…}` filled in; ConfigError where one leads nowhere or a value is `???`.

    `${key}` takes another value of the file. `${function:…}` is refused: such a one reads the environment, whose
    secrets would go into checkpoints and model cards with the resolved recipe.
    """
    called = next((text for text in _texts(values) if _calls_function(text)), None)
    if called is not None:
        raise ConfigError(
            f"{source} holds '{called}', which calls a function, such as for a variable of the environment; write the "
            "value itself, or give it by override: key.sub=value"
        )
    try:
        resolved = OmegaConf.to_container(OmegaConf.create(values), resolve=True, throw_on_missing=True)
    except Exception as error:
        field = getattr(error, "full_key", None)
        where = f"'{field}' in {source}" if field else source
        raise ConfigError(f"{where} cannot be resolved: {_first_line(error)}; correct it") from error
    assert isinstance(resolved, dict)
    return {str(key): value for key, value in resolved.items()}


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    for entry in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _texts(entry)


def _calls_function(text: str) -> bool:
    """Whether a colon stands inside `${…}`."""
    depth = 0
    for before, character in zip(" " + text, text, strict=False):
        if character == "{" and before == "$":
            depth += 1
        elif character == "}" and depth:
            depth -= 1
        elif character == ":" and depth:
            return True
    return False


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
