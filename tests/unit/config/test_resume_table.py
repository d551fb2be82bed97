"""Shows that every key of a recipe has one line of the resume table, and that the docs have the same table."""

import typing
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

from megatron_sts.config import RESUME_TABLE, OnResume, Recipe, ResumeRule, resume_rule

PAGE = Path(__file__).resolve().parents[3] / "docs" / "faults.md"
KNOWN = [key for rule in RESUME_TABLE for key in rule.keys]
# The one block that is one line: whatever is added to it makes another model.
BLOCKS = {"model.architecture"}
VERDICTS = {
    OnResume.ALLOWED: "allowed",
    OnResume.KEPT: "the checkpoint's",
    OnResume.ACCEPT: "with `--accept`",
    OnResume.REFUSED: "refused",
}


def nested(annotation: typing.Any) -> type[BaseModel] | None:
    """The block in `Block`, `Block | None` or `tuple[Block, ...]`; None for a plain value."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(nested, typing.get_args(annotation))), None)


def keys_of(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """All keys of the schema, blocks of BLOCKS as one, a stage's under `stages.NAME.`."""
    for name, field in model.model_fields.items():
        key = f"{prefix}{field.serialization_alias or name}"
        block = nested(field.annotation)
        if block is None or key in BLOCKS:
            yield key
        else:
            yield from keys_of(block, "stages.NAME." if key == "stages" else f"{key}.")


SCHEMA = sorted(keys_of(Recipe))


def test_every_key_of_the_schema_has_a_line():
    assert "seed" in SCHEMA and "stages.NAME.batch.global" in SCHEMA and "stages.NAME.compress.schedule.end" in SCHEMA
    assert set(SCHEMA) - set(KNOWN) == set(), "give these keys a line in megatron_sts/config/resume_table.py"


def test_no_line_is_of_a_key_that_is_not_there_or_twice_there():
    assert sorted(KNOWN) == SCHEMA


@pytest.mark.parametrize(
    ("field", "does"),
    [
        ("seed", OnResume.REFUSED),
        ("parallel.pipeline", OnResume.ALLOWED),
        ("model.architecture.language.rotary_scaling", OnResume.REFUSED),
        ("model.init", OnResume.KEPT),
        ("stages.tune.steps", OnResume.ACCEPT),
        # A block that one of the two recipes does not have.
        ("loss_spike", OnResume.ALLOWED),
        ("stages.tune.compress", OnResume.REFUSED),
        ("stages.tune.learning_rate", OnResume.ACCEPT),
        ("optimizer", OnResume.REFUSED),
    ],
)
def test_a_field_has_its_line_and_a_block_the_strictest_of_its_keys(field, does):
    assert resume_rule(field).does is does


def row(rule: ResumeRule) -> str:
    return f"| {', '.join(f'`{key}`' for key in rule.keys)} | {VERDICTS[rule.does]} | {rule.why} |"


def test_the_docs_have_the_table():
    lines = PAGE.read_text().splitlines()
    start = lines.index("| key | a resume under another value | |") + 2
    expected = [row(rule) for rule in RESUME_TABLE]
    assert lines[start : start + len(expected) + 1] == [*expected, ""], "\n".join(
        ["paste into docs/faults.md:", *expected]
    )
