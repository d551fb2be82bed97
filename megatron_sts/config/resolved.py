"""A recipe written down with every default, and what differs between two such records."""

import re
from typing import Any

from omegaconf import OmegaConf

from megatron_sts.config.recipe import Recipe


def resolved_yaml(recipe: Recipe) -> str:
    """YAML of `recipe.resolved()`; `load_recipe` of it gives an equal recipe."""
    return OmegaConf.to_yaml(_escaped(recipe.resolved()))


def difference(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """The dotted fields in which two resolved recipes differ: stages by name, a lone block as a whole."""
    return _differing(old, new, "")


def _differing(old: Any, new: Any, field: str) -> list[str]:
    if isinstance(old, list) and isinstance(new, list):
        old_names, new_names = _names(old), _names(new)
        if old_names is None or new_names is None:
            return [] if old == new else [field]
        kept = [name for name in old_names if name in new_names]
        reordered = [field] if kept != [name for name in new_names if name in old_names] else []
        old_stages = dict(zip(old_names, old, strict=True))
        return reordered + _differing(old_stages, dict(zip(new_names, new, strict=True)), field)
    if isinstance(old, dict) and isinstance(new, dict):
        found = []
        for key in dict.fromkeys([*old, *new]):
            inner = f"{field}.{key}" if field else str(key)
            if key not in old or key not in new:
                found.append(inner)
            else:
                found += _differing(old[key], new[key], inner)
        return found
    return [] if old == new else [field]


def _names(entries: list[Any]) -> list[str] | None:
    """The names of a list of stages; None for any other list."""
    if not entries or not all(isinstance(entry, dict) and "name" in entry for entry in entries):
        return None
    return [str(entry["name"]) for entry in entries]


def _escaped(value: Any) -> Any:
    """A `${` left in resolved text is no interpolation: it is escaped, and so are backslashes before it."""
    if isinstance(value, dict):
        return {key: _escaped(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_escaped(entry) for entry in value]
    if isinstance(value, str):
        return re.sub(r"(\\*)\$\{", lambda match: match[1] * 2 + "\\${", value)
    return value
