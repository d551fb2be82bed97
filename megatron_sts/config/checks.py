"""Every check that concerns more than one field of a recipe (of its architecture alone: architecture_checks.py, its
fit to a world: world.py).

A check is a small function that yields one message per problem: the field, the value found, what to do.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from megatron_sts.config.architecture_checks import architecture_problems, not_divisible
from megatron_sts.config.compress_checks import check_compress
from megatron_sts.config.distill_checks import check_distill
from megatron_sts.config.fp8_checks import check_fp8_ends, check_fp8_sizes
from megatron_sts.config.not_a_checkpoint import RUN_FILE, why_no_checkpoint
from megatron_sts.config.recipe import Recipe
from megatron_sts.config.recompute_checks import check_recompute
from megatron_sts.config.skip_checks import check_skip
from megatron_sts.config.stage_config import StageConfig
from megatron_sts.errors import ConfigError

# ---------------------------------------------------------------------------------------------- whole recipe


def check_stop_after(recipe: Recipe) -> Iterator[str]:
    """A time limit is longer than nothing."""
    if recipe.stop_after is not None and recipe.stop_after.seconds == 0:
        yield "stop_after is 0 hours and 0 minutes, which no step fits in; give hours or minutes, or remove the key"


def check_sequence_parallel(recipe: Recipe) -> Iterator[str]:
    """Sequence parallelism splits over tensor-parallel ranks."""
    if recipe.parallel.sequence_parallel and recipe.parallel.tensor == 1:
        yield (
            "parallel.sequence_parallel is true, but parallel.tensor is 1 and the sequence is split over the "
            "tensor-parallel ranks; set sequence_parallel: false or tensor above 1"
        )


def check_tensor_split(recipe: Recipe) -> Iterator[str]:
    """What tensor parallelism cuts must be cut evenly."""
    tensor, language = recipe.parallel.tensor, recipe.architecture.language
    sizes = {
        "attention_heads": language.attention_heads,
        "ffn_hidden_size": language.ffn_hidden_size,
    }
    for name, size in sizes.items():
        if size % tensor:
            yield not_divisible(f"model.architecture.language.{name}", size, "parallel.tensor", tensor)
    groups = language.query_groups
    if groups % tensor and tensor % groups:
        yield (
            f"model.architecture.language.query_groups is {groups}, neither divisible by parallel.tensor {tensor} nor "
            "a divisor of it; change one of the two"
        )
    elif groups % tensor and language.query_key_value_rows % tensor:
        yield not_divisible(
            "model.architecture.language.(attention_heads + 2 x query_groups) x head size",
            language.query_key_value_rows,
            "parallel.tensor",
            tensor,
        )
    if language.padded_vocabulary_size % tensor:
        yield (
            f"model.architecture.language.vocabulary_size {language.vocabulary_size} padded to a multiple of "
            f"vocabulary_padding {language.vocabulary_padding} is {language.padded_vocabulary_size}, not "
            f"divisible by parallel.tensor {tensor}; make vocabulary_padding a multiple of {tensor}"
        )


def check_pipeline_split(recipe: Recipe) -> Iterator[str]:
    """Every virtual stage gets its layers."""
    parallel, layers = recipe.parallel, recipe.architecture.language.layers
    chunks = parallel.pipeline * parallel.virtual_pipeline
    if parallel.virtual_pipeline > 1 and parallel.pipeline == 1:
        yield (
            f"parallel.virtual_pipeline is {parallel.virtual_pipeline}, but parallel.pipeline is 1 and there "
            "is nothing to interleave; set virtual_pipeline: 1 or pipeline above 1"
        )
    split = parallel.layers_per_stage
    if split is None:
        if layers % chunks:
            yield (
                f"model.architecture.language.layers is {layers}, not divisible by parallel.pipeline "
                f"{parallel.pipeline} x parallel.virtual_pipeline {parallel.virtual_pipeline} = {chunks}; "
                "change the pipeline or give parallel.layers_per_stage"
            )
        return
    if len(split) != chunks:
        yield (
            f"parallel.layers_per_stage has {len(split)} numbers, but there are parallel.pipeline "
            f"{parallel.pipeline} x parallel.virtual_pipeline {parallel.virtual_pipeline} = {chunks} virtual "
            "stages; give one number for each"
        )
    if min(split, default=1) < 1:
        yield f"parallel.layers_per_stage is {list(split)}; every virtual stage needs at least 1 layer"
    if sum(split) != layers:
        yield (
            f"parallel.layers_per_stage {list(split)} sums to {sum(split)}, but "
            f"model.architecture.language.layers is {layers}; make the sum {layers}"
        )


def check_validation(recipe: Recipe) -> Iterator[str]:
    """What is measured every few steps, or chosen by, is there."""
    if any(stage.data.validation is not None for stage in recipe.stages):
        return
    every = recipe.validation.every_steps
    asked = {"validation.every_steps": every, "keep_best": recipe.keep_best or None}
    for name, value in asked.items():
        if value is not None:
            yield (
                f"{name} is {str(value).lower()}, but no stage has data.validation and nothing would be measured; give "
                "a stage its held-out records (stages.NAME.data.validation), or remove the key"
            )


def check_optimizer(recipe: Recipe) -> Iterator[str]:
    """megatron-core's distributed optimiser holds Adam's state only; what it gathers, it must have split."""
    if recipe.parallel.grad_reduce_dtype == "bf16" and recipe.precision == "fp32":
        yield (
            "parallel.grad_reduce_dtype is 'bf16', but precision is 'fp32', whose gradients are added up as they are; "
            "set grad_reduce_dtype: fp32 or precision: bf16"
        )
    if recipe.parallel.overlap_param_gather and not recipe.optimizer.distributed:
        yield (
            "parallel.overlap_param_gather is true, but optimizer.distributed is false and no weight is gathered; "
            "set one like the other"
        )
    if recipe.optimizer.distributed and recipe.optimizer.kind != "adam":
        yield (
            f"optimizer.distributed is true with optimizer.kind '{recipe.optimizer.kind}', but only adam's "
            "state can be split; set distributed: false or kind: adam"
        )


def check_stage_names(recipe: Recipe) -> Iterator[str]:
    """There are stages, addressed by name in overrides and on the disk."""
    if not recipe.stages:
        yield "stages is empty; give at least one"
    names = [stage.name for stage in recipe.stages]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f"stages: {names.count(name)} stages are named '{name}'; give each its own name"


# ---------------------------------------------------------------------------------------------- one stage


def check_length(recipe: Recipe, stage: StageConfig) -> Iterator[str]:
    """A stage has one length."""
    if (stage.epochs is None) == (stage.steps is None):
        found = "neither epochs nor steps" if stage.epochs is None else "both epochs and steps"
        yield f"stages.{stage.name} gives {found}; give exactly one of the two"


def check_learning_rates(recipe: Recipe, stage: StageConfig) -> Iterator[str]:
    """Exactly the trained parts have a rate, each part is named once."""
    if len(set(stage.trains)) != len(stage.trains):
        yield f"stages.{stage.name}.trains is {list(stage.trains)}; name each part once"
    rates = stage.learning_rate.rates
    for part in sorted(set(stage.trains)):
        if part not in rates:
            yield (
                f"stages.{stage.name}.learning_rate.{part} is missing, but '{part}' is in "
                f"stages.{stage.name}.trains; give it a rate"
            )
    for rated, rate in rates.items():
        if rated not in stage.trains:
            yield (
                f"stages.{stage.name}.learning_rate.{rated} is {rate:g}, but '{rated}' is not in "
                f"stages.{stage.name}.trains; remove the rate or train the part"
            )


def check_batch(recipe: Recipe, stage: StageConfig) -> Iterator[str]:
    """A global batch is whole micro-batches."""
    if stage.batch.global_size % stage.batch.micro:
        yield not_divisible(
            f"stages.{stage.name}.batch.global",
            stage.batch.global_size,
            f"stages.{stage.name}.batch.micro",
            stage.batch.micro,
        )


def check_max_tokens(recipe: Recipe, stage: StageConfig) -> Iterator[str]:
    """A sequence fits into the positions and the attention window of the language model."""
    language = recipe.architecture.language
    longest = language.longest_sequence
    if stage.data.max_tokens > longest:
        field = "maximum_positions" if longest == language.maximum_positions else "sliding_window"
        yield (
            f"stages.{stage.name}.data.max_tokens is {stage.data.max_tokens}, more than "
            f"model.architecture.language.{field} {longest}; lower max_tokens to it"
        )


def check_shards(recipe: Recipe, stage: StageConfig) -> Iterator[str]:
    """Shards hold their images themselves."""
    if stage.data.in_shards and stage.data.images is not None:
        yield (
            f"stages.{stage.name}.data.images is '{stage.data.images}', but data.train '{stage.data.train}' is a "
            "directory of shards, which hold their images; remove images, or give a .json or .jsonl file"
        )


def check_bad_records(recipe: Recipe, stage: StageConfig) -> Iterator[str]:
    """A limit on bad records is a share or a number of them."""
    limit = stage.data.max_bad_records
    if limit > 1 and limit != int(limit):
        yield (
            f"stages.{stage.name}.data.max_bad_records is {limit}; give a share of the records, below 1, or a whole "
            "number of them"
        )


RECIPE_CHECKS: tuple[Callable[[Recipe], Iterator[str]], ...] = (
    check_fp8_sizes,
    check_fp8_ends,
    check_recompute,
    check_stop_after,
    check_sequence_parallel,
    check_tensor_split,
    check_pipeline_split,
    check_optimizer,
    check_validation,
    check_stage_names,
)
STAGE_CHECKS: tuple[Callable[[Recipe, StageConfig], Iterator[str]], ...] = (
    check_length,
    check_learning_rates,
    check_batch,
    check_skip,
    check_compress,
    check_distill,
    check_max_tokens,
    check_shards,
    check_bad_records,
)


def recipe_problems(recipe: Recipe) -> list[str]:
    """What is wrong between the fields of a recipe, its architecture included, one message each."""
    problems = [f"model.architecture.{problem}" for problem in architecture_problems(recipe.architecture)]
    problems += [problem for check in RECIPE_CHECKS for problem in check(recipe)]
    problems += [problem for stage in recipe.stages for check in STAGE_CHECKS for problem in check(recipe, stage)]
    return problems


def file_problems(recipe: Recipe) -> list[str]:
    """The files and directories that a recipe names and that are not there, one message each."""
    directories: list[tuple[str, Path | None, str]] = [
        ("model.vision", recipe.model.vision, "a Hugging Face vision encoder directory"),
        ("model.tokenizer", recipe.model.tokenizer, "a Hugging Face tokenizer directory"),
    ]
    problems = []
    init = recipe.model.init
    if init is not None and not os.path.isfile(init / RUN_FILE):
        problems.append(f"model.init is '{init}': {why_no_checkpoint(init)}")
    # os.path, because pathlib raises on some paths (too long, no permission) where os.path says no.
    for stage in recipe.stages:
        if not os.path.exists(stage.data.train):
            problems.append(
                f"stages.{stage.name}.data.train is '{stage.data.train}', which does not exist; give the "
                "data file or the directory of shards (relative paths start at the current directory)"
            )
        held_out = stage.data.validation
        if isinstance(held_out, Path) and not os.path.exists(held_out):
            problems.append(
                f"stages.{stage.name}.data.validation is '{held_out}', which does not exist; give a file of held-out "
                "records, or the share of data.train to hold out, such as 0.01"
            )
        directories.append((f"stages.{stage.name}.data.images", stage.data.images, "the directory of the images"))
    for field, path, meaning in directories:
        if path is not None and not os.path.isdir(path):
            found = "is not a directory" if os.path.exists(path) else "does not exist"
            problems.append(
                f"{field} is '{path}', which {found}; give {meaning} (relative paths start at the current directory)"
            )
    return problems


def report(source: str, problems: list[str]) -> ConfigError:
    """One error for all problems found in a source, a line each."""
    return ConfigError("\n".join([f"{source} cannot be used:", *(f"  - {problem}" for problem in problems)]))


def check_recipe(recipe: Recipe, check_files: bool = True, source: str = "the recipe") -> None:
    """Raise one ConfigError that lists every problem of a recipe; `load_recipe` has done it already."""
    problems = recipe_problems(recipe) + (file_problems(recipe) if check_files else [])
    if problems:
        raise report(source, problems)
