"""Shows that imports between packages go downward only, and that the packages meant to be light stay so."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "megatron_sts"
# A file may import what stands on its own level (inside one package) or on a level before it.
LEVELS = (
    ("errors", "exit_codes", "stop_signals", "machine_errors"),
    ("versions", "rank_errors"),
    ("config", "arguments", "heavy_imports", "fault", "launch"),
    ("command", "records", "sts"),
    ("parallel",),
    ("planning",),
    ("data",),
    ("evaluation",),
    ("model",),
    ("hf",),
    ("train",),
)
ORDER = {name: level for level, names in enumerate(LEVELS) for name in names}
HEAVY = {"torch", "megatron", "transformers"}
SOURCES = sorted(PACKAGE.rglob("*.py"))


def imported(path: Path) -> Iterator[str]:
    """Dotted names that a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            assert node.module is not None
            yield from (f"{node.module}.{name.name}" for name in node.names)


def part(path: Path) -> str:
    """The package or module directly under megatron_sts that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_downward(path):
    own = part(path)
    if own == "__init__":
        assert not list(imported(path))
        return
    for name in imported(path):
        if name.startswith("megatron_sts."):
            other = name.split(".")[1]
            assert other == own or ORDER[other] < ORDER[own], f"{own} imports {name}"


def test_every_package_has_a_level():
    assert {part(path) for path in SOURCES} == {*ORDER, "__init__"}


@pytest.mark.parametrize("light", ["errors", "versions", "config", "records", "sts", "planning"])
def test_light_packages_import_no_framework(light):
    files = [path for path in SOURCES if part(path) == light]
    assert files
    for path in files:
        assert not HEAVY & {name.split(".")[0] for name in imported(path)}, path


def test_an_export_is_evaluated_without_megatron():
    for path in SOURCES:
        if part(path) in {"data", "evaluation"}:
            assert "megatron" not in {name.split(".")[0] for name in imported(path)}, path


def test_nothing_in_the_package_imports_tools_tests_or_examples():
    for path in SOURCES:
        assert not {"tools", "tests", "examples"} & {name.split(".")[0] for name in imported(path)}, path


def test_only_the_published_part_of_megatron_is_imported():
    for path in SOURCES:
        names = [name for name in imported(path) if name.split(".")[0] == "megatron"]
        assert all(name.startswith("megatron.core") for name in names), path
