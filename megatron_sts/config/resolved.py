"""A recipe written down with every default, and what differs between two such records."""

import re
from typing import Any

from omegaconf import OmegaConf

from megatron_sts.config.recipe import Recipe


def resolved_yaml(recipe: Recipe) -> str:
    """YAML of `recipe.resolved()`; `load_recipe` of it gives an equal recipe."""
    return OmegaConf.to_yaml(_escaped(recipe.resolved()))


def difference(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """The dotted fields in which two resolved recipes differ: a stage by name, a skip by tokens, a lone block whole."""
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


def entry_name(entry: Any) -> str | None:
    """What an entry of a list is called in a dotted field: a stage's name, a skip's tokens; None for any other."""
    name = entry.get("name", entry.get("tokens")) if isinstance(entry, dict) else None
    return None if name is None else str(name)


def _names(entries: list[Any]) -> list[str] | None:
    """The names of a list's entries; None where one has none."""
    names = [name for name in map(entry_name, entries) if name is not None]
    return names if names and len(names) == len(entries) else None


def _escaped(value: Any) -> Any:
    """A `${` left in resolved text is no interpolation: it is escaped, and so are backslashes before it."""
    if isinstance(value, dict):
        return {key: _escaped(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_escaped(entry) for entry in value]
    if isinstance(value, str):
        return re.sub(r"(\\*)\$\{", lambda match: match[1] * 2 + "\\${", value)
    return value
