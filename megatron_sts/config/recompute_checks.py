"""Checks of `recompute`: which modules there are, and what they go with."""

from collections.abc import Iterator

from megatron_sts.config.recipe import Recipe


def check_recompute(recipe: Recipe) -> Iterator[str]:
    """Modules to recompute are named once, and go with the precision."""
    if isinstance(recipe.recompute, str):
        return
    modules = list(recipe.recompute)
    if not modules:
        yield "recompute is an empty list; name modules of a layer, or write recompute: none"
    if len(set(modules)) != len(modules):
        yield f"recompute is {modules}; name each module once"
    if "layernorm" in modules and recipe.precision == "fp8" and recipe.fp8_recipe == "delayed":
        yield (
            f"recompute is {modules}, but norms cannot be recomputed with fp8_recipe: delayed, whose scales would see "
            "each tensor twice; leave out layernorm, or set fp8_recipe: tensorwise"
        )


def recompute_warning(recipe: Recipe) -> str | None:
    """What is lost by recomputing what frees nothing; None where nothing is."""
    if "core_attn" not in recipe.recompute:
        return None
    return (
        "recompute has core_attn, which frees nothing: fused attention keeps no scores, its backward pass needs query, "
        "key and value, and so does computing it again; leave it out"
    )
