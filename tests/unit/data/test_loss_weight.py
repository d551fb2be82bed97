"""Shows which weights a record may give to the loss of its answers, and that anything else is named with its key."""

import json
from typing import Any

import pytest

from megatron_sts.data import sample_of_record
from megatron_sts.data.sample import RecordError


def weights(record: dict[str, Any] | None = None, *of_turns: dict[str, Any]) -> list[float]:
    """Weights of the answers of a conversation whose turns, and which itself, have these keys too."""
    turns = [
        {"from": "human" if number % 2 == 0 else "gpt", "value": "one"} | keys for number, keys in enumerate(of_turns)
    ]
    sample = sample_of_record(0, json.loads(json.dumps({"conversations": turns} | (record or {}))))
    assert {turn.weight for turn in sample.turns[::2]} == {1.0}
    return [turn.weight for turn in sample.turns[1::2]]


@pytest.mark.parametrize(
    ("keys", "weight"),
    [
        ({}, 1.0),
        ({"weight": 0.5}, 0.5),
        ({"loss_weight": 3}, 3.0),
        ({"weight": 0}, 0.0),
        ({"loss": False}, 0.0),
        ({"loss": True}, 1.0),
        ({"weight": None, "loss": False}, 0.0),
    ],
)
def test_a_turn_says_how_much_its_loss_counts(keys: dict[str, Any], weight: float) -> None:
    assert weights(None, {}, keys, {}, {}) == [weight, 1.0]


def test_the_weight_of_a_record_multiplies_those_of_its_answers() -> None:
    assert weights({"weight": 0.5}, {}, {}, {}, {"weight": 4}) == [0.5, 2.0]
    assert weights({"loss": False}, {}, {}, {}, {"weight": 4}) == [0.0, 0.0]


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"weight": -1}, "weight: found -1; give a number from 0 to 1e+06"),
        ({"weight": float("nan")}, "weight: found nan; give a number"),
        ({"loss_weight": float("inf")}, "loss_weight: found inf; give a number"),
        ({"loss_weight": 10**400}, "loss_weight: found 1000"),
        ({"weight": "2"}, "weight: found '2'; give a number"),
        ({"weight": True}, "weight: found True; give a number"),
        ({"weight": [1]}, "weight: found [1]; give a number"),
        ({"loss": 0.5}, "loss: found 0.5; give true or false"),
        ({"loss": "no"}, "loss: found 'no'; give true or false"),
        ({"weight": 1, "loss": True}, "weight: found weight and loss; give one of them"),
    ],
)
def test_any_other_value_is_named_with_its_key(keys: dict[str, Any], expected: str) -> None:
    for arguments, key in (((keys, {}, {}), ""), ((None, {}, keys), "conversations[1]."), ((None, keys, {}), "[0].")):
        with pytest.raises(RecordError) as caught:
            weights(*arguments)
        assert key + expected in str(caught.value)
