"""What the layers of a model keep for the backward pass, by what torch is given to save."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from megatron_sts.config import Recipe
from megatron_sts.model.skippable_layer import SkippableTransformerLayer
from megatron_sts.parallel.groups import start_groups
from megatron_sts.planning.activations import largest_activations, layer_activations, with_recompute
from megatron_sts.train.loop import prepare_stage
from megatron_sts.train.resume import Start
from megatron_sts.train.stage_data import StageData


@dataclass
class Kept:
    """Bytes that are kept of the last micro-batch of a step, and those that are planned: the last layer's, the rank's.

    rotary: of them, the tables that rotate positions, in each layer.
    """

    layer: int
    planned_layer: float
    model: int
    planned_model: float
    rotary: int


def kept_activations(cases: list[tuple[str, Recipe, bool]]) -> list[Kept]:
    """Of this rank, for (stage, recipe, whether the last layer is skipped for visual tokens)."""
    return [_kept(*case) for case in cases]


def _kept(stage_name: str, recipe: Recipe, for_text: bool) -> Kept:
    place = start_groups(recipe.parallel, recipe.seed)
    stage = recipe.stage(stage_name)
    data = StageData(recipe, stage)
    parts = prepare_stage(recipe, stage, data.total_steps, Start(None, 0), place)
    (model,) = parts.chunks
    layer = [module for module in model.modules() if isinstance(module, SkippableTransformerLayer)][-1]
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    layer_bytes, model_bytes = _watched(layer, weights), _watched(model, weights)
    plan = data.planner.dense_plan(0)
    if for_text:
        plan = replace(plan, layers_skipped_for_visual=frozenset({layer.layer_number - 1}))
    shape = data.shape(plan)
    reader = data.raw_items(place)
    items = [reader.read(indices) for indices in data.micro_batches(0)]
    parts.step.forward_backward(data.step_input(plan, shape, items, place))
    text = data.own_text(plan, place)
    language = recipe.architecture.language
    rows = stage.batch.micro * shape.length / recipe.parallel.context
    text_rows = rows if text is None else sum(end - start for ranges in text[-1] for start, end in ranges)
    found = with_recompute(recipe, stage, layer_activations(recipe, stage, recipe.precision == "fp8"))
    # The planned length is that of the step's own micro-batches.
    mean = stage.data.model_copy(update={"text_tokens": shape.length - plan.visual_tokens})
    rank = largest_activations(recipe, stage.model_copy(update={"data": mean}), 0, 1, [data.planner.dense_plan(0)])
    return Kept(
        layer=layer_bytes[-1],
        planned_layer=rows * found.kept(text_rows / rows),
        # The inner of two hooks takes what the layer saves, where it is not recomputed as a whole.
        model=model_bytes[-1] + (0 if recipe.recompute == "full" else layer_bytes[-1]),
        planned_model=rank.kept + rank.logits,
        # Sine and cosine for queries and for keys.
        rotary=int(4 * 4 * shape.length * language.head_size * language.partial_rotary_factor),
    )


def _watched(module: nn.Module, weights: set[int]) -> list[int]:
    """Grows by what each forward pass of a module that needs a gradient keeps, in bytes."""
    found: list[int] = []
    forward: Callable[..., Any] = module.forward

    def watched(*args: Any, **kwargs: Any) -> Any:
        saved: list[Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda kept: kept):
            result = forward(*args, **kwargs)
        # Recomputation has emptied some by now; what is saved twice is kept once.
        storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in saved}
        found.append(sum(size for place, size in storages.items() if place not in weights))
        return result

    module.forward = watched  # type: ignore[method-assign]
    return found
