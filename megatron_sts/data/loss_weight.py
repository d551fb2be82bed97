"""The weight that a record, or a turn of it, gives to the loss of its answers."""

from typing import Any

from megatron_sts.data.embedded_image import Place, field_of
from megatron_sts.data.sample import RecordError
from megatron_sts.errors import shown

LARGEST_WEIGHT = 1e6
_KEYS = ("weight", "loss_weight", "loss")


def loss_weight(place: Place, entry: dict[str, Any]) -> float:
    """What `weight`, `loss_weight` or `loss` of a record or turn says; 1.0 without any of them.

    `weight` and `loss_weight` are numbers, `loss` is true or false (0: context only). place: of the entry.
    Raises RecordError for any other value, and where several of the keys are given.
    """
    # Nearly all records have none of them.
    if entry.keys().isdisjoint(_KEYS):
        return 1.0
    given = [key for key in _KEYS if key in entry and entry[key] is not None]
    if not given:
        return 1.0
    key, value = given[0], entry[given[0]]
    if len(given) > 1:
        raise RecordError(f"{field_of((*place, key))}: found {' and '.join(given)}; give one of them")
    if key == "loss":
        if not isinstance(value, bool):
            raise RecordError(
                f"{field_of((*place, key))}: found {shown(value)}; give true or false, or a number as 'weight'"
            )
        return float(value)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 <= value <= LARGEST_WEIGHT:
        raise RecordError(
            f"{field_of((*place, key))}: found {shown(value)}; give a number from 0 to {LARGEST_WEIGHT:g}"
        )
    return float(value)
