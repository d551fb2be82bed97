"""Warnings of libraries that say nothing to who runs a command of ours."""

import sys
import warnings


def hide_library_warnings() -> None:
    """Hide what megatron-core and torch's checkpoints warn of; before they are imported.

    They speak of packages that are not installed and of names that will change. What runs instead of these packages
    is in the first lines of a run (model/precision.py). With `python -W` or PYTHONWARNINGS nothing is hidden.
    """
    if sys.warnoptions:
        return
    for module in (r"megatron\.core\.", r"torch\.distributed\.checkpoint\."):
        warnings.filterwarnings("ignore", module=module)
