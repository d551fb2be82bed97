"""Which rank of a command reports an error, and how it reaches the launcher."""

import contextlib
import json
import os
import sys
import time
from pathlib import Path

from megatron_sts.errors import DataError, LostRankError, MegatronStsError

SECONDS_FOR_RANK_ZERO = 10
"""How long the other ranks wait before they speak; a launcher ends all ranks with the first that ends."""
_ERROR_FILE = "TORCHELASTIC_ERROR_FILE"


def rank_of_environment() -> int:
    """This process's rank, 0 without a launcher."""
    return int(os.environ.get("RANK", "0"))


def tell_error(error: MegatronStsError) -> None:
    """Print an error on standard error, once for all ranks of a command that ends with it.

    An unreadable image or network may be one rank's alone (DataError, LostRankError): it speaks at once, unless the
    error is `met_by_all`.
    """
    tell(f"error: {error}", is_own=isinstance(error, DataError | LostRankError) and not error.met_by_all)


def tell(message: str, is_own: bool = False) -> None:
    """Print why this command ends, once for all ranks that end for the same reason.

    is_own: no other rank need have met it. Else rank 0 speaks, and has to before the end of another rank ends it: the
    others wait. One that is still there after that was alone with it, and speaks; of the ranks of a node, one.
    """
    speaks = is_own or rank_of_environment() == 0
    if not speaks:
        time.sleep(SECONDS_FOR_RANK_ZERO)
    _leave_for_launcher(message)
    if _is_first_of_node() or speaks:
        print(message, file=sys.stderr, flush=True)


def _leave_for_launcher(message: str) -> None:
    """Write torchrun's error file of this rank: its report of the failure then ends with this message.

    Not before this rank ends: torchrun takes the rank with the oldest file for the first that failed.
    """
    if file := os.environ.get(_ERROR_FILE):
        # The screen has it anyway.
        with contextlib.suppress(OSError):
            Path(file).write_text(json.dumps({"message": message, "timestamp": str(int(time.time()))}))


def _is_first_of_node() -> bool:
    """Whether no rank of this node has spoken yet."""
    file = os.environ.get(_ERROR_FILE)
    if file is None:
        return True
    try:
        # torchrun gives each rank of a node a directory, side by side.
        (Path(file).parent.parent / "told").touch(exist_ok=False)
    except FileExistsError:
        return False
    except OSError:
        return True
    return True
