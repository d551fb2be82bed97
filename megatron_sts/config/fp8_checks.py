"""Checks of `precision: fp8` that need no GPU: the sizes that FP8 products take, and which layers stay in bf16."""

from collections.abc import Iterator

from megatron_sts.config.recipe import Recipe

FP8_MULTIPLE = {"tensorwise": 16, "delayed": 16, "blockwise": 128}
"""By `fp8_recipe`: what both dimensions of a weight on one rank must be a multiple of.

cuBLASLt takes FP8 operands whose dimensions are multiples of 16; blocks have a side of 128.
"""


def check_fp8_sizes(recipe: Recipe) -> Iterator[str]:
    """Every weight of a layer, as one rank holds it, has dimensions that FP8 products take."""
    if recipe.precision != "fp8":
        return
    language, tensor = recipe.architecture.language, recipe.parallel.tensor
    multiple = FP8_MULTIPLE[recipe.fp8_recipe]
    heads, groups, head_size = language.attention_heads, language.query_groups, language.head_size
    # By the fields that a size comes from: the whole, and whether tensor parallelism cuts it.
    sizes = {
        "hidden_size": (language.hidden_size, False),
        "ffn_hidden_size": (language.ffn_hidden_size, True),
        "attention_heads x head size": (heads * head_size, True),
        "(attention_heads + 2 x query_groups) x head size": ((heads + 2 * groups) * head_size, True),
    }
    for name, (size, is_cut) in sizes.items():
        ranks = tensor if is_cut else 1
        if size % (ranks * multiple):
            over = f" over parallel.tensor {tensor}" if ranks > 1 else ""
            yield (
                f"model.architecture.language.{name} is {size}{over}, not a multiple of {multiple} on each rank, as "
                f"precision: fp8 with fp8_recipe: {recipe.fp8_recipe} needs; change parallel.tensor"
                f"{' or fp8_recipe' if multiple > 16 else ''}, or set precision: bf16"
            )


def check_fp8_ends(recipe: Recipe) -> Iterator[str]:
    """The layers that stay in bf16 are some of the first and of the last pipeline stage."""
    ends = recipe.fp8_bf16_layers
    if not ends:
        return
    if recipe.precision != "fp8":
        yield (
            f"fp8_bf16_layers is {ends}, but precision is '{recipe.precision}' and no layer runs in fp8; "
            "remove it or set precision: fp8"
        )
    elif recipe.fp8_recipe == "delayed":
        yield (
            f"fp8_bf16_layers is {ends}, but fp8_recipe: delayed keeps one scale state over all layers of a stage; "
            "set fp8_recipe: tensorwise or fp8_bf16_layers: 0"
        )
    most = recipe.architecture.language.layers // recipe.parallel.pipeline
    if ends > most:
        yield (
            f"fp8_bf16_layers is {ends}, but a pipeline stage has {most} layers "
            f"(model.architecture.language.layers over parallel.pipeline {recipe.parallel.pipeline}); "
            f"give at most {most}"
        )
