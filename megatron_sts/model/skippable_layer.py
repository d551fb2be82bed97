"""A transformer layer that the StepPlan can skip (arXiv 2509.18150, Layer Dynamic Skipper)."""

import copy
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayer
from megatron.core.utils import make_viewless_tensor
from torch import Tensor
from torch.nn import Parameter

from megatron_sts.model.text_rows import TextRows
from megatron_sts.sts import StepPlan


class SkippableTransformerLayer(TransformerLayer):
    """megatron-core's TransformerLayer; where the plan skips it, the identity, forward and backward.

    Where the plan skips it for visual tokens, attention runs for all rows and the MLP, with its norm and its residual
    addition, for those of text alone.
    Contract: `train/optimizer.py` leaves the weights and moments of a skipped layer alone in that step.
    """

    works_on_gathered_rows = False
    """Whether the MLP is handed the rows of all tensor-parallel ranks, also under sequence parallelism."""
    skipped = False
    skipped_for_visual = False
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

    def forward(
        self, *args: Any, attention_bias: TextRows | None = None, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        """hidden_states [s, b, h] -> ([s, b, h], context).

        attention_bias: the text rows of the micro-batch, and no bias, which no attention here has. Of what
        TransformerBlock takes it alone reaches a layer as it was given, whatever it is, and once more where the layer
        is recomputed: by then other micro-batches have passed, and nothing that a layer remembers would do.
        """
        if not self.skipped_for_visual:
            return super().forward(*args, **kwargs)
        assert attention_bias is not None, "a step that skips layers for visual tokens is told where text is"
        hidden_states, context = self._forward_attention(*args, **kwargs)
        output = attention_bias.apply(self._forward_mlp, hidden_states)
        # The schedules free what a chunk hands on, and refuse views.
        return make_viewless_tensor(output, requires_grad=output.requires_grad, keep_graph=True), context


def hand_down_plan(layers: Iterable[SkippableTransformerLayer], plan: StepPlan) -> None:
    """Tell the layers of one model chunk whether they run in the step, and for which tokens.

    Called before the step, not per micro-batch: recomputation in the backward pass meets the same decision.
    """
    for layer in layers:
        number = layer.layer_number - 1
        layer.skipped = number in plan.skipped_layers
        layer.skipped_for_visual = number in plan.layers_skipped_for_visual


def parameters_of_skipped(layers: Iterable[SkippableTransformerLayer]) -> Iterator[Parameter]:
    """The parameters that take no part in the step."""
    for layer in layers:
        if layer.skipped:
            yield from layer.parameters()
