"""Dotted overrides: `parallel.pipeline=4`, `stages.tune.skip.alpha=0`, `stages.tune.compress=null`.

In a list, a stage goes by its name and a `skip` by its tokens: `stages.tune.skip.visual.alpha=0`.
"""

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from megatron_sts.config.suggestion import suggestion
from megatron_sts.config.yaml_values import parse_value
from megatron_sts.errors import ConfigError

_FORM = re.compile(r"([A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*)=(.*)", re.DOTALL)

# Fields that stand for each other: an override of one takes the place of the other that the file gives.
_ALTERNATIVES = {
    "epochs": "steps",
    "steps": "epochs",
    "keep_ratio": "keep_tokens",
    "keep_tokens": "keep_ratio",
    "warmup_ratio": "warmup_steps",
    "warmup_steps": "warmup_ratio",
}


@dataclass(frozen=True)
class Override:
    """One override: its text as given, the keys it leads through, the value it sets."""

    text: str
    keys: tuple[str, ...]
    value: Any

    @property
    def field(self) -> str:
        """The dotted field."""
        return ".".join(self.keys)


def parse_override(text: str) -> Override:
    """Read `key.sub=value`, the value being YAML; ConfigError where it is not of that form."""
    match = _FORM.fullmatch(text)
    if match is None:
        raise ConfigError(f"override '{text}' is malformed; write key.sub=value, such as parallel.pipeline=4")
    if not match[2].strip():
        raise ConfigError(f"override '{text}' has no value; write {match[1]}=null to unset the field")
    try:
        value = parse_value(match[2])
    except ValueError as error:
        raise ConfigError(f"override '{text}' has a value that is not YAML: {error}; quote the value") from error
    return Override(text, tuple(match[1].split(".")), value)


def apply_overrides(values: dict[str, Any], overrides: Sequence[Override], source: str) -> dict[str, Any]:
    """A copy of the recipe's plain values with the overrides set; `source` names the recipe in errors."""
    values = copy.deepcopy(values)
    given = {override.keys for override in overrides if override.value is not None}
    for override in overrides:
        block, key = _block_of(values, override, source)
        block[key] = override.value
        other = _ALTERNATIVES.get(key)
        # Where both are given by override, both stay, and the recipe's own check says what is wrong.
        if other is not None and override.value is not None and (*override.keys[:-1], other) not in given:
            block.pop(other, None)
    return values


def _block_of(values: dict[str, Any], override: Override, source: str) -> tuple[dict[str, Any], str]:
    """The mapping that holds an override's field, made where there is none, and the field's key."""
    block, keys = values, override.keys
    if keys[0] == "stages" and len(keys) > 1:
        if len(keys) == 2:
            raise ConfigError(f"override '{override.text}' names a whole stage; name a field of it")
        block, keys = _stage_named(values.get("stages"), override, source), keys[2:]
    for position, key in enumerate(keys[:-1]):
        inner = block.get(key)
        if inner is None:
            inner = block[key] = {}
        if key == "skip" and isinstance(inner, list) and position + 2 < len(keys):
            inner = {str(entry.get("tokens", "all")): entry for entry in inner if isinstance(entry, dict)}
        if not isinstance(inner, dict):
            reached = ".".join(override.keys[: len(override.keys) - len(keys) + position + 1])
            raise ConfigError(
                f"override '{override.text}' goes into '{reached}', which {source} gives as {inner!r} and "
                "not as a block of keys; override that field itself"
            )
        block = inner
    return block, keys[-1]


def _stage_named(stages: Any, override: Override, source: str) -> dict[str, Any]:
    wanted = override.keys[1]
    entries = [stage for stage in stages if isinstance(stage, dict)] if isinstance(stages, list) else []
    for stage in entries:
        if str(stage.get("name")) == wanted:
            return stage
    names = [str(stage["name"]) for stage in entries if "name" in stage]
    raise ConfigError(
        f"override '{override.text}' names stage '{wanted}', which {source} does not have"
        f"{suggestion(wanted, names)} its stages: {', '.join(names) or 'none'}"
    )
