"""Shows that parameters are those of transformers' models; tests/parallel/test_memory.py has the real buffers."""

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, CLIPVisionConfig, Dinov2Config, SiglipVisionConfig

from megatron_sts.config import VisionArchitecture
from megatron_sts.planning.memory import fp8_weight_bytes, part_parameters, rank_bytes, tower_parameters


def count(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("family", "tied", "groups", "head_size"),
    [
        ("llama", False, 32, None),
        ("llama", True, 8, None),
        ("qwen2", False, 8, None),
        ("qwen3", False, 8, 96),
        ("phi", False, 32, None),
        ("gemma", True, 1, 256),
    ],
)
def test_language_parameters_are_those_of_the_model(make, family, tied, groups, head_size):
    sizes = {"family": family, "tied_embeddings": tied, "query_groups": groups, "attention_head_size": head_size}
    recipe = make(**{f"model__architecture__language__{name}": value for name, value in sizes.items()})
    config = AutoConfig.for_model(
        family,
        vocab_size=32000,
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=groups,
        head_dim=head_size or 4096 // 32,
        tie_word_embeddings=tied,
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert part_parameters(recipe, 0)["language"] == count(model)
    assert part_parameters(recipe, 0)["projector"] == 1024 * 4096 + 4096 + 4096 * 4096 + 4096


@pytest.mark.parametrize(
    ("family", "configuration"), [("clip", CLIPVisionConfig), ("siglip", SiglipVisionConfig), ("dinov2", Dinov2Config)]
)
def test_tower_parameters_are_those_of_the_encoder(family, configuration):
    vision = VisionArchitecture(
        family=family,
        image_size=336,
        pretrained_image_size=518 if family == "dinov2" else None,
        patch_size=14,
        hidden_size=1024,
        layers=24,
        attention_heads=16,
        ffn_hidden_size=4096,
        feature_select="full",
    )
    inner = {"mlp_ratio": 4, "use_mask_token": False} if family == "dinov2" else {"intermediate_size": 4096}
    config = configuration(
        hidden_size=1024,
        **inner,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=vision.position_image_size,
        patch_size=14,
    )
    config.vision_use_head = False
    with torch.device("meta"):
        encoder = AutoModel.from_config(config)
    assert tower_parameters(vision) == count(encoder)
    # Of 24 layers 23 run; the last one and the norm after it are not trained either.
    (layers,) = (part for name, part in encoder.named_modules() if name.endswith(("encoder.layers", "encoder.layer")))
    assert tower_parameters(vision, used=True) == count(encoder) - count(layers[-1]) - 2 * 1024


def test_pipeline_and_tensor_parallel_ranks_hold_the_whole_model_once(make):
    whole = part_parameters(make(), 0)["language"]
    pipeline = make(parallel={"pipeline": 4, "layers_per_stage": [7, 8, 8, 9]})
    assert sum(part_parameters(pipeline, rank)["language"] for rank in range(4)) == whole
    assert part_parameters(pipeline, 1)["projector"] == part_parameters(pipeline, 1)["vision"] == 0
    # All but the norms, 2 h a layer and h at the end, is divided.
    assert part_parameters(make(), 0, tensor=8)["language"] == (whole - 65 * 4096) // 8 + 65 * 4096


@pytest.mark.parametrize(
    ("precision", "optimizer", "bytes_a_parameter"),
    [
        ("fp32", {}, (4, 4, 8)),
        ("bf16", {}, (2, 4, 12)),
        ("bf16", {"distributed": True}, (2, 4, 12 / 8)),
        ("fp32", {"kind": "sgd"}, (4, 4, 4)),
        ("fp32", {"kind": "sgd", "momentum": 0.0}, (4, 4, 0)),
    ],
)
def test_bytes_of_a_trained_parameter(make, precision, optimizer, bytes_a_parameter):
    recipe = make(precision=precision, optimizer=optimizer, parallel={"pipeline": 4})
    held = rank_bytes(recipe, recipe.stage("tune"), 1, data_parallel=8)
    count = part_parameters(recipe, 1)["language"]
    assert (held.parameters, held.gradients, held.optimizer) == tuple(each * count for each in bytes_a_parameter)
    # Context-parallel ranks split the distributed optimiser's state as data-parallel ones do.
    context = make(precision=precision, optimizer=optimizer, parallel={"pipeline": 4, "context": 2})
    assert rank_bytes(context, context.stage("tune"), 1, data_parallel=4) == held
    if precision == "bf16":
        halved = make(precision=precision, optimizer=optimizer, parallel={"pipeline": 4, "grad_reduce_dtype": "bf16"})
        assert rank_bytes(halved, halved.stage("tune"), 1, data_parallel=8).gradients == 2 * count
    frozen = rank_bytes(recipe, recipe.stage("align"), 1, data_parallel=8)
    assert (frozen.gradients, frozen.optimizer) == (0, 0)


def test_fp8_keeps_the_matrices_of_its_layers_twice_more(make):
    # LLaVA-1.5-7B's layer: 4 x 4096 x 4096 and 3 x 4096 x 11008.
    matrices = 4 * 4096 * 4096 + 3 * 4096 * 11008
    recipe = make(precision="fp8", parallel__pipeline=2, parallel__tensor=2, fp8_bf16_layers=1)
    assert fp8_weight_bytes(recipe, 0) == fp8_weight_bytes(recipe, 1) == 2 * 15 * matrices // 2
    bf16 = recipe.model_copy(update={"precision": "bf16"})
    stage = recipe.stage("tune")
    assert rank_bytes(recipe, stage, 0, 1).total - rank_bytes(bf16, stage, 0, 1).total == fp8_weight_bytes(recipe, 0)
    assert fp8_weight_bytes(bf16, 0) == 0
