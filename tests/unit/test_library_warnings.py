"""Shows that the commands keep the libraries' warnings from the user, unless Python is asked for them."""

import subprocess
import sys

import pytest

# `warn_explicit` gives the module that a warning comes from, as a library's own call would.
PROGRAM = """
import sys
import warnings
from megatron_sts.library_warnings import hide_library_warnings
hide_library_warnings()
for module in sys.argv[1:]:
    warnings.warn_explicit(f"said by {module}", UserWarning, "file.py", 1, module=module)
"""


MODULES = ["megatron.core.optimizer", "torch.distributed.checkpoint.planner", "megatron_sts.data", "numpy"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], MODULES[2:]),
        (
            ["-W", "default"],
            ["megatron.core.optimizer", "torch.distributed.checkpoint.planner", "megatron_sts.data", "numpy"],
        ),
    ],
    ids=["as it is", "asked for"],
)
def test_only_the_libraries_warnings_are_hidden_and_only_where_none_are_asked_for(options, said):
    done = subprocess.run(
        [sys.executable, *options, "-c", PROGRAM, *MODULES],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env={},
    )
    assert [line.split("said by ")[1] for line in done.stderr.splitlines() if "said by " in line] == said
