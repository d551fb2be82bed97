"""Layer specs: which modules megatron-core builds the language model from."""

from dataclasses import replace

from megatron.core.models.gpt.gpt_layer_specs import (
    get_gpt_layer_local_spec,
    get_gpt_layer_with_transformer_engine_spec,
)
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.utils import get_pg_rank

from megatron_sts.model.attention import CausalAttention
from megatron_sts.model.local_linear import local_linears
from megatron_sts.model.norm import plain_norm
from megatron_sts.model.parallel_block import ParallelBlockLayer
from megatron_sts.model.precision import uses_transformer_engine
from megatron_sts.model.skippable_layer import SkippableTransformerLayer
from megatron_sts.parallel.megatron_versions import mlp_spec_with


def block_spec(
    config: TransformerConfig, groups: ProcessGroupCollection, virtual_stage: int | None, parallel_block: bool = False
) -> TransformerBlockSubmodules:
    """The layers and final norm of one model chunk, every layer skippable.

    Transformer Engine's modules in half precision on a GPU that has it, else megatron-core's own with torch's
    attention and norm.
    Both give the same checkpoint keys. Transformer Engine's add weight gradients up inside their matrix product, with
    Apex or without; only megatron-core's own layers, such as the output layer, take Apex to do it.
    parallel_block: attention and MLP read one norm's output, as in Phi.
    """
    engine = uses_transformer_engine(config.params_dtype)
    if engine:
        from megatron.core.extensions.transformer_engine import TENorm

        layer, norm = get_gpt_layer_with_transformer_engine_spec(qk_layernorm=config.qk_layernorm), TENorm
        if config.recompute_granularity == "selective" and "layernorm" in config.recompute_modules:
            layer = _with_norms_apart(layer)
    else:
        norm = plain_norm(config)
        layer = _plain_layer_spec(config.qk_layernorm, norm)
    if parallel_block:
        layer = _parallel_block_spec(layer, norm, *local_linears(engine))
    skippable = replace(
        layer,
        module=ParallelBlockLayer if parallel_block else SkippableTransformerLayer,
        params={"fuses_gradients": True} if engine else {},
    )
    count = get_num_layers_to_build(config, virtual_stage, get_pg_rank(groups.pp))
    return TransformerBlockSubmodules(layer_specs=[skippable] * count, layer_norm=norm)


def _with_norms_apart(layer: ModuleSpec) -> ModuleSpec:
    """Transformer Engine's layer with norms as modules of their own, under the checkpoint keys of the fused ones.

    megatron-core recomputes norms that are modules; one inside a linear layer it passes over, and frees nothing.
    """
    from megatron.core.extensions.transformer_engine import TEColumnParallelLinear, TENorm

    parts = layer.submodules
    attention = parts.self_attention
    return replace(
        layer,
        submodules=replace(
            parts,
            input_layernorm=TENorm,
            self_attention=replace(
                attention, submodules=replace(attention.submodules, linear_qkv=TEColumnParallelLinear)
            ),
            pre_mlp_layernorm=TENorm,
            mlp=mlp_spec_with(parts.mlp, linear_fc1=TEColumnParallelLinear),
            sharded_state_dict_keys_map=get_gpt_layer_local_spec().submodules.sharded_state_dict_keys_map,
        ),
    )


def _plain_layer_spec(query_key_norm: bool, norm: type) -> ModuleSpec:
    layer = get_gpt_layer_local_spec(normalization="RMSNorm")
    attention = layer.submodules.self_attention
    parts = replace(attention.submodules, core_attention=CausalAttention)
    if query_key_norm:
        parts = replace(parts, q_layernorm=norm, k_layernorm=norm)
    return replace(
        layer,
        submodules=replace(
            layer.submodules,
            input_layernorm=norm,
            pre_mlp_layernorm=norm,
            self_attention=replace(attention, submodules=parts),
        ),
    )


def _parallel_block_spec(layer: ModuleSpec, norm: type, column: type, row: type) -> ModuleSpec:
    """The layer with one norm, and linear layers that leave communication to the layer.

    The norm is a module of its own with Transformer Engine too; it has the checkpoint keys of other layers' first.
    """
    attention = layer.submodules.self_attention
    return replace(
        layer,
        submodules=replace(
            layer.submodules,
            input_layernorm=norm,
            pre_mlp_layernorm=IdentityOp,
            self_attention=replace(
                attention, submodules=replace(attention.submodules, linear_qkv=column, linear_proj=row)
            ),
            mlp=mlp_spec_with(layer.submodules.mlp, linear_fc1=column, linear_fc2=row),
            sharded_state_dict_keys_map={"input_layernorm.": "self_attention.linear_qkv.layer_norm_"},
        ),
    )
