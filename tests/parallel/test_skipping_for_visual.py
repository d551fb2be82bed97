"""Layers that leave out their MLP for visual tokens: as in `transformers` with the same rule, and in every layout.

Records have from no image to three and few words, so that some micro-batches have no visual token, and some chunks of a
sequence no text. Tolerances of the layouts are those of test_layouts.py.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import LlavaForConditionalGeneration

from megatron_sts.config import Recipe
from megatron_sts.data import TEMPLATES, Batch, RawItem, Sample, SampleIndex, Turn, collate, encode, image_token_id
from megatron_sts.data.index import measured
from megatron_sts.model.build import build_chunks, freeze
from megatron_sts.parallel.groups import group_collection, start_groups
from megatron_sts.sts import StepPlan
from tests.parallel.observe import Observation, assert_same, fill, observe_all, pieces_of, whole_tensors
from tests.parallel.test_compression import records_of_many_images
from tests.ranks import run_ranks
from tests.tiny import tiny_recipe
from tests.unit.hf.tiny_llava import (
    architecture,
    checkpoint_tensors,
    make_model,
    make_recipe,
    make_tokenizer,
)

SKIPPED = frozenset({0, 2})
IMAGE_TOKENS = 4
PHI = {"family": "phi", "query_groups": 4, "partial_rotary_factor": 0.5}
QUESTIONS = (("<image>\nWhat digit is it?", "two five", 1), ("is it?", "yes", 0), ("<image> one: <image>", "two", 2))

VISUAL = {"tokens": "visual", "alpha": 0.75, "schedule": "constant", "selection": "independent"}
ALL = {"alpha": 0.6, "epsilon": 0.4, "selection": "independent"}
CASES: dict[str, dict[str, Any]] = {
    "visual": {"tune__skip": VISUAL},
    "recompute": {"tune__skip": VISUAL, "recompute": "full", "tune__data": {"template": "plain"}},
    "both, compressed": {
        "tune__skip": [VISUAL, ALL],
        "tune__compress": {"keep_ratio": 0.3},
        "recompute": ["layernorm", "mlp"],
    },
    "both, packed": {"tune__skip": [VISUAL, ALL], "tune__data": {"packing": True}, "recompute": "full"},
}
LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "tp2": (2, {"tensor": 2}),
    "tp2_sp": (2, {"tensor": 2, "sequence_parallel": True}),
    "pp2_vp2": (2, {"pipeline": 2, "virtual_pipeline": 2}),
    "dp2": (2, {"overlap_grad_reduce": True, "overlap_param_gather": True, "bucket_parameters": 3000}),
    "tp2_sp_cp2": (4, {"tensor": 2, "sequence_parallel": True, "context": 2}),
    "tp2_pp2_sp": (4, {"tensor": 2, "pipeline": 2, "sequence_parallel": True}),
}


def _batch() -> tuple[Batch, SampleIndex, list[int]]:
    tokenizer, template = make_tokenizer(), TEMPLATES["vicuna_v1"]
    generator = torch.Generator().manual_seed(3)
    items, rows = [], []
    for number, (question, answer, images) in enumerate(QUESTIONS):
        sample = Sample(str(number), (Turn("human", question), Turn("assistant", answer)), ("0.png",) * images)
        pixels: list[Tensor | None] = [torch.randn(3, 28, 28, generator=generator) for _ in range(images)]
        items.append(RawItem(encode(sample, template, tokenizer), pixels, number))
        found = measured(sample, template, tokenizer, None)
        assert not isinstance(found, str)
        rows.append(found)
    index = SampleIndex.from_rows(rows)
    lengths = index.lengths(IMAGE_TOKENS).tolist()
    return collate(items, IMAGE_TOKENS, max(lengths) + 3, image_token_id(tokenizer), 3), index, lengths


def _ours(recipe: Recipe, tensors: dict[str, Tensor]) -> tuple[float, list[Any]]:
    """Summed loss of the batch, and the gradients of what is trained."""
    start_groups(recipe.parallel, recipe.seed)
    (model,) = chunks = build_chunks(recipe, group_collection(), draw_weights=False)
    fill(chunks, tensors)
    freeze(chunks, ("projector", "language", "vision"))
    batch, index, _ = _batch()
    kept = tuple(range(IMAGE_TOKENS))
    model.set_plan(StepPlan(0, frozenset(), kept, IMAGE_TOKENS, layers_skipped_for_visual=SKIPPED))
    text = model.text_rows(index.text_ranges(IMAGE_TOKENS), (batch.tokens.size(1),))
    losses = model(batch, labels=batch.labels.clamp_min(0), text=text)
    loss = (losses * (batch.labels != -100)).sum()
    loss.backward()
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.main_grad = parameter.grad
    return loss.item(), pieces_of(chunks, gradients=True)


def _without_visual(mlp: Callable[[Tensor], Tensor], image_token: int, seen: list[Tensor]) -> Callable[..., Tensor]:
    """The rule by hand: to visual rows the MLP adds nothing."""
    return lambda hidden: mlp(hidden) * (seen[-1] != image_token)[:, :, None]


def _theirs(model: LlavaForConditionalGeneration, image_token: int) -> float:
    """The same in `transformers`, one row after another, without padding; leaves the gradients in the parameters."""
    seen: list[Tensor] = []
    for layer in SKIPPED:
        module = model.model.language_model.layers[layer].mlp
        module.forward = _without_visual(module.forward, image_token, seen)
    batch, _, lengths = _batch()
    total, passed = 0.0, 0
    for row, (length, (_, _, images)) in enumerate(zip(lengths, QUESTIONS, strict=True)):
        tokens, labels = batch.tokens[row : row + 1, :length], batch.labels[row, :length]
        assert batch.pixels is not None
        pixels = batch.pixels[passed : passed + images] if images else None
        passed += images
        seen.append(tokens)
        # Our vocabulary is padded, with logits of zero, of which a softmax takes note.
        logits = F.pad(model(input_ids=tokens, pixel_values=pixels).logits[0], (0, 24))
        loss = F.cross_entropy(logits, labels, ignore_index=-100, reduction="sum")
        loss.backward()
        total += loss.item()
    return total


@pytest.mark.parametrize(("tower", "language"), [("clip", {}), ("siglip", PHI)], ids=["llama", "phi"])
def test_loss_and_gradients_are_those_of_transformers_with_the_same_rule(tower, language):
    sizes = architecture(tower, **language)
    image_token = image_token_id(make_tokenizer())
    model = make_model(sizes, image_token, None)
    recipe = make_recipe(sizes, None, None)
    ((found, pieces),) = run_ranks(1, _ours, recipe, checkpoint_tensors(model, sizes))
    assert found == pytest.approx(_theirs(model, image_token), rel=1e-5)
    for parameter in model.parameters():
        parameter.data = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    expected = {key: values for key, values in checkpoint_tensors(model, sizes).items() if values.any()}
    gradients = whole_tensors(pieces)
    # Layers of the tower behind its feature layer have none.
    assert gradients.keys() == expected.keys()
    floor = 1e-3 * max(np.abs(values).max() for values in gradients.values())
    for key, values in gradients.items():
        assert np.abs(values).max() > 0
        if key.startswith("output_layer."):
            # What pads the vocabulary is in no model of theirs.
            values, expected[key] = (rows[: sizes.language.vocabulary_size] for rows in (values, expected[key]))
        tolerance = 1e-5 * max(np.abs(values).max(), floor)
        np.testing.assert_allclose(values, expected[key], rtol=0, atol=tolerance, err_msg=key)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return records_of_many_images(tmp_path_factory.mktemp("skipping_for_visual"))


def _recipes(root: Path, parallel: dict[str, Any], **changes: Any) -> list[Recipe]:
    common = {"optimizer": {"epsilon": 1e-2} | changes, "tune__batch": {"global": 8, "micro": 2}}
    return [tiny_recipe(root, parallel=parallel, **(common | case)) for case in CASES.values()]


@pytest.fixture(scope="module")
def references(root: Path) -> list[Observation]:
    return observe_all(_recipes(root, {}), "tune", 1, steps=2)


def test_something_is_skipped_of_either_kind(references):
    assert all(any(found.skipped_for_visual) for found in references)
    assert any(references[2].skipped) and not any(references[0].skipped)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_train_as_one_process(root, references, layout):
    ranks, parallel = LAYOUTS[layout]
    recipes = _recipes(root, parallel, distributed=layout == "dp2")
    for found, expected in zip(observe_all(recipes, "tune", ranks, steps=2), references, strict=True):
        assert_same(found, expected)
