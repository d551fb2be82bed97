"""Each test here is a fault that a run may meet; together they make the table of docs/faults.md.

    @pytest.mark.fault("SIGTERM to one rank of two")                     runs in the suite
    @pytest.mark.fault("SIGTERM to one rank of two", everything=True)    runs with --all-faults alone

Tests of one name make one row. A test that meets its fault several times says so: record_property("runs", 50).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def all_faults(request: pytest.FixtureRequest) -> bool:
    """Whether everything was asked for, and not the share that the suite has time for."""
    return bool(request.config.getoption("all_faults"))


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "fault(name, everything=False): a row of the table of faults")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    wanted, left_out = [], []
    for item in items:
        marker = item.get_closest_marker("fault")
        if marker is not None:
            item.user_properties.append(("fault", marker.args[0]))
        only_in_full = marker is not None and marker.kwargs.get("everything", False)
        (left_out if only_in_full and not config.getoption("all_faults") else wanted).append(item)
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = wanted


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    file = config.getoption("fault_table")
    if file is None:
        return
    reports = [report for kind in ("passed", "failed") for report in terminalreporter.stats.get(kind, [])]
    table = fault_table([report for report in reports if report.when == "call"])
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    Path(file).write_text(table)
    terminalreporter.write_line(f"\n{table}\nwritten to {file}")


def fault_table(reports: Sequence[Any]) -> str:
    """The table of the faults that were met, as markdown; one row a fault, in the order in which they came."""
    rows: dict[str, list[Any]] = {}
    for report in reports:
        properties = dict(report.user_properties)
        if "fault" in properties:
            rows.setdefault(properties["fault"], []).append(report)
    lines = ["| fault | runs | result | seconds |", "|---|---:|---|---:|"]
    for name, met in rows.items():
        runs = sum(int(dict(report.user_properties).get("runs", 1)) for report in met)
        failed = sum(report.failed for report in met)
        result = f"**{failed} of {len(met)} tests failed**" if failed else "pass"
        lines.append(f"| {name} | {runs} | {result} | {sum(report.duration for report in met):.1f} |")
    return "\n".join(lines) + "\n"
