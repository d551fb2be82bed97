"""Shows the defaults and the small helpers of the typed recipe, and that it can be built in code."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import megatron_sts.config as config
from megatron_sts.config import BatchConfig, CompressConfig, LearningRateConfig, Recipe, StageConfig
from megatron_sts.config.architecture import ConfigModel
from megatron_sts.errors import ConfigError


def test_a_recipe_has_the_documented_defaults(load: Callable[..., Recipe]) -> None:
    recipe = load()
    assert (recipe.seed, recipe.precision, recipe.recompute) == (1234, "bf16", "none")
    assert recipe.parallel.model_dump() == {
        "tensor": 1,
        "pipeline": 1,
        "virtual_pipeline": 1,
        "context": 1,
        "sequence_parallel": False,
        "layers_per_stage": None,
        "overlap_grad_reduce": None,
        "overlap_param_gather": None,
        "grad_reduce_dtype": "fp32",
        "bucket_parameters": None,
        "timeout_minutes": 10.0,
    }
    assert (recipe.optimizer.kind, recipe.optimizer.beta2, recipe.optimizer.clip_grad) == ("adam", 0.999, 1.0)
    assert (recipe.checkpoint.every_steps, recipe.checkpoint.keep_last) == (None, 2)
    align, tune = recipe.stages
    assert (align.data.template, align.data.max_tokens, align.data.system_prompt) == ("vicuna_v1", 2048, None)
    assert (align.learning_rate_schedule.decay, align.learning_rate_schedule.warmup_ratio) == ("cosine", 0.03)
    assert not align.skip and tune.compress is None
    assert (tune.skip[0].progress, tune.skip[0].selection) == ("step", "balanced")


def test_compression_without_an_amount_keeps_half() -> None:
    assert CompressConfig().keep_ratio == 0.5
    assert CompressConfig(keep_tokens=4).keep_ratio is None


@pytest.mark.parametrize("given", ["none", "full", ["mlp", "layernorm"]])
def test_recompute_is_a_choice_or_a_list_of_modules(load: Callable[..., Recipe], given: Any) -> None:
    assert load(f"recompute={given}").resolved()["recompute"] == given


def test_recompute_reads_selective_as_the_module_that_it_was(load: Callable[..., Recipe]) -> None:
    assert load("recompute=selective").recompute == ("core_attn",)


@pytest.mark.parametrize("given", ["fll", "[mlp,moe]", "3"])
def test_another_recompute_is_refused_with_what_there_is(load: Callable[..., Recipe], given: str) -> None:
    with pytest.raises(ConfigError, match=r"'recompute' in .* should be none, full, or a list of core_attn, layernorm"):
        load(f"recompute={given}")


def test_rates_are_those_of_the_parts_that_have_one() -> None:
    assert LearningRateConfig(projector=1e-3, vision=1e-6).rates == {"projector": 1e-3, "vision": 1e-6}


def test_a_stage_is_found_by_name_and_a_wrong_name_gets_a_suggestion(load: Callable[..., Recipe]) -> None:
    recipe = load()
    assert recipe.stage("tune") is recipe.stages[1]
    with pytest.raises(ConfigError, match=r"no stage 'tnue'; did you mean 'tune'\? its stages: align, tune"):
        recipe.stage("tnue")


def test_the_global_batch_has_its_yaml_name_in_a_record_and_its_python_name_in_code() -> None:
    assert BatchConfig(global_size=8, micro=2).model_dump(by_alias=True) == {"global": 8, "micro": 2}


def test_a_recipe_can_be_built_in_code(recipe_values: dict[str, Any], load: Callable[..., Recipe]) -> None:
    assert Recipe.model_validate(recipe_values) == load()
    stage = StageConfig.model_validate(recipe_values["stages"][0])
    assert stage.data.train == Path("data/align.json")


def test_a_resolved_recipe_is_plain_values_under_yaml_names(load: Callable[..., Recipe]) -> None:
    resolved = load("parallel.layers_per_stage=[8]").resolved()
    assert resolved["output_dir"] == "runs/small"
    assert resolved["parallel"]["layers_per_stage"] == [8]
    assert resolved["stages"][0]["batch"] == {"global": 16, "micro": 4}
    assert resolved["stages"][1]["skip"]["progress"] == "step"
    assert resolved["model"]["architecture"]["language"]["rotary_base"] == 10000.0


def test_every_field_of_the_recipe_has_a_description() -> None:
    models = [entry for entry in vars(config).values() if isinstance(entry, type) and issubclass(entry, ConfigModel)]
    assert len(models) == 25
    for model in models:
        assert all(field.description for field in model.model_fields.values()), model
