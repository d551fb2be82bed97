"""Shows that the LLaVA-1.5-7B recipes are the published training; dense and STS differ in the sparsity alone."""

from pathlib import Path

import pytest

from megatron_sts.config import Recipe, difference, load_recipe
from megatron_sts.sts import StagePlanner

ROOT = Path(__file__).resolve().parents[3]
EXAMPLE = ROOT / "examples" / "llava15_7b"


def load(name: str, overrides: tuple[str, ...] = ()) -> Recipe:
    return load_recipe(EXAMPLE / f"{name}.yaml", overrides, check_files=False)


def pp4() -> tuple[str, ...]:
    lines = (EXAMPLE / "pp4.overrides").read_text().splitlines()
    return tuple(line for line in lines if not line.startswith("#"))


def test_dense_and_sts_differ_in_the_sparsity_alone() -> None:
    changed = difference(load("dense").resolved(), load("sts").resolved())
    assert changed == ["output_dir", "stages.align.compress", "stages.tune.skip"]


def test_the_sizes_are_those_of_vicuna_and_clip() -> None:
    architecture = load("sts").architecture
    language, vision = architecture.language, architecture.vision
    # Llama 7B, as published: 6,738,415,616 parameters with its 32,000 tokens.
    layer = 4 * language.hidden_size**2 + 3 * language.hidden_size * language.ffn_hidden_size + 2 * language.hidden_size
    assert 2 * 32000 * language.hidden_size + language.layers * layer + language.hidden_size == 6_738_415_616
    assert language.query_groups == language.attention_heads
    assert language.padded_vocabulary_size == 32064
    assert (vision.used_layers, architecture.visual_tokens) == (23, 576)
    # CLIP ViT-L/14 at 336 px without its text part, as published: 303,507,456 parameters.
    width, inner = vision.hidden_size, vision.ffn_hidden_size
    layer = 4 * (width**2 + width) + 2 * width * inner + inner + width + 4 * width
    embeddings = 3 * vision.patch_size**2 * width + width + (vision.patches + 1) * width
    assert embeddings + vision.layers * layer + 4 * width == 303_507_456


def test_the_training_is_the_published_one() -> None:
    recipe = load("dense")
    align, tune = recipe.stages
    assert (align.name, align.trains, align.data.template) == ("align", ("projector",), "plain")
    assert (tune.name, tune.trains, tune.data.template) == ("tune", ("projector", "language"), "vicuna_v1")
    assert (align.learning_rate.rates, tune.learning_rate.rates) == (
        {"projector": 1e-3},
        {"projector": 2e-5, "language": 2e-5},
    )
    assert [stage.batch.global_size for stage in recipe.stages] == [256, 128]
    for stage in recipe.stages:
        schedule = stage.learning_rate_schedule
        assert (schedule.decay, schedule.warmup_ratio, schedule.minimum_ratio) == ("cosine", 0.03, 0.0)
        assert (stage.epochs, stage.data.max_tokens, stage.compress, stage.skip) == (1, 2048, None, ())
    assert (recipe.optimizer.weight_decay, recipe.optimizer.clip_grad, recipe.precision) == (0.0, 1.0, "bf16")


def test_sts_keeps_the_tokens_and_layers_that_the_readme_says() -> None:
    recipe = load("sts")
    align, tune = recipe.stages
    kept = StagePlanner(recipe, align, 2180, 2180.0).plan(0).kept_tokens
    assert kept == tuple(range(0, 576, 4))
    planner = StagePlanner(recipe, tune, 5197, 5197.0)
    assert planner.skip_probabilities(0, "visual") == (0.0,) * 32
    # Alike until they are measured; a step in ten is full.
    assert planner.skip_probabilities(1565, "visual") == pytest.approx((0.5,) * 32)
    assert sum(max(planner.skip_probabilities(step, "visual")) == 0 for step in range(2000, 2500)) == 50
    assert planner.skip_probabilities(5000) == (0.0,) * 32


def test_the_formula_is_that_of_the_paper_within_the_groups() -> None:
    recipe, sts = load("paper"), load("sts")
    assert difference(sts.resolved(), recipe.resolved()) == [
        "output_dir",
        *(f"stages.tune.skip.{key}" for key in ("tokens", "by", "epsilon", "schedule")),
        *(f"stages.tune.skip.{key}" for key in ("skip_groups", "ramp_ratio", "full_share", "accept_loss_rise")),
    ]
    probabilities = StagePlanner(recipe, recipe.stages[1], 5197, 5197.0).skip_probabilities(0)
    # Over 32 layers the paper's tilt rises by 0.5 / 31 a layer, here within four groups of eight.
    lowest, highest = 0.5 - 3.5 * 0.5 / 31, 0.5 + 3.5 * 0.5 / 31
    for first in (0, 8, 16, 24):
        assert probabilities[first] == pytest.approx(lowest) and probabilities[first + 7] == pytest.approx(highest)


@pytest.mark.parametrize("name", ["sts", "dense", "paper"])
def test_the_second_layout_fits_both_recipes_and_changes_the_layout_alone(name: str) -> None:
    changed = difference(load(name).resolved(), load(name, pp4()).resolved())
    assert changed == ["parallel.pipeline", "stages.align.batch.micro", "stages.tune.batch.micro"]
    assert load(name, pp4()).parallel.pipeline == 4


def test_under_four_pipeline_stages_every_stage_skips_the_same_number() -> None:
    recipe = load("sts", pp4())
    planner = StagePlanner(recipe, recipe.stages[1], 5197, 5197.0)
    for step in (400, 1000, 5000):
        skipped = planner.plan(step).layers_skipped_for_visual
        assert len({len([layer for layer in skipped if layer // 8 == stage]) for stage in range(4)}) == 1
