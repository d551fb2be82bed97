"""Shows that a stage leaves gradients on for exactly the parts it trains, of the tower as far as it is used."""

from megatron_sts.config import Recipe
from megatron_sts.model.build import build_chunks, freeze
from megatron_sts.parallel.groups import group_collection, start_groups
from tests.ranks import run_ranks
from tests.tiny import tiny_recipe


def _trained(recipe: Recipe, choices: list[tuple[str, ...]]) -> list[set[str]]:
    """For each choice in turn the parts whose parameters all have gradients; none may have some."""
    start_groups(recipe.parallel, recipe.seed)
    chunks = build_chunks(recipe, group_collection(), draw_weights=False)
    found = []
    for trains in choices:
        freeze(chunks, trains)
        parts: dict[str, set[bool]] = {}
        for chunk in chunks:
            for name, parameter in chunk.named_parameters():
                # The tiny tower's features are taken before its second layer.
                unused = "encoder.layers.1." in name or "post_layernorm" in name
                part = "unused" if name.startswith("vision.") and unused else name.split(".")[0]
                parts.setdefault(part, set()).add(parameter.requires_grad)
        assert parts.pop("unused", {False}) == {False}
        assert all(len(states) == 1 for states in parts.values())
        found.append({part for part, states in parts.items() if states == {True}})
    return found


CHOICES = [("projector",), ("projector", "language"), ("language",), ("projector", "vision"), ("vision",)]


def test_parts_are_frozen_and_freed_again(tmp_path):
    (trained,) = run_ranks(1, _trained, tiny_recipe(tmp_path), CHOICES)
    assert trained == [set(choice) for choice in CHOICES]


def test_later_stages_hold_the_language_model_alone(tmp_path):
    first, last = run_ranks(2, _trained, tiny_recipe(tmp_path, parallel={"pipeline": 2}), CHOICES)
    assert first == [set(choice) for choice in CHOICES]
    assert last == [set(choice) & {"language"} for choice in CHOICES]
