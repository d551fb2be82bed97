"""megatron-core's TransformerConfig from a recipe."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch.nn.functional as F
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megatron_sts.config import LanguageArchitecture, Recipe
from megatron_sts.model.precision import (
    fp8_settings,
    fuses_gradient_accumulation,
    parameter_dtype,
    uses_transformer_engine,
)
from megatron_sts.parallel.device import has_gpu
from megatron_sts.parallel.layout import pipeline_layout


def _activation(language: LanguageArchitecture, fused: bool) -> Callable[[Tensor], Tensor]:
    """The MLP's activation. megatron-core's fused kernel of a GELU is the approximation by tanh, under the name of the
    exact one."""
    if language.activation == "silu":
        return F.silu
    return F.gelu if fused else partial(F.gelu, approximate="tanh")


def transformer_config(recipe: Recipe) -> TransformerConfig:
    """The language model's TransformerConfig: norms, MLP and biases of its family, no dropout."""
    language, parallel = recipe.architecture.language, recipe.parallel
    gpu = has_gpu()
    interleaved = parallel.virtual_pipeline > 1
    layout = pipeline_layout(language.layers, parallel)
    return TransformerConfig(
        num_layers=language.layers,
        hidden_size=language.hidden_size,
        ffn_hidden_size=language.ffn_hidden_size,
        num_attention_heads=language.attention_heads,
        num_query_groups=language.query_groups,
        kv_channels=language.head_size,
        normalization="LayerNorm" if language.layer_norm else "RMSNorm",
        layernorm_zero_centered_gamma=language.zero_centered_norm,
        layernorm_epsilon=language.norm_epsilon,
        gated_linear_unit=language.gated_mlp,
        activation_func=_activation(language, fused=gpu),
        add_bias_linear=language.linear_bias,
        add_qkv_bias=language.query_key_value_bias,
        qk_layernorm=language.query_key_norm,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        tensor_model_parallel_size=parallel.tensor,
        sequence_parallel=parallel.sequence_parallel,
        pipeline_model_parallel_size=parallel.pipeline,
        virtual_pipeline_model_parallel_size=parallel.virtual_pipeline if interleaved else None,
        pipeline_model_parallel_layout=layout,
        context_parallel_size=parallel.context,
        params_dtype=parameter_dtype(recipe),
        pipeline_dtype=parameter_dtype(recipe),
        bf16=recipe.precision != "fp32",
        # The loss function returns sums and token counts: gradients become means over supervised tokens.
        calculate_per_token_loss=True,
        # Its draws are replaced: by a checkpoint, or by model/initialize.py, which draws the same for every layout.
        # Without them megatron-core leaves out the marks by which the gradient norm knows tensor-parallel shards.
        perform_initialization=True,
        gradient_accumulation_fusion=fuses_gradient_accumulation(),
        apply_rope_fusion=uses_transformer_engine(parameter_dtype(recipe)),
        # megatron-core's rounds the gradient of the logits to bf16, whatever their type.
        cross_entropy_loss_fusion=gpu and recipe.precision != "fp32",
        bias_activation_fusion=gpu,
        bias_dropout_fusion=False,
        masked_softmax_fusion=False,
        persist_layer_norm=False,
        # With gloo and virtual stages, deallocated outputs are still being sent: wrong losses.
        deallocate_pipeline_outputs=gpu or not interleaved,
        # Without overlap, interleaved stages exchange wrong tensors on gloo.
        overlap_p2p_comm=interleaved,
        batch_p2p_comm=not interleaved,
        # Two waits of the host for the device in each micro-batch, against a fault of torch releases before 2.0.
        batch_p2p_sync=False,
        **_recompute_settings(recipe),
        **fp8_settings(recipe),
    )


def _recompute_settings(recipe: Recipe) -> dict[str, Any]:
    if recipe.recompute == "none":
        return {}
    if recipe.recompute == "full":
        return {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
    return {"recompute_granularity": "selective", "recompute_modules": list(recipe.recompute)}
