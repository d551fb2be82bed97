"""Shows that step_flops is what torch counts on the real model, and gives the method's figures for LLaVA-1.5-7B.

Matrix products agree exactly. torch counts attention in full, step_flops the causal half of it: exactly half.
"""

from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from megatron_sts.config import Architecture, Recipe
from megatron_sts.data import Batch
from megatron_sts.model.build import build_chunks, freeze
from megatron_sts.parallel.groups import group_collection, start_groups
from megatron_sts.sts import ModelSizes, StepFlops, StepPlan, step_flops, uniform_indices
from tests import llava_7b
from tests.ranks import run_ranks
from tests.tiny import tiny_recipe

SAMPLES, LENGTH = 2, 24
# Sixteen visual tokens each, and of the second sample four positions of padding.
TEXT = [((0, 2), (18, 24)), ((0, 3), (19, 20))]
LLAVA_7B = Architecture.model_validate(llava_7b.LLAVA_7B)


def _count(recipe: Recipe, trains: tuple[str, ...], plan: StepPlan) -> dict[str, float]:
    """FLOPs of one forward and backward as torch counts them: by part, attention products of the layers apart."""
    start_groups(recipe.parallel, recipe.seed)
    (model,) = build_chunks(recipe, group_collection(), draw_weights=True)
    freeze([model], trains)
    model.set_plan(plan)
    vision = recipe.architecture.vision
    tokens = torch.ones(SAMPLES, LENGTH, dtype=torch.int64)
    batch = Batch(
        tokens=tokens,
        labels=tokens,
        pixels=torch.randn(SAMPLES, 3, vision.image_size, vision.image_size),
        image_rows=torch.arange(SAMPLES),
        image_starts=torch.tensor([2, 3]),
        visual_tokens=plan.visual_tokens,
        image_samples=torch.zeros(SAMPLES, 2, dtype=torch.int64),
        guides=torch.zeros(SAMPLES, 0, dtype=torch.int64),
    )
    # torch does not count its fused attention on a CPU; taken apart it is two batched matrix products.
    with sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as tower:
            features = model.vision(batch.pixels) if "vision" in trains else model.vision(batch.pixels).detach()
            if "vision" in trains:
                features.sum().backward()
        text = model.text_rows(TEXT, (LENGTH,)) if plan.layers_skipped_for_visual else None
        with FlopCounterMode(display=False) as counter:
            model(batch, labels=tokens, text=text).sum().backward()
    return _by_part(counter.get_flop_counts(), tower.get_total_flops())


def _by_part(counted: dict[str, dict[Any, int]], tower: int) -> dict[str, float]:
    parts = {
        "tower": tower,
        "projector": sum(counted["MultimodalModel.projector"].values()),
        "head": sum(counted["MultimodalModel.language.output_layer"].values()),
    }
    # The counter loses the tower's end, which is an exception, so the layers are what is left.
    return parts | {"layers": sum(counted["Global"].values()) - sum(parts.values())}


@pytest.mark.parametrize(
    ("trains", "skipped", "kept", "visual"),
    [
        (("projector", "language"), (), 16, ()),
        (("projector", "language"), (), 16, (0, 1, 3)),
        (("projector", "language"), (2,), 16, (1,)),
        (("projector",), (), 16, (0, 2)),
        (("projector", "language"), (0, 2), 16, ()),
        (("projector", "language"), (), 8, ()),
        (("projector", "language"), (1, 2, 3), 8, ()),
        (("projector",), (), 16, ()),
        (("projector",), (), 8, ()),
        (("language",), (), 16, ()),
        (("projector", "vision"), (1,), 16, ()),
    ],
)
def test_parts_are_what_torch_counts(tmp_path_factory, trains, skipped, kept, visual):
    recipe = tiny_recipe(tmp_path_factory.getbasetemp() / "flops")
    kept_tokens = uniform_indices(16, kept)
    plan = StepPlan(0, frozenset(skipped), kept_tokens, 16, layers_skipped_for_visual=frozenset(visual))
    (counted,) = run_ranks(1, _count, recipe, trains, plan)

    language = recipe.architecture.language
    run = language.layers - len(skipped)
    expected = step_flops(
        recipe.architecture,
        trains,
        rows=SAMPLES,
        images=SAMPLES,
        length=LENGTH,
        visual_tokens=kept,
        layers_run=run,
        layers_skipped_for_visual=len(visual),
        text_tokens=12,
    )
    causal_half = ModelSizes(recipe.architecture).layer_attention(LENGTH) * 3 * SAMPLES * run
    assert counted == {
        "tower": expected.tower,
        "projector": expected.projector,
        "head": expected.head,
        "layers": expected.layers + causal_half,
    }


def test_an_explicit_head_size_counts_in_projections_and_attention(tmp_path_factory):
    """4 heads of 12 in a width of 32: what torch counts, and by hand 2 S h d (2 a + 2 g) + 6 S h f and 2 S^2 a d."""
    changes = {"family": "qwen3", "attention_head_size": 12}
    recipe = tiny_recipe(tmp_path_factory.getbasetemp() / "flops", model__architecture__language=changes)
    plan = StepPlan(0, frozenset(), uniform_indices(16, 16), 16)
    (counted,) = run_ranks(1, _count, recipe, ("projector", "language"), plan)
    sizes = ModelSizes(recipe.architecture)
    matrices, attention = sizes.layer_matrices(LENGTH), sizes.layer_attention(LENGTH)
    assert matrices == 2 * LENGTH * (32 * 12 * (2 * 4 + 2 * 2) + 3 * 32 * 64)
    assert attention == 2 * LENGTH**2 * 4 * 12
    assert counted["layers"] == 4 * SAMPLES * (3 * matrices + 2 * 3 * attention)


def test_a_parallel_block_with_a_plain_mlp_counts_two_matrices_of_it(tmp_path_factory):
    changes = {"family": "phi", "query_groups": 4, "partial_rotary_factor": 0.5}
    recipe = tiny_recipe(tmp_path_factory.getbasetemp() / "flops", model__architecture__language=changes)
    plan = StepPlan(0, frozenset(), uniform_indices(16, 16), 16, layers_skipped_for_visual=frozenset({0, 2}))
    (counted,) = run_ranks(1, _count, recipe, ("projector", "language"), plan)
    sizes = ModelSizes(recipe.architecture)
    assert sizes.layer_mlp(1) == 2 * 2 * 32 * 64
    layers = 4 * SAMPLES * (3 * sizes.layer_matrices(LENGTH) + 2 * 3 * sizes.layer_attention(LENGTH))
    assert counted["layers"] == layers - 2 * 3 * sizes.layer_mlp(SAMPLES * LENGTH - 12)


def test_a_stage_that_trains_the_tower_alone_passes_gradients_through_all():
    frozen = _llava(("projector",), 60, 576)
    tower = _llava(("vision",), 60, 576)
    assert tower.layers == frozen.layers
    assert tower.tower > 2.9 * frozen.tower


def _llava(trains: tuple[str, ...], text: int, visual_tokens: int, layers: int = 32) -> StepFlops:
    return step_flops(
        LLAVA_7B,
        trains,
        rows=1,
        images=1,
        length=text + visual_tokens,
        visual_tokens=visual_tokens,
        layers_run=layers,
    )


def test_matrices_of_a_layer_of_7b_per_token():
    # 2 (4 h^2 + 3 h f) = 2 (4 * 4096^2 + 3 * 4096 * 11008)
    assert ModelSizes(LLAVA_7B).layer_matrices(1) == 404_750_336


@pytest.mark.parametrize("visual_tokens", [576, 144, 36])
def test_alignment_is_the_closed_form(visual_tokens):
    """F1 = L (2 c S + 6 h S^2) + 4 h V S + projector + tower."""
    length, hidden = 60 + visual_tokens, 4096
    flops = _llava(("projector",), 60, visual_tokens)
    assert flops.layers == 32 * (2 * 404_750_336 * length + 6 * hidden * length**2)
    assert flops.head == 4 * hidden * 32000 * length


@pytest.mark.parametrize("skipped", [0, 8])
def test_tuning_is_the_closed_form(skipped):
    """F2 = (1 - mean skip) 3 L (c S + 2 h S^2) + 6 h V S + projector + tower."""
    length, hidden = 340 + 576, 4096
    flops = _llava(("projector", "language"), 340, 576, 32 - skipped)
    assert flops.layers == (1 - skipped / 32) * 3 * 32 * (404_750_336 * length + 2 * hidden * length**2)
    assert flops.head == 6 * hidden * 32000 * length


@pytest.mark.parametrize(("visual_tokens", "closed_form", "tolerance"), [(144, 2.99, 0.015), (36, 5.87, 0.03)])
def test_alignment_saves_what_the_method_says(visual_tokens, closed_form, tolerance):
    """The method's figures count all 24 tower layers and project every visual token; here 23 run, and the projector
    sees the kept tokens alone, so that the saving is larger by 1% and by 3%.
    """
    dense, kept = _llava(("projector",), 60, 576), _llava(("projector",), 60, visual_tokens)
    assert dense.total / kept.total == pytest.approx(closed_form, rel=tolerance)
    assert dense.total / kept.total > closed_form
    constant = dense.tower * 24 / 23 + dense.projector
    as_counted_there = (dense.layers + dense.head + constant) / (kept.layers + kept.head + constant)
    assert as_counted_there == pytest.approx(closed_form, rel=0.002)


@pytest.mark.parametrize(("alpha", "speedup"), [(0.5, 1.19), (1.0, 1.48)])
def test_tuning_saves_what_the_method_says(alpha, speedup):
    dense = _llava(("projector", "language"), 340, 576)
    assert dense.total / (dense.total - alpha / 3 * dense.layers) == pytest.approx(speedup, abs=0.005)


def test_leaving_out_the_mlp_of_visual_tokens_saves_what_the_method_says():
    """Of 12.06 h^2 multiplications a token 8.06 are the MLP's: at 3/4 of the layers 32% of tuning's layer FLOPs, 45% of
    alignment's, attention products included."""
    for trains, text, saved in ((("projector", "language"), 340, 0.31), (("projector",), 60, 0.44)):
        sizes = {"rows": 1, "images": 1, "length": text + 576, "visual_tokens": 576, "layers_run": 32}
        dense = step_flops(LLAVA_7B, trains, **sizes)
        sparse = step_flops(LLAVA_7B, trains, layers_skipped_for_visual=24, text_tokens=text, **sizes)
        passes = 3 if "language" in trains else 2
        assert dense.layers - sparse.layers == passes * 24 * 6 * 4096 * 11008 * 576
        assert 1 - sparse.layers / dense.layers == pytest.approx(saved, abs=0.01)
        assert sparse.head == dense.head


def test_packed_rows_cost_their_matrices_whole_and_attention_by_sample():
    sizes = {"images": 0, "visual_tokens": 576, "layers_run": 32, "length": 100}
    whole = step_flops(LLAVA_7B, ("language",), rows=2, **sizes)
    packed = step_flops(LLAVA_7B, ("language",), rows=2, segments=[[60, 40], [90, 10]], **sizes)
    # Attention costs 2 S^2 a d forward, three times that in training; 60^2 + 40^2 + 90^2 + 10^2 = 13,400.
    assert whole.layers - packed.layers == 3 * 32 * 2 * 4096 * (2 * 100**2 - 13_400)
    assert packed.head == whole.head
