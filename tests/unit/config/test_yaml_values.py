"""Shows that YAML text becomes plain values, and that unusable text is one kind of error."""

from collections.abc import Callable
from pathlib import Path

import pytest

from megatron_sts.config.yaml_values import parse_value, read_mapping, resolve
from megatron_sts.errors import ConfigError


def test_interpolations_are_read_as_they_stand_and_resolved_later(write: Callable[..., Path]) -> None:
    values = read_mapping(write("{a: 1e-3, b: '${a}'}"), "recipe")
    assert values == {"a": 1e-3, "b": "${a}"}
    assert resolve(values, "FILE") == {"a": 1e-3, "b": 1e-3}


@pytest.mark.parametrize("text", ["[1", "!!int x", "!!int ''", "!!timestamp x", "!!python/object:os.system x", "${"])
def test_a_value_that_is_not_yaml_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        parse_value(text)


def test_a_circle_of_interpolations_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"'a' in FILE cannot be resolved: .*; correct it"):
        resolve({"a": "${a}"}, "FILE")
