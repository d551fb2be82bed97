"""A transformer layer that the StepPlan can skip (arXiv 2509.18150, Layer Dynamic Skipper)."""

import copy
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayer
from torch import Tensor
from torch.nn import Parameter

from megatron_sts.sts import StepPlan


class SkippableTransformerLayer(TransformerLayer):
    """megatron-core's TransformerLayer; where the plan skips it, the identity, forward and backward.

    Contract: `train/optimizer.py` leaves the weights and moments of a skipped layer alone in that step.
    """

    skipped = False
    when_skipped: Callable[[], None] | None = None
    """Called where the layer's forward pass would have been."""
    ends_chunk = False
    """Whether this is the last layer of a model chunk, whose output the schedules send on and free.

    They may free neither the tensor that the chunk received, where it skips all its layers, nor a view of one, which
    is what recomputation makes of a layer that returns its input: the last layer returns a copy.
    """

    def __init__(self, config: TransformerConfig, *args: Any, fuses_gradients: bool | None = None, **kwargs: Any):
        """As megatron-core's. fuses_gradients: for this layer in place of config.gradient_accumulation_fusion."""
        if fuses_gradients is not None:
            # A copy as it is: making it anew would fill in once more what was derived.
            config = copy.copy(config)
            config.gradient_accumulation_fusion = fuses_gradients
        super().__init__(config, *args, **kwargs)

    def __call__(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        """hidden_states [s, b, h] -> ([s, b, h], context)."""
        if not self.skipped:
            return super().__call__(*args, **kwargs)
        hidden_states = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        if self.when_skipped is not None:
            self.when_skipped()
        if self.ends_chunk:
            hidden_states = hidden_states.clone()
        return hidden_states, kwargs.get("context")


def hand_down_plan(layers: Iterable[SkippableTransformerLayer], plan: StepPlan) -> None:
    """Tell the layers of one model chunk whether they run in the step.

    Called before the step, not per micro-batch: recomputation in the backward pass meets the same decision.
    """
    for layer in layers:
        layer.skipped = (layer.layer_number - 1) in plan.skipped_layers


def parameters_of_skipped(layers: Iterable[SkippableTransformerLayer]) -> Iterator[Parameter]:
    """The parameters that take no part in the step."""
    for layer in layers:
        if layer.skipped:
            yield from layer.parameters()
