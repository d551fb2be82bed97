"""Shows that every link of the pages within the repository, and every file that they name, is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("examples/*/README.md")])
FOLDERS = "constraints|docker|docs|examples|megatron_sts|scripts|tests|tools"


def _anchors(page: Path) -> set[str]:
    """What the headings of a page are called in links, as GitHub has it."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_files_of_a_page_are_there(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not link.startswith("http") and (not target.exists() or (anchor and anchor not in _anchors(target))):
            broken.append(link)
    named = re.findall(rf"`((?:{FOLDERS})/[\w./-]+)`", text)
    broken += [path for path in named if not (ROOT / path).exists()]
    broken += [f"-m {name}" for name in re.findall(r"-m (tests[\w.]+)", text) if not _module(name).is_file()]
    assert broken == []


def _module(name: str) -> Path:
    return ROOT / f"{name.replace('.', '/')}.py"
