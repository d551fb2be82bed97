"""Who of the ranks of a command says what is wrong."""

import os
import sys
import time

from megatron_sts.errors import DataError, LostRankError, MegatronStsError

SECONDS_FOR_RANK_ZERO = 10
"""How long the other ranks wait before they end; a launcher ends all ranks with the first that ends."""


def tell_error(error: MegatronStsError) -> None:
    """Say on standard error what is wrong, once for all ranks of a command that ends with it.

    Every rank meets a mistake in the recipe or a checkpoint, and rank 0 speaks of it, before the end of another can end
    it. A bad picture or network may be one rank's alone (DataError, LostRankError): whoever meets it speaks, unless it
    is `met_by_all`.
    """
    may_be_own = isinstance(error, DataError | LostRankError) and not error.met_by_all
    if os.environ.get("RANK", "0") == "0" or may_be_own:
        print(f"error: {error}", file=sys.stderr)
    else:
        time.sleep(SECONDS_FOR_RANK_ZERO)
