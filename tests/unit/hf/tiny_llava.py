"""Tiny random LLaVA models and their training checkpoints in megatron-core's format."""

import json
import multiprocessing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import megatron.core.dist_checkpointing.strategies.filesystem_async as filesystem_async
import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing import ShardedTensor
from megatron.core.dist_checkpointing.mapping import ShardedObject
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PhiConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    SiglipVisionConfig,
)

from megatron_sts.config import Architecture, LanguageArchitecture, Recipe
from megatron_sts.hf.families import Rule
from megatron_sts.hf.language import hugging_face_names, megatron_key, rules_in_layer, rules_outside
from megatron_sts.parallel.device import prepare_device
from tests.ranks import run_ranks

WORDS = ["USER:", "ASSISTANT:", "What", "digit", "is", "it?", "Row", "one:", "two", "five", "yes", "no", "A", "chat"]


@dataclass(frozen=True)
class Made:
    """A reference model, and the training checkpoint that holds its weights."""

    model: LlavaForConditionalGeneration
    recipe: Recipe
    tensors: dict[str, Tensor]
    checkpoint: Path


def make_tokenizer(image_token: bool = True) -> PreTrainedTokenizerFast:
    """One token a word, `▁` for a space, a begin-of-sequence token in front."""
    pieces = ["<unk>", "<s>", "</s>", "<pad>", "▁", *(f"▁{word}" for word in WORDS)]
    tokenizer = Tokenizer(models.WordLevel({piece: i for i, piece in enumerate(pieces)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        extra_special_tokens=["<image>"] if image_token else [],
    )
    fast.backend_tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return fast


def architecture(tower: str, tied: bool = False, **language: Any) -> Architecture:
    """language: changes to the language model, which else is a Llama."""
    return Architecture.model_validate(
        {
            "vision": {
                "family": tower,
                "image_size": 28,
                "patch_size": 14,
                "hidden_size": 24,
                "layers": 3,
                "attention_heads": 2,
                "ffn_hidden_size": 40,
                "feature_layer": -2 if tower == "clip" else -1,
                "feature_select": "default" if tower == "clip" else "full",
            },
            "language": {
                "family": "llama",
                "layers": 3,
                "hidden_size": 32,
                "ffn_hidden_size": 48,
                "attention_heads": 4,
                "query_groups": 2,
                "vocabulary_size": 40,
                "vocabulary_padding": 64,
                "rotary_base": 500.0,
                "tied_embeddings": tied,
                "maximum_positions": 128,
                **language,
            },
        }
    )


def make_recipe(sizes: Architecture, tokenizer: Path | None, vision: Path | None) -> Recipe:
    def stage(name: str, template: str, **sparsity: Any) -> dict[str, Any]:
        return {
            "name": name,
            "data": {"train": f"data/{name}.json", "template": template},
            "trains": ["projector"],
            "steps": 10,
            "batch": {"global": 8, "micro": 2},
            "learning_rate": {"projector": 1e-3},
            **sparsity,
        }

    return Recipe.model_validate(
        {
            "output_dir": "runs/tiny",
            "precision": "fp32",
            "model": {"architecture": sizes.model_dump(), "vision": vision, "tokenizer": tokenizer},
            "stages": [
                stage("align", "plain", compress={"keep_ratio": 0.5}),
                stage("tune", "vicuna_v1", skip={"alpha": 0.5, "epsilon": 0.25}),
            ],
        }
    )


def vision_sizes(sizes: Architecture) -> dict[str, Any]:
    vision = sizes.vision
    return {
        "hidden_size": vision.hidden_size,
        "intermediate_size": vision.ffn_hidden_size,
        "num_hidden_layers": vision.layers,
        "num_attention_heads": vision.attention_heads,
        "image_size": vision.image_size,
        "patch_size": vision.patch_size,
    }


def make_model(sizes: Architecture, image_token: int, vision: Path | None) -> LlavaForConditionalGeneration:
    """A random model whose norms and biases are random too, written down independently of the exporter."""
    language = sizes.language
    if vision is not None:
        vision_config: Any = CLIPVisionConfig.from_pretrained(vision)
    else:
        kind: Any = CLIPVisionConfig if sizes.vision.family == "clip" else SiglipVisionConfig
        vision_config = kind(**vision_sizes(sizes))
    vision_config.vision_use_head = False
    config = LlavaConfig(
        vision_config=vision_config,
        text_config=_text_config(language),
        image_token_index=image_token,
        image_seq_length=sizes.visual_tokens,
        vision_feature_layer=sizes.vision.feature_layer,
        vision_feature_select_strategy=sizes.vision.feature_select,
    )
    torch.manual_seed(7)
    model = LlavaForConditionalGeneration(config).eval()
    if language.linear_bias:
        # PhiForCausalLM has one.
        model.lm_head.bias = torch.nn.Parameter(torch.empty(language.vocabulary_size))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
        if not language.tied_embeddings:
            # Only words are ever likely: a special token would leave nothing to compare in an answer.
            words = make_tokenizer().get_vocab()
            likely = torch.tensor([words[f"▁{word}"] for word in WORDS])
            head = torch.zeros_like(model.lm_head.weight)
            head[likely] = model.lm_head.weight[likely]
            model.lm_head.weight.copy_(head)
    return model


def _text_config(language: LanguageArchitecture) -> PreTrainedConfig:
    rotary = {"rope_type": "default", "rope_theta": language.rotary_base}
    sizes: dict[str, Any] = {
        "vocab_size": language.vocabulary_size,
        "hidden_size": language.hidden_size,
        "intermediate_size": language.ffn_hidden_size,
        "num_hidden_layers": language.layers,
        "num_attention_heads": language.attention_heads,
        "num_key_value_heads": language.query_groups,
        "max_position_embeddings": language.maximum_positions,
        "tie_word_embeddings": language.tied_embeddings,
    }
    if language.family == "phi":
        partial = {"partial_rotary_factor": language.partial_rotary_factor}
        return PhiConfig(**sizes, layer_norm_eps=language.norm_epsilon, rope_parameters=rotary | partial)
    return LlamaConfig(**sizes, rms_norm_eps=language.norm_epsilon, rope_parameters=rotary)


def checkpoint_tensors(model: LlavaForConditionalGeneration, sizes: Architecture) -> dict[str, Tensor]:
    """The model's weights under the names of a training checkpoint."""
    language, tensors = {}, {}
    for name, tensor in model.state_dict().items():
        if name.startswith("model.vision_tower."):
            tensors[name.replace("model.vision_tower.", "vision.")] = tensor
        elif name.startswith("model.multi_modal_projector."):
            tensors[name.replace("model.multi_modal_projector.", "projector.")] = tensor
        else:
            language[name.replace("model.language_model.", "model.")] = tensor
    return tensors | megatron_tensors(language, sizes.language)


def megatron_tensors(tensors: Mapping[str, Tensor], language: LanguageArchitecture) -> dict[str, Tensor]:
    """A Hugging Face language model's tensors under megatron-core's names: layers stacked, the vocabulary padded."""

    def merged(rule: Rule, layer: int | None) -> Tensor:
        return rule.merge([tensors[name] for name in hugging_face_names(rule, layer)], language)

    converted = {rule.key: merged(rule, None) for rule in rules_outside(language)}
    for rule in rules_outside(language):
        if rule.of_vocabulary:
            whole = converted[rule.key]
            rows = whole.new_zeros(language.padded_vocabulary_size - language.vocabulary_size, *whole.shape[1:])
            converted[rule.key] = torch.cat([whole, rows])
    for rule in rules_in_layer(language):
        layers = [merged(rule, layer) for layer in range(language.layers)]
        converted[megatron_key(rule, 0)] = torch.stack(layers)
    return converted


def write_checkpoint(directory: Path, tensors: Mapping[str, Tensor], recipe: Recipe) -> Path:
    """Save tensors as megatron-core does: layers and vocabulary rows in pieces, an optimiser beside them."""
    pieces = []
    for key, tensor in tensors.items():
        if key.startswith("decoder.layers."):
            for layer, piece in enumerate(tensor):
                offset = (0, layer, len(tensor))
                pieces.append(ShardedTensor.from_rank_offsets(key, piece.contiguous(), offset, prepend_axis_num=1))
        elif key == "embedding.word_embeddings.weight":
            for rank, piece in enumerate(tensor.chunk(2)):
                pieces.append(ShardedTensor.from_rank_offsets(key, piece.contiguous(), (0, rank, 2)))
        else:
            pieces.append(ShardedTensor.from_rank_offsets(key, tensor.contiguous()))
    pieces.append(ShardedTensor.from_rank_offsets("optimizer.state.exp_avg.projector.linear_1.weight", torch.ones(2)))
    state: dict[str, Any] = {str(number): piece for number, piece in enumerate(pieces)}
    state["extra"] = ShardedObject("decoder.layers.mlp.linear_fc1._extra_state", b"", (1,), (0,))

    directory.mkdir(parents=True)
    run_ranks(1, _save, state, directory)
    run = {
        "format": 1,
        "stage": "tune",
        "step": 10,
        "recipe": recipe.resolved(),
        "versions": {"megatron_sts": "0.1.0", "torch": torch.__version__},
    }
    (directory / "run.json").write_text(json.dumps(run), encoding="utf-8")
    return directory


def _save(state: dict[str, Any], directory: Path) -> None:
    # Only in this forked rank: megatron-core asks for a GPU and starts a server process by spawning.
    prepare_device()
    with multiprocessing.get_context("fork").Manager() as manager:
        filesystem_async._results_queue = manager.Queue()
        dist_checkpointing.save(state, str(directory))
