"""Values with some of their parts replaced, taken out or added, and a fixed sequence of them."""

import copy
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The keys and positions that lead to each value inside `value`, to itself first."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, entry in inside for place in places(entry, (*path, key)))]


@st.composite
def mangled(draw: st.DrawFn, whole: Any, odd_values: tuple[Any, ...]) -> Any:
    """A copy with one to three of its values replaced by odd ones or removed, or joined by a key it does not know."""
    value = copy.deepcopy(whole)
    inside = [place for place in places(whole) if place]
    for place in draw(st.lists(st.sampled_from(inside), min_size=1, max_size=3)):
        here: Any = value
        try:
            for key in place[:-1]:
                here = here[key]
            how = draw(st.sampled_from(["replace", "remove", "add"]))
            if how == "remove":
                del here[place[-1]]
            elif how == "add" and isinstance(here, dict):
                here[draw(st.text(max_size=8))] = draw(st.sampled_from(odd_values))
            else:
                here[place[-1]] = draw(st.sampled_from(odd_values))
        except (KeyError, IndexError, TypeError):
            # An earlier change has taken this place away.
            continue
    return value


def meet(count: int, strategy: Any, check: Any) -> None:
    """`check` of `count` values, the same ones every time."""

    @settings(
        max_examples=count,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def met(value: Any) -> None:
        check(value)

    met()
