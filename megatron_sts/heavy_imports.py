"""What a command sets before it imports torch, transformers and megatron-core."""

import atexit
import gc
import sys
import warnings


def before_heavy_imports() -> None:
    """Keep from who runs a command what these libraries would cost him beside the seconds of their import.

    Hidden are warnings of megatron-core and of torch.distributed: they speak of packages that are not installed and
    of names that will change, and what runs instead is in the first lines of a run (model/precision.py). With
    `python -W` or PYTHONWARNINGS nothing is hidden. And at its end Python would look through all that they have made,
    for two seconds.
    """
    atexit.register(gc.freeze)
    if sys.warnoptions:
        return
    for module in (r"megatron\.core\.", r"torch\.distributed\."):
        warnings.filterwarnings("ignore", module=module)
