"""Builds the model chunks of this rank, freezes what a stage does not train, and wraps them for data parallelism."""

from functools import partial
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel import ColumnParallelLinear
from megatron.core.tensor_parallel.layers import set_tensor_model_parallel_attributes
from megatron.core.transformer.module import Float16Module
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_sts.config import LanguageArchitecture, Recipe
from megatron_sts.model.data_parallel import SkippingDataParallel, data_parallel_config
from megatron_sts.model.initialize import initialize_fresh
from megatron_sts.model.logits import ReadableGPTModel
from megatron_sts.model.mllm import MultimodalModel
from megatron_sts.model.precision import parameter_dtype
from megatron_sts.model.projector import Projector
from megatron_sts.model.specs import block_spec
from megatron_sts.model.transformer_config import transformer_config
from megatron_sts.model.vision import VisionTower, build_tower
from megatron_sts.parallel.device import compute_fp32_in_full, has_gpu


def build_chunks(recipe: Recipe, groups: ProcessGroupCollection, draw_weights: bool) -> list[MultimodalModel]:
    """This rank's model chunks, one per virtual stage.

    `draw_weights`: the tower has the weights of `model.vision` where that is given, the others are drawn from the
    recipe's seed, alike in every layout. Without it all are left to be loaded from a checkpoint, the tower's too.
    """
    if recipe.precision == "fp32":
        compute_fp32_in_full()
    chunks = []
    for virtual_stage in range(recipe.parallel.virtual_pipeline):
        chunk = _build_chunk(recipe, groups, virtual_stage, draw_weights)
        if draw_weights:
            initialize_fresh(chunk, recipe.seed, recipe.architecture.language.layers)
        chunks.append(chunk)
    return chunks


def _build_chunk(
    recipe: Recipe, groups: ProcessGroupCollection, virtual_stage: int, draw_weights: bool
) -> MultimodalModel:
    architecture, config = recipe.architecture, transformer_config(recipe)
    language = architecture.language
    stage = virtual_stage if recipe.parallel.virtual_pipeline > 1 else None
    first = parallel_state.is_pipeline_first_stage(ignore_virtual=stage is None, vp_stage=stage)
    last = parallel_state.is_pipeline_last_stage(ignore_virtual=stage is None, vp_stage=stage)
    gpt = ReadableGPTModel(
        config=config,
        transformer_layer_spec=block_spec(config, groups, stage, language.parallel_block),
        vocab_size=language.padded_vocabulary_size,
        max_sequence_length=language.maximum_positions,
        pre_process=first,
        post_process=last,
        share_embeddings_and_output_weights=language.tied_embeddings,
        position_embedding_type="rope",
        rotary_percent=language.partial_rotary_factor,
        rotary_base=language.rotary_base,
        **_rotary_scaling(language),
        pg_collection=groups,
        vp_stage=stage,
    )
    gpt.decoder.layers[-1].ends_chunk = True
    if last and language.linear_bias:
        _add_output_bias(gpt.output_layer)
    if not first:
        return MultimodalModel(config, gpt, groups)
    dtype = parameter_dtype(recipe)
    tower = build_tower(architecture.vision, recipe.model.vision, dtype, recipe.seed, read_weights=draw_weights)
    _mark_as_shares(tower, config)
    projector = Projector(architecture.vision.hidden_size, language.hidden_size, dtype, config.sequence_parallel)
    return MultimodalModel(config, gpt, groups, tower, projector, language.embedding_scale)


def _add_output_bias(output: ColumnParallelLinear) -> None:
    """Give the output layer the bias that it takes and GPTModel does not ask for; zero, cut like its weight."""
    weight = output.weight
    output.bias = torch.nn.Parameter(torch.zeros(weight.size(0), dtype=weight.dtype, device=weight.device))
    set_tensor_model_parallel_attributes(output.bias, is_parallel=True, dim=0, stride=1)
    output.bias.allreduce = True


def _rotary_scaling(language: LanguageArchitecture) -> dict[str, Any]:
    """GPTModel's arguments for the scaling of the rotary embedding.

    Contract: megatron-core's llama3 scaling has the bounds of Llama 3.1 built in (1, 4, 8192 positions); `hf` refuses
    others.
    """
    scaling = language.rotary_scaling
    if scaling is None:
        return {}
    if scaling.kind == "linear":
        return {"seq_len_interpolation_factor": scaling.factor}
    return {"rope_scaling": True, "rope_scaling_factor": scaling.factor}


def _mark_as_shares(tower: VisionTower, config: TransformerConfig) -> None:
    """A trained tower's gradient on a rank is that of its share of the images; megatron-core puts them together.

    Contract: without sequence parallelism it knows no sum but an average over the tensor-parallel ranks.
    There each of them needs every row, so that what comes back is the sum of as many equal gradients: their average
    is that of the shares' sum.
    """
    mark = "sequence_parallel" if config.sequence_parallel else "average_gradients_across_tp_domain"
    for parameter in tower.parameters():
        setattr(parameter, mark, True)


def freeze(chunks: list[MultimodalModel], trains: tuple[str, ...]) -> None:
    """Leave gradients on for the parts in `trains` alone: projector, language, vision."""
    for chunk in chunks:
        for part in ("projector", "language", "vision"):
            module = getattr(chunk, part)
            if module is not None:
                module.requires_grad_(part in trains)
        if chunk.vision is not None:
            chunk.vision.freeze_unused()


def wrap(chunks: list[MultimodalModel], recipe: Recipe, groups: ProcessGroupCollection) -> list[SkippingDataParallel]:
    """The chunks under megatron-core's DistributedDataParallel, ready for its schedules and optimiser."""
    config = data_parallel_config(recipe, groups.dp_cp.size(), has_gpu())
    wrapped = []
    for number, chunk in enumerate(chunks):
        module: torch.nn.Module = chunk
        if recipe.precision != "fp32":
            # Casts between bf16 activations and fp32 losses at the first and last stage.
            module = Float16Module(chunk.config, chunk)
        ddp = SkippingDataParallel(chunk.config, config, module, disable_bucketing=number > 0, pg_collection=groups)
        if config.overlap_param_gather:
            for layer in chunk.language.decoder.layers:
                layer.when_skipped = partial(ddp.gather_weights_of, layer)
        wrapped.append(ddp)
    return wrapped
