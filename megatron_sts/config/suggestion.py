"""The nearest of the names there are, for a name that is not one of them."""

import difflib
from collections.abc import Iterable


def suggestion(wanted: str, names: Iterable[str]) -> str:
    """The end of a sentence about an unknown name: `; did you mean 'alpha'?`, or `;` where none is near."""
    close = difflib.get_close_matches(wanted, list(names), n=1)
    return f"; did you mean '{close[0]}'?" if close else ";"
