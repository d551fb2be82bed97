"""Recipes that were mangled: a typed error that says what is wrong, or a recipe; never a library's traceback."""

import time
from pathlib import Path

import pytest
import yaml
from hypothesis import strategies as st

from megatron_sts.config import load_recipe
from megatron_sts.errors import MegatronStsError
from tests.faults.mangling import mangled, meet
from tests.unit.config.conftest import RECIPE

SECONDS_FOR_ONE = 5.0
ODD_VALUES = (
    None, True, -1, 0, 10**30, float("nan"), float("-inf"), 1e-320, "", "???", "${", "${seed}", "${oc.env:HOME}",
    "${oc.create:{a: 1}}", "../../etc/passwd", "\0", "é\u2028", "1e-3", [], {}, [[[]]], {"a": {"b": [1]}}, [None],
    "x" * 5000,
)  # fmt: skip


def _load(text: str, directory: Path) -> None:
    """A recipe or a typed error, in time."""
    file = directory / "mangled.yaml"
    file.write_text(text, encoding="utf-8")
    began = time.monotonic()
    try:
        load_recipe(file, check_files=False)
    except MegatronStsError as error:
        said = str(error)
    else:
        said = "a recipe"
    assert said.strip()
    assert time.monotonic() - began < SECONDS_FOR_ONE


@pytest.mark.fault("mangled recipes: a typed error or a recipe, no traceback of a library, no hang")
def test_mangled_recipes_give_a_typed_error_or_a_recipe(tmp_path, all_faults, record_property):
    count = 200 if all_faults else 40
    record_property("runs", count)
    meet(count, mangled(RECIPE, ODD_VALUES), lambda recipe: _load(yaml.safe_dump(recipe, allow_unicode=True), tmp_path))


@pytest.mark.fault("mangled recipe files: bytes cut out, doubled and changed")
def test_mangled_text_of_a_recipe_gives_a_typed_error_or_a_recipe(tmp_path, all_faults, record_property):
    count = 200 if all_faults else 40
    record_property("runs", count)
    whole = yaml.safe_dump(RECIPE)
    position = st.integers(0, len(whole))
    cuts = st.tuples(
        position, position, st.sampled_from(["", ":", "- ", "&a ", "*a", "{", "\t", "!!int ", "\x85", "? "])
    )
    meet(count, cuts, lambda cut: _load(whole[: cut[0]] + cut[2] + whole[cut[1] :], tmp_path))


# Nine levels of nine aliases each: a billion entries.
ALIASES = "b: &b [x, x]\n" + "".join(
    f"b{level}: &b{level} [{', '.join([f'*b{level - 1}' if level else '*b'] * 9)}]\n" for level in range(9)
)


@pytest.mark.fault("YAML tags that make Python objects, entity bombs, values read from the environment: refused")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("output_dir: !!python/object/apply:os.system ['touch {canary}']", "not readable as YAML"),
        ("output_dir: !!python/name:os.system", "not readable as YAML"),
        (ALIASES, "recipe.yaml"),
        ("output_dir: ${oc.env:HOME}", "variable of the environment"),
        ("output_dir: ${oc.decode:${oc.env:HOME}}", "variable of the environment"),
    ],
)
def test_recipe_that_wants_more_than_plain_values_is_refused(tmp_path, text, message):
    canary = tmp_path / "canary"
    file = tmp_path / "recipe.yaml"
    rest = {key: value for key, value in RECIPE.items() if key != "output_dir"}
    file.write_text(text.replace("{canary}", str(canary)) + "\n" + yaml.safe_dump(rest))
    began = time.monotonic()
    with pytest.raises(MegatronStsError, match=message):
        load_recipe(file, check_files=False)
    assert time.monotonic() - began < SECONDS_FOR_ONE
    assert not canary.exists()
