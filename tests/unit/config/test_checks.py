"""Shows that each check refuses a recipe that breaks it, naming the field, the value found and the remedy."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megatron_sts.config import Recipe, check_recipe
from megatron_sts.config.architecture_checks import ARCHITECTURE_CHECKS
from megatron_sts.config.checks import RECIPE_CHECKS, STAGE_CHECKS
from megatron_sts.errors import ConfigError

VISION, LANGUAGE = "model.architecture.vision", "model.architecture.language"
SIGLIP = (f"{VISION}.family=siglip", f"{VISION}.feature_select=full")

# (name of the check, overrides that break it, parts of the message)
BROKEN: list[tuple[str, list[str], list[str]]] = [
    (
        "check_validation",
        ["keep_best=true"],
        ["keep_best is true, but no stage has data.validation", "held-out records"],
    ),
    (
        "check_distill",
        ["stages.tune.skip.distill=0.5"],
        ["stages.tune.skip.distill is 0.5, but stages.tune.skip.full_share is 0", "set full_share"],
    ),
    (
        "check_distill",
        [f"stages.tune.{block}.{key}" for block in ("skip", "compress") for key in ("full_share=0.1", "distill=1")]
        + ["stages.tune.compress.distill=2"],
        ["stages.tune.skip.distill 1, stages.tune.compress.distill 2", "give the same weight"],
    ),
    (
        "check_vision_sizes",
        [f"{VISION}.patch_size=96"],
        [f"{VISION}.patch_size is 96, larger than vision.image_size 84", "at least one patch"],
    ),
    (
        "check_vision_sizes",
        [f"{VISION}.attention_heads=5"],
        [f"{VISION}.hidden_size is 64, not divisible by vision.attention_heads 5", "change one"],
    ),
    (
        "check_vision_sizes",
        [f"{VISION}.pretrained_image_size=42"],
        [f"{VISION}.pretrained_image_size is 42", "clip does not interpolate", "remove it"],
    ),
    (
        "check_vision_sizes",
        [f"{VISION}.family=dinov2", f"{VISION}.pretrained_image_size=7"],
        [f"{VISION}.pretrained_image_size is 7, smaller than", "at least one patch"],
    ),
    (
        "check_vision_sizes",
        [f"{VISION}.family=dinov2", f"{VISION}.ffn_hidden_size=100"],
        [f"{VISION}.ffn_hidden_size is 100, not divisible by vision.hidden_size 64", "change one"],
    ),
    (
        "check_vision_features",
        [f"{VISION}.feature_layer=4"],
        [f"{VISION}.feature_layer is 4", "hidden states 0 to 3 (or -4 to -1)", "choose one"],
    ),
    ("check_vision_features", [f"{VISION}.feature_layer=-5"], [f"{VISION}.feature_layer is -5", "-4 to -1"]),
    (
        "check_vision_features",
        [f"{VISION}.family=siglip"],
        [f"{VISION}.feature_select is 'default'", "siglip has no class token", "feature_select: full"],
    ),
    (
        "check_language_heads",
        [f"{LANGUAGE}.attention_heads=12"],
        [f"{LANGUAGE}.hidden_size is 128, not divisible by language.attention_heads 12", "change one"],
    ),
    (
        "check_language_heads",
        [f"{LANGUAGE}.hidden_size=120"],
        [f"{LANGUAGE}.hidden_size / language.attention_heads is 15", "make it even"],
    ),
    (
        "check_language_heads",
        [f"{LANGUAGE}.query_groups=3"],
        [f"{LANGUAGE}.attention_heads is 8, not divisible by language.query_groups 3", "change one"],
    ),
    (
        "check_language_heads",
        [f"{LANGUAGE}.attention_head_size=7"],
        [f"{LANGUAGE}.attention_head_size is 7", "make it even"],
    ),
    (
        "check_language_family",
        [f"{LANGUAGE}.sliding_window=64"],
        [f"{LANGUAGE}.sliding_window is 64, but llama models have no attention window", "mistral, phi3", "remove it"],
    ),
    (
        "check_language_family",
        [f"{LANGUAGE}.family=phi3", f"{LANGUAGE}.rotary_scaling={{kind: linear, factor: 2}}"],
        [f"{LANGUAGE}.rotary_scaling is linear", "phi3 models do not have", "remove it"],
    ),
    (
        "check_language_heads",
        [f"{LANGUAGE}.family=phi", f"{LANGUAGE}.partial_rotary_factor=0.32"],
        [f"{LANGUAGE}.partial_rotary_factor is 0.32, which is 5 of a head's 16", "turn pairs", "even"],
    ),
    (
        "check_phi",
        [f"{LANGUAGE}.partial_rotary_factor=0.5"],
        [f"{LANGUAGE}.partial_rotary_factor is 0.5, but", "llama models turns whole heads", "remove it"],
    ),
    (
        "check_phi",
        [f"{LANGUAGE}.family=phi", f"{LANGUAGE}.tied_embeddings=true"],
        [f"{LANGUAGE}.tied_embeddings is true", "set it to false"],
    ),
    (
        "check_fp8_sizes",
        ["precision=fp8", f"{LANGUAGE}.ffn_hidden_size=360"],
        [f"{LANGUAGE}.ffn_hidden_size is 360, not a multiple of 16 on each rank", "precision: bf16"],
    ),
    (
        "check_fp8_sizes",
        ["precision=fp8", "parallel.tensor=4"],
        [f"{LANGUAGE}.ffn_hidden_size is 352 over parallel.tensor 4, not a multiple of 16", "parallel.tensor"],
    ),
    (
        "check_fp8_sizes",
        ["precision=fp8", "fp8_recipe=blockwise"],
        [f"{LANGUAGE}.ffn_hidden_size is 352, not a multiple of 128", "fp8_recipe: blockwise"],
    ),
    ("check_recompute", ["recompute=[]"], ["recompute is an empty list", "recompute: none"]),
    ("check_recompute", ["recompute=[mlp, mlp]"], ["recompute is ['mlp', 'mlp']", "once"]),
    (
        "check_recompute",
        ["precision=fp8", "fp8_recipe=delayed", "recompute=[layernorm]"],
        ["recompute is ['layernorm']", "fp8_recipe: delayed", "tensorwise"],
    ),
    ("check_fp8_ends", ["fp8_bf16_layers=1"], ["fp8_bf16_layers is 1, but precision is 'bf16'", "precision: fp8"]),
    (
        "check_fp8_ends",
        ["precision=fp8", "fp8_recipe=delayed", "fp8_bf16_layers=1"],
        ["fp8_bf16_layers is 1, but fp8_recipe: delayed", "tensorwise"],
    ),
    (
        "check_fp8_ends",
        ["precision=fp8", "parallel.pipeline=4", "fp8_bf16_layers=3"],
        ["fp8_bf16_layers is 3, but a pipeline stage has 2 layers", "at most 2"],
    ),
    ("check_stop_after", ["stop_after={hours: 0}"], ["stop_after is 0 hours and 0 minutes", "remove the key"]),
    (
        "check_sequence_parallel",
        ["parallel.sequence_parallel=true"],
        ["parallel.sequence_parallel is true, but parallel.tensor is 1", "tensor above 1"],
    ),
    (
        "check_tensor_split",
        ["parallel.tensor=12", f"{LANGUAGE}.query_groups=8"],
        [
            f"{LANGUAGE}.attention_heads is 8, not divisible by parallel.tensor 12; change one",
            f"{LANGUAGE}.query_groups is 8, neither divisible by parallel.tensor 12 nor a divisor of it; change one",
        ],
    ),
    (
        "check_tensor_split",
        ["parallel.tensor=8", f"{LANGUAGE}.query_groups=1", f"{LANGUAGE}.attention_head_size=14"],
        ["(attention_heads + 2 x query_groups) x head size is 140, not divisible by parallel.tensor 8"],
    ),
    (
        "check_tensor_split",
        ["parallel.tensor=4", f"{LANGUAGE}.ffn_hidden_size=350"],
        [f"{LANGUAGE}.ffn_hidden_size is 350, not divisible by parallel.tensor 4"],
    ),
    (
        "check_tensor_split",
        ["parallel.tensor=4", f"{LANGUAGE}.vocabulary_padding=6", f"{LANGUAGE}.vocabulary_size=301"],
        ["vocabulary_size 301", "is 306, not divisible by parallel.tensor 4", "a multiple of 4"],
    ),
    (
        "check_pipeline_split",
        ["parallel.virtual_pipeline=2"],
        ["parallel.virtual_pipeline is 2, but parallel.pipeline is 1", "set virtual_pipeline: 1"],
    ),
    (
        "check_pipeline_split",
        ["parallel.pipeline=3"],
        [f"{LANGUAGE}.layers is 8, not divisible by parallel.pipeline 3", "give parallel.layers_per_stage"],
    ),
    (
        "check_pipeline_split",
        ["parallel.pipeline=2", "parallel.virtual_pipeline=2", "parallel.layers_per_stage=[3,5]"],
        [
            "parallel.layers_per_stage has 2 numbers",
            "2 x parallel.virtual_pipeline 2 = 4",
            "one number for each",
        ],
    ),
    (
        "check_pipeline_split",
        ["parallel.pipeline=2", "parallel.layers_per_stage=[3,4]"],
        ["parallel.layers_per_stage [3, 4] sums to 7", "layers is 8; make the sum 8"],
    ),
    (
        "check_pipeline_split",
        ["parallel.pipeline=2", "parallel.layers_per_stage=[0,8]"],
        ["parallel.layers_per_stage is [0, 8]", "at least 1 layer"],
    ),
    (
        "check_validation",
        ["validation.every_steps=10"],
        ["validation.every_steps is 10, but no stage has data.validation", "stages.NAME.data.validation"],
    ),
    (
        "check_optimizer",
        ["optimizer.distributed=true", "optimizer.kind=sgd"],
        ["optimizer.distributed is true with optimizer.kind 'sgd'", "kind: adam"],
    ),
    (
        "check_stage_names",
        ["stages.align.name=tune"],
        ["2 stages are named 'tune'", "give each its own name"],
    ),
    ("check_stage_names", ["stages=[]"], ["stages is empty", "give at least one"]),
    (
        "check_length",
        ["stages.tune.steps=null"],
        ["stages.tune gives neither epochs nor steps; give exactly one of the two"],
    ),
    (
        "check_length",
        ["stages.tune.steps=3", "stages.tune.epochs=1"],
        ["stages.tune gives both epochs and steps; give exactly one of the two"],
    ),
    (
        "check_learning_rates",
        ["stages.tune.learning_rate.language=null"],
        ["stages.tune.learning_rate.language is missing", "in stages.tune.trains; give it a rate"],
    ),
    (
        "check_learning_rates",
        ["stages.align.learning_rate.vision=1e-6"],
        ["stages.align.learning_rate.vision is 1e-06", "not in stages.align.trains; remove the rate"],
    ),
    (
        "check_learning_rates",
        ["stages.align.trains=[projector,projector]"],
        ["stages.align.trains is ['projector', 'projector']; name each part once"],
    ),
    (
        "check_batch",
        ["stages.align.batch.micro=3"],
        ["stages.align.batch.global is 16, not divisible by stages.align.batch.micro 3; change one"],
    ),
    (
        "check_skip",
        ["stages.tune.skip.alpha=-0.1"],
        ["stages.tune.skip.alpha is -0.1", "at least 0", "0.6667"],
    ),
    (
        "check_skip",
        ["stages.tune.skip.epsilon=-1.5"],
        ["stages.tune.skip.epsilon is -1.5", "between -1 and 1", "arXiv 2509.18150"],
    ),
    (
        "check_skip",
        ["stages.tune.skip.alpha=0.8"],
        [
            "stages.tune.skip.alpha is 0.8 with epsilon 0.5: alpha * (1 + |epsilon|) = 1.2 is above 1",
            "arXiv 2509.18150",
            "the largest alpha here is 0.6666",
        ],
    ),
    (
        "check_skip",
        ["stages.tune.skip.never_skip=[0,8]"],
        ["stages.tune.skip.never_skip names [8], but layers are numbered 0 to 7"],
    ),
    (
        "check_skip",
        ["stages.tune.skip.min_layers_run=9"],
        ["stages.tune.skip.min_layers_run is 9, but the language model has 8 layers"],
    ),
    (
        "check_skip",
        ["stages.tune.skip.selection=balanced", "stages.tune.skip.skip_groups=3"],
        ["stages.tune.skip.skip_groups is 3, which does not divide the 8 layers"],
    ),
    (
        "check_skip",
        ["stages.tune.skip.selection=balanced", "stages.tune.skip.skip_groups=[4,3]"],
        ["stages.tune.skip.skip_groups is [4, 3], which sums to 7", "8 layers"],
    ),
    (
        "check_skip",
        ["stages.tune.skip.selection=independent", "stages.tune.skip.skip_groups=2"],
        ["stages.tune.skip.skip_groups is given with selection 'independent'; remove it"],
    ),
    (
        "check_optimizer",
        ["parallel.overlap_param_gather=true"],
        ["parallel.overlap_param_gather is true, but optimizer.distributed is false"],
    ),
    (
        "check_optimizer",
        ["parallel.grad_reduce_dtype=bf16", "precision=fp32"],
        ["parallel.grad_reduce_dtype is 'bf16', but precision is 'fp32'", "precision: bf16"],
    ),
    (
        "check_compress",
        ["stages.tune.compress={keep_ratio: 0.5, keep_tokens: 3}"],
        ["stages.tune.compress gives both keep_ratio 0.5 and keep_tokens 3", "at most one"],
    ),
    (
        "check_compress",
        ["stages.align.compress.keep_tokens=37"],
        ["stages.align.compress.keep_tokens is 37", "yields 36 visual tokens", "choose 1 to 36"],
    ),
    (
        "check_compress",
        ["stages.tune.compress={keep_ratio: 0.5, schedule: {start: 0.5, end: 1}}"],
        ["stages.tune.compress gives both keep_ratio 0.5 and schedule", "at most one"],
    ),
    (
        "check_compress",
        ["stages.tune.compress={schedule: {kind: linear, start: 0.5}}"],
        ["stages.tune.compress.schedule.end is missing", "kind 'linear' needs it"],
    ),
    (
        "check_compress",
        ["stages.tune.compress={schedule: {kind: steps, start: 0.5, values: [0.5, 1]}}"],
        ["stages.tune.compress.schedule.start is given", "kind 'steps' does not use it"],
    ),
    (
        "check_compress",
        ["stages.tune.compress={strategy: mean_pool, keep_tokens: 9}"],
        ["stages.tune.compress.keep_tokens is given", "window decides"],
    ),
    (
        "check_compress",
        ["stages.tune.compress={strategy: mean_pool, window: 7}"],
        ["stages.tune.compress.window is 7", "6 x 6 patches"],
    ),
    (
        "check_compress",
        ["stages.tune.compress={strategy: mean_pool}", f"{VISION}.feature_select=full"],
        ["stages.tune.compress.strategy is 'mean_pool'", "class token"],
    ),
    (
        "check_compress",
        ["stages.tune.compress={strategy: random, window: 2}"],
        ["stages.tune.compress.window is 2", "set strategy: mean_pool"],
    ),
    (
        "check_max_tokens",
        ["stages.tune.data.max_tokens=5000"],
        ["stages.tune.data.max_tokens is 5000", "maximum_positions 4096", "lower max_tokens"],
    ),
    (
        "check_max_tokens",
        [f"{LANGUAGE}.family=mistral", f"{LANGUAGE}.sliding_window=1024"],
        ["stages.tune.data.max_tokens is 2048", "sliding_window 1024", "lower max_tokens"],
    ),
    (
        "check_bad_records",
        ["stages.tune.data.max_bad_records=1.5"],
        ["stages.tune.data.max_bad_records is 1.5", "a share of the records, below 1, or a whole number"],
    ),
    (
        "check_shards",
        ["stages.tune.data.train=data/shards", "stages.tune.data.images=data"],
        ["stages.tune.data.images is 'data'", "'data/shards' is a directory of shards", "remove images"],
    ),
]

# Overrides that stand at a limit, or that look odd, and are right.
ALLOWED = [
    [],
    [f"{VISION}.feature_layer=3"],
    [f"{VISION}.feature_layer=-4"],
    [*SIGLIP],
    ["parallel.tensor=4", "parallel.sequence_parallel=true"],
    ["parallel.pipeline=2", "parallel.virtual_pipeline=2"],
    ["parallel.pipeline=3", "parallel.layers_per_stage=[2,3,3]"],
    ["optimizer.distributed=true"],
    ["optimizer.kind=sgd"],
    ["stages.tune.skip.alpha=0.5", "stages.tune.skip.epsilon=1"],
    ["stages.tune.skip.alpha=1", "stages.tune.skip.epsilon=0"],
    ["stages.tune.skip.alpha=0"],
    ["stages.align.skip.alpha=0.5"],
    ["stages.tune.data.images=null"],
    ["stages.align.compress.keep_ratio=1"],
    ["stages.align.compress.keep_tokens=36"],
    ["stages.align.compress.strategy=none"],
    ["stages.align.compress={strategy: mean_pool, window: 6}"],
    ["stages.align.compress={strategy: text_guided, schedule: {kind: cosine, start: 0.25, end: 1}}"],
    ["stages.tune.data.max_tokens=4096"],
    ["stages.tune.data.max_bad_records=0.999"],
    ["stages.tune.data.max_bad_records=1"],
]


@pytest.mark.parametrize(("check", "overrides", "parts"), BROKEN)
def test_a_broken_recipe_is_refused_with_field_value_and_remedy(
    check: str, overrides: list[str], parts: list[str], refused: Callable[..., str]
) -> None:
    message = refused(*overrides)
    for part in parts:
        assert part in message


def test_every_check_has_an_example_that_breaks_it() -> None:
    checks = {check.__name__ for check in (*ARCHITECTURE_CHECKS, *RECIPE_CHECKS, *STAGE_CHECKS)}
    assert checks == {check for check, _, _ in BROKEN}


@pytest.mark.parametrize("overrides", ALLOWED)
def test_what_is_at_a_limit_is_allowed(overrides: list[str], load: Callable[..., Recipe]) -> None:
    load(*overrides)


def test_all_problems_come_in_one_error(refused: Callable[..., str]) -> None:
    message = refused("parallel.sequence_parallel=true", "stages.tune.skip.alpha=0.9", "stages.align.batch.micro=3")
    assert message.count("\n  - ") == 3
    assert "recipe.yaml cannot be used:" in message.splitlines()[0]


def test_files_that_are_not_there_are_named_together(
    refused: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    message = refused(
        "model.vision=towers/clip",
        "model.tokenizer=file",
        "model.init=start",
        "stages.tune.skip.alpha=0.9",
        check_files=True,
    )
    assert "model.vision is 'towers/clip', which does not exist; give a Hugging Face vision encoder" in message
    assert "model.tokenizer is 'file', which is not a directory; give a Hugging Face tokenizer" in message
    assert "model.init is 'start': does not exist (looked for in " in message and "tools/convert.py import" in message
    assert "stages.align.data.train is 'data/align.json', which does not exist; give the data file" in message
    assert "stages.tune.data.images is 'data/images', which does not exist; give the directory" in message
    assert "stages.tune.skip.alpha" in message


def test_files_that_are_there_are_accepted(
    load: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for directory in ("data/images", "clip", "words", "start"):
        (tmp_path / directory).mkdir(parents=True)
    for name in ("align", "tune"):
        (tmp_path / f"data/{name}.json").write_text("[]")
    (tmp_path / "start" / "run.json").touch()
    overrides = ("model.vision=clip", "model.tokenizer=words", "model.init=start")
    assert load(*overrides, check_files=True) == load(*overrides)


def test_a_path_too_long_for_the_system_is_a_missing_file(refused: Callable[..., str]) -> None:
    assert "stages.tune.data.train is" in refused(f"stages.tune.data.train={'x' * 5000}", check_files=True)


def test_a_recipe_built_in_code_is_checked_too(recipe_values: dict[str, Any]) -> None:
    recipe_values["parallel"] = {"sequence_parallel": True}
    recipe = Recipe.model_validate(recipe_values)
    with pytest.raises(ConfigError, match=r"the recipe cannot be used:\n  - parallel\.sequence_parallel is true"):
        check_recipe(recipe, check_files=False)
