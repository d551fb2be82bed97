"""The parallel block of GPT-J and Phi as a layer that the StepPlan can skip.

Shapes: s positions that this rank holds, S of all tensor-parallel ranks (without sequence parallelism the same), b
micro-batch, h hidden size; n text rows of its own, N of all tensor-parallel ranks.
"""

from collections.abc import Callable
from typing import Any

from megatron.core.tensor_parallel import checkpoint
from megatron.core.tensor_parallel.mappings import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
    reduce_from_tensor_model_parallel_region,
    reduce_scatter_to_sequence_parallel_region,
)
from megatron.core.tensor_parallel.random import CheckpointWithoutOutput, get_cuda_rng_tracker
from megatron.core.utils import make_viewless_tensor
from torch import Tensor
from torch.nn import functional as F

from megatron_sts.model.skippable_layer import SkippableTransformerLayer
from megatron_sts.model.text_rows import TextRows


class ParallelBlockLayer(SkippableTransformerLayer):
    """x + attention(norm(x)) + MLP(norm(x)): attention and MLP read one norm's output and are added together.

    Tensor-parallel ranks share the norm's output in one all-gather and sum attention and MLP in one reduce-scatter
    (without sequence parallelism: one all-reduce forward, one backward); a sequential layer has two of each.
    Where the plan skips it for visual tokens, the MLP runs for the rows of text alone and adds nothing to the others.
    Contract: model/specs.py gives it linear layers that do not communicate (model/local_linear.py).
    """

    works_on_gathered_rows = True

    def forward(
        self, *args: Any, attention_bias: TextRows | None = None, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        """hidden_states [s, b, h] -> ([s, b, h], context).

        attention_bias: as in SkippableTransformerLayer.forward.
        1. Normalise, and gather the rows of all tensor-parallel ranks: [S, b, h].
        2. Attention and MLP of the own heads and columns, added: this rank's summand [S, b, h].
        3. Sum over the ranks, each keeping its own rows, and add the biases and the residual: [s, b, h].
        """
        assert not args, "TransformerBlock names what it hands to its layers"
        hidden_states = kwargs["hidden_states"]
        rows, forget = self._shared_norm(hidden_states)
        summand, bias = self.self_attention(
            rows,
            attention_mask=kwargs.get("attention_mask"),
            rotary_pos_emb=kwargs.get("rotary_pos_emb"),
            packed_seq_params=kwargs.get("packed_seq_params"),
        )
        if self.skipped_for_visual:
            assert attention_bias is not None, "a step that skips layers for visual tokens is told where text is"
            summand, mlp_bias = self._add_mlp_of_text(summand, rows, attention_bias)
            summed = _add_to_rows(self._summed(summand), attention_bias.own, mlp_bias)
        else:
            from_mlp, mlp_bias = self._mlp(rows)
            summed, bias = self._summed(summand + from_mlp), bias + mlp_bias
        forget(summed)
        with self.bias_dropout_add_exec_handler():
            output = self.self_attn_bda(self.training, self.config.bias_dropout_fusion)(
                (summed, bias), hidden_states, self.hidden_dropout
            )
        # The schedules free what a chunk hands on, and refuse views.
        output = make_viewless_tensor(output, requires_grad=output.requires_grad, keep_graph=True)
        return output, kwargs.get("context")

    def _add_mlp_of_text(self, summand: Tensor, rows: Tensor, text: TextRows) -> tuple[Tensor, Tensor]:
        """summand, rows [S, b, h] -> the summand with that of the MLP [S, b, h] added to text, and the MLP's bias [h].

        Every tensor-parallel rank has all rows here, so that none are moved for it.
        """
        assert text.gathered is not None
        picked = rows.flatten(0, 1).index_select(0, text.gathered)
        padded = F.pad(picked, (0, 0, 0, text.worked - picked.size(0))).unsqueeze(1)
        done, bias = self._mlp(padded)
        return _add_to_rows(summand, text.gathered, done.squeeze(1)[: picked.size(0)]), bias

    def _shared_norm(self, hidden_states: Tensor) -> tuple[Tensor, Callable[[Tensor], None]]:
        """hidden_states [s, b, h] -> (normalised rows [S, b, h], what is called with the tensor that was made of them).

        With `recompute: [layernorm]` they are not kept, but normalised and gathered again in the backward pass.
        """
        if not self.recompute_input_layernorm:
            return self._gathered(self.input_layernorm(hidden_states)), lambda summed: None
        kept = CheckpointWithoutOutput(fp8=self.config.fp8)
        rows = kept.checkpoint(lambda hidden: self._gathered(self.input_layernorm(hidden)), hidden_states)
        return rows, kept.discard_output_and_register_recompute

    def _mlp(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """rows [S, b, h] -> (this rank's summand [S, b, h], bias [h])."""
        if not self.recompute_mlp:
            return self.mlp(rows)
        # The bias stays outside: a function that is recomputed would make it a result of its own.
        bias = self.mlp.linear_fc2.bias
        if self.config.fp8:
            from megatron.core.extensions.transformer_engine import te_checkpoint

            return te_checkpoint(self._mlp_summand, False, get_cuda_rng_tracker, self.tp_group, rows), bias
        return checkpoint(self._mlp_summand, False, rows), bias

    def _mlp_summand(self, rows: Tensor) -> Tensor:
        return self.mlp(rows)[0]

    def _gathered(self, rows: Tensor) -> Tensor:
        if self.config.sequence_parallel:
            return gather_from_sequence_parallel_region(rows, tensor_parallel_output_grad=True, group=self.tp_group)
        return copy_to_tensor_model_parallel_region(rows, group=self.tp_group)

    def _summed(self, summand: Tensor) -> Tensor:
        if self.config.sequence_parallel:
            return reduce_scatter_to_sequence_parallel_region(summand, group=self.tp_group)
        return reduce_from_tensor_model_parallel_region(summand, group=self.tp_group)


def _add_to_rows(hidden: Tensor, places: Tensor, added: Tensor) -> Tensor:
    """hidden [s, b, h] with `added` ([n, h], or [h] for all of them) added at `places` [n] of its flattened rows."""
    added = added.expand(places.size(0), -1)
    return hidden.flatten(0, 1).index_add(0, places, added).view_as(hidden)
