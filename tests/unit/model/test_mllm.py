"""Shows what the first chunk hands to the language model: text as embedded, kept visual tokens projected in place."""

from dataclasses import replace

import torch
from torch import Tensor

from megatron_sts.config import Recipe
from megatron_sts.data import Batch
from megatron_sts.model.build import build_chunks
from megatron_sts.model.mllm import MultimodalModel
from megatron_sts.parallel.groups import group_collection, place, start_groups
from megatron_sts.sts import StepPlan
from tests.ranks import run_ranks
from tests.tiny import tiny_recipe

KEPT = (0, 3, 7, 12)
PLAN = StepPlan(0, frozenset(), KEPT, 16)


def _batch(pixels: Tensor | None) -> Batch:
    """Two rows of 12; images at (row 0, position 1), (row 1, position 0) and (row 1, position 6)."""
    tokens = torch.arange(24).view(2, 12) % 20
    rows, starts = ([0, 1, 1], [1, 0, 6]) if pixels is not None else ([], [])
    places = (torch.tensor(column, dtype=torch.int64) for column in (rows, starts))
    ids = torch.zeros(len(rows), 2, dtype=torch.int64)
    return Batch(tokens, tokens, pixels, *places, visual_tokens=len(KEPT), image_samples=ids, guides=ids[:, :0])


def _start(recipe: Recipe) -> MultimodalModel:
    start_groups(recipe.parallel, recipe.seed)
    (model,) = build_chunks(recipe, group_collection(), draw_weights=True)
    model.set_plan(PLAN)
    return model


def _pixels() -> Tensor:
    return torch.randn(3, 3, 56, 56, generator=torch.Generator().manual_seed(0))


def _embedded(recipe: Recipe) -> None:
    model = _start(recipe)
    batch = _batch(_pixels())
    embedded = model._embed(batch)
    expected = model.language.embedding(input_ids=batch.tokens, position_ids=None).clone()
    visual = model.projector(model.vision(batch.pixels))
    for image, (row, start) in enumerate(((0, 1), (1, 0), (1, 6))):
        for slot, token in enumerate(KEPT):
            expected[start + slot, row] = visual[image, token]
    torch.testing.assert_close(embedded, expected, rtol=1e-5, atol=1e-6)


def test_kept_visual_tokens_stand_in_their_slots(tmp_path):
    run_ranks(1, _embedded, tiny_recipe(tmp_path))


def _chunk(recipe: Recipe) -> list[float]:
    model = _start(recipe)
    share = place().own_images(3)
    return model._embed(replace(_batch(_pixels()), pixels=_pixels()[share.start : share.stop])).flatten().tolist()


def test_sequence_parallel_chunks_together_are_the_whole(tmp_path):
    (whole,) = run_ranks(1, _chunk, tiny_recipe(tmp_path))
    chunks = run_ranks(2, _chunk, tiny_recipe(tmp_path, parallel={"tensor": 2, "sequence_parallel": True}))
    torch.testing.assert_close(torch.tensor([*chunks[0], *chunks[1]]), torch.tensor(whole), rtol=1e-5, atol=1e-6)


def _without_pictures(recipe: Recipe) -> None:
    model = _start(recipe)
    batch = _batch(None)
    embedded = model._embed(batch)
    assert torch.equal(embedded, model.language.embedding(input_ids=batch.tokens, position_ids=None))
    embedded.sum().backward()
    # Present, so that no gradient bucket waits for it, and zero.
    assert all(not parameter.grad.any() for parameter in model.projector.parameters())
    model.projector.requires_grad_(False)
    with torch.no_grad():
        assert torch.equal(model._embed(batch), embedded)


def test_text_alone_gives_the_projector_zero_gradients(tmp_path):
    run_ranks(1, _without_pictures, tiny_recipe(tmp_path))
