"""Shows that the commands keep the libraries' warnings from the user unless asked for, and end without a search."""

import subprocess
import sys

import pytest

# `warn_explicit` gives the module that a warning comes from, as a library's own call would. What is registered first
# is called last.
PROGRAM = """
import atexit
import gc
import sys
import warnings
from megatron_sts.heavy_imports import before_heavy_imports
atexit.register(lambda: print(gc.get_freeze_count()))
before_heavy_imports()
for module in sys.argv[1:]:
    warnings.warn_explicit(f"said by {module}", UserWarning, "file.py", 1, module=module)
"""
MODULES = ["megatron.core.optimizer", "torch.distributed.c10d_logger", "megatron_sts.data", "numpy"]


@pytest.mark.parametrize(
    ("options", "said"), [([], MODULES[2:]), (["-W", "default"], MODULES)], ids=["as it is", "asked for"]
)
def test_only_the_libraries_warnings_are_hidden_and_the_end_is_quick(options, said):
    command = [sys.executable, *options, "-c", PROGRAM, *MODULES]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True, env={})
    assert [line.split("said by ")[1] for line in done.stderr.splitlines() if "said by " in line] == said
    assert int(done.stdout) > 1000
