"""The table of faults: one row a fault, with a failure named, and no row for what did not run."""

from types import SimpleNamespace

from tests.faults.conftest import fault_table


def _report(name: str, failed: bool, runs: int = 1) -> SimpleNamespace:
    return SimpleNamespace(user_properties=[("fault", name), ("runs", runs)], failed=failed, duration=0.5)


def test_one_row_a_fault_and_failures_are_named():
    other = SimpleNamespace(user_properties=[], failed=True, duration=1.0)
    reports = [_report("kill", False, 50), _report("disk full", True), _report("kill", False), other]
    assert fault_table(reports).splitlines()[2:] == [
        "| kill | 51 | pass | 1.0 |",
        "| disk full | 1 | **1 of 1 tests failed** | 0.5 |",
    ]
