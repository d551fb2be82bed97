"""The Llama language model: megatron-core's tensors on one side, Hugging Face's names on the other, bitwise.

Both sides name full tensors, free of any parallel layout. megatron-core stacks the layers on a first
dimension, joins query, key and value, and joins the gate and the up projection. Shapes: L layers, h hidden,
f inner width of the MLP, a query heads, g query groups (key and value heads), d head size.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from megatron_sts.config import LanguageArchitecture
from megatron_sts.errors import ConversionError

LAYERS = "decoder.layers."
EMBEDDING = "embedding.word_embeddings.weight"
FINAL_NORM = "decoder.final_layernorm.weight"
OUTPUT = "output_layer.weight"
QKV = "self_attention.linear_qkv.weight"
GATE_UP = "mlp.linear_fc1.weight"

# Inside a layer: megatron-core's name -> Hugging Face's, for the tensors that are the same on both sides.
SAME_IN_LAYER = {
    "self_attention.linear_qkv.layer_norm_weight": "input_layernorm.weight",
    "self_attention.linear_proj.weight": "self_attn.o_proj.weight",
    "mlp.linear_fc1.layer_norm_weight": "post_attention_layernorm.weight",
    "mlp.linear_fc2.weight": "mlp.down_proj.weight",
}
SPLIT_QKV = ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight")
SPLIT_GATE_UP = ("mlp.gate_proj.weight", "mlp.up_proj.weight")
OUTSIDE_LAYERS = {
    EMBEDDING: "model.embed_tokens.weight",
    FINAL_NORM: "model.norm.weight",
    OUTPUT: "lm_head.weight",
}
VOCABULARY_ROWS = (EMBEDDING, OUTPUT)


def language_shapes(language: LanguageArchitecture) -> dict[str, tuple[int, ...]]:
    """megatron-core's tensors of this language model, with their full shapes."""
    layers, hidden, ffn = language.layers, language.hidden_size, language.ffn_hidden_size
    heads, groups = language.attention_heads, language.query_groups
    head = hidden // heads
    in_layer: dict[str, tuple[int, ...]] = {
        "self_attention.linear_qkv.layer_norm_weight": (hidden,),
        QKV: ((heads + 2 * groups) * head, hidden),
        "self_attention.linear_proj.weight": (hidden, heads * head),
        "mlp.linear_fc1.layer_norm_weight": (hidden,),
        GATE_UP: (2 * ffn, hidden),
        "mlp.linear_fc2.weight": (hidden, ffn),
    }
    shapes: dict[str, tuple[int, ...]] = {
        EMBEDDING: (language.padded_vocabulary_size, hidden),
        FINAL_NORM: (hidden,),
    }
    shapes |= {LAYERS + name: (layers, *shape) for name, shape in in_layer.items()}
    if not language.tied_embeddings:
        shapes[OUTPUT] = (language.padded_vocabulary_size, hidden)
    return shapes


def split_qkv(weight: Tensor, heads: int, groups: int) -> tuple[Tensor, Tensor, Tensor]:
    """[(a + 2g) d, h] -> [a d, h], [g d, h], [g d, h]; each group is its a/g query heads, key and value."""
    per_group = heads // groups + 2
    head = weight.size(0) // (heads + 2 * groups)
    grouped = weight.view(groups, per_group, head, weight.size(1))
    query, key, value = grouped.split([per_group - 2, 1, 1], dim=1)
    hidden = weight.size(1)
    return query.reshape(-1, hidden), key.reshape(-1, hidden), value.reshape(-1, hidden)


def merge_qkv(query: Tensor, key: Tensor, value: Tensor, heads: int, groups: int) -> Tensor:
    """The inverse of `split_qkv`."""
    head, hidden = query.size(0) // heads, query.size(1)
    parts = [part.view(groups, -1, head, hidden) for part in (query, key, value)]
    return torch.cat(parts, dim=1).reshape(-1, hidden)


def split_gate_up(weight: Tensor) -> tuple[Tensor, Tensor]:
    """[2f, h], the gate first -> [f, h], [f, h]."""
    gate, up = weight.chunk(2, dim=0)
    return gate, up


def merge_gate_up(gate: Tensor, up: Tensor) -> Tensor:
    """The inverse of `split_gate_up`."""
    return torch.cat([gate, up], dim=0)


def layer_to_hf(tensors: Mapping[str, Tensor], layer: int, language: LanguageArchitecture) -> dict[str, Tensor]:
    """One layer's tensors, named without `decoder.layers.` and not stacked, under Hugging Face's names."""
    split = {name: tensors[key] for key, name in SAME_IN_LAYER.items()}
    query_key_value = split_qkv(tensors[QKV], language.attention_heads, language.query_groups)
    split |= dict(zip(SPLIT_QKV, query_key_value, strict=True))
    split |= dict(zip(SPLIT_GATE_UP, split_gate_up(tensors[GATE_UP]), strict=True))
    return {f"model.layers.{layer}.{name}": tensor for name, tensor in split.items()}


def outside_layer_to_hf(key: str, tensor: Tensor, language: LanguageArchitecture) -> tuple[str, Tensor]:
    """The Hugging Face name and tensor of one that is in no layer; the vocabulary's padding is cut off."""
    if key in VOCABULARY_ROWS:
        tensor = tensor[: language.vocabulary_size]
    return OUTSIDE_LAYERS[key], tensor


def language_to_hf(tensors: Mapping[str, Tensor], language: LanguageArchitecture) -> dict[str, Tensor]:
    """megatron-core's full tensors under the names of Hugging Face's LlamaForCausalLM.

    Tied embeddings yield no `lm_head.weight`.
    Raises ConversionError for missing, unexpected or misshapen tensors.
    """
    check_tensors({key: tuple(tensor.shape) for key, tensor in tensors.items()}, language_shapes(language), "language")
    converted = dict(outside_layer_to_hf(key, tensors[key], language) for key in OUTSIDE_LAYERS if key in tensors)
    names = (*SAME_IN_LAYER, QKV, GATE_UP)
    for layer in range(language.layers):
        converted |= layer_to_hf({name: tensors[LAYERS + name][layer] for name in names}, layer, language)
    return converted


def language_from_hf(tensors: Mapping[str, Tensor], language: LanguageArchitecture) -> dict[str, Tensor]:
    """The inverse of `language_to_hf`; the vocabulary is padded with rows of zeros.

    A `lm_head.weight` beside tied embeddings is the embedding once more, and is dropped.
    Raises ConversionError for missing, unexpected or misshapen tensors.
    """
    given = dict(tensors)
    if language.tied_embeddings:
        given.pop("lm_head.weight", None)
    check_tensors({key: tuple(tensor.shape) for key, tensor in given.items()}, _hf_shapes(language), "language")
    padding = language.padded_vocabulary_size - language.vocabulary_size
    converted = {}
    for key, name in OUTSIDE_LAYERS.items():
        if name in given:
            rows = padding if key in VOCABULARY_ROWS else 0
            converted[key] = torch.cat([given[name], given[name].new_zeros(rows, *given[name].shape[1:])])
    layers = [_layer_from_hf(given, layer, language) for layer in range(language.layers)]
    converted |= {LAYERS + name: torch.stack([layer[name] for layer in layers]) for name in layers[0]}
    return converted


def check_tensors(found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]], what: str) -> None:
    """Raise one ConversionError that names every missing, unexpected and misshapen tensor (ten of a kind)."""
    problems = []
    missing = sorted(expected.keys() - found.keys())
    unexpected = sorted(found.keys() - expected.keys())
    shapes = [
        f"{key} has shape {list(found[key])} instead of {list(shape)}"
        for key, shape in expected.items()
        if key in found and tuple(found[key]) != tuple(shape)
    ]
    for kind, keys in (("missing", missing), ("unexpected", unexpected), ("wrong shape", shapes)):
        if keys:
            more = f" and {len(keys) - 10} more" if len(keys) > 10 else ""
            problems.append(f"  {kind}: {', '.join(keys[:10])}{more}")
    if problems:
        raise ConversionError(
            f"the {what} tensors are not those of the architecture; use the one they were made with:\n"
            + "\n".join(problems)
        )


def _layer_from_hf(tensors: Mapping[str, Tensor], layer: int, language: LanguageArchitecture) -> dict[str, Tensor]:
    def part(name: str) -> Tensor:
        return tensors[f"model.layers.{layer}.{name}"]

    converted = {key: part(name) for key, name in SAME_IN_LAYER.items()}
    query, key, value = map(part, SPLIT_QKV)
    converted[QKV] = merge_qkv(query, key, value, language.attention_heads, language.query_groups)
    converted[GATE_UP] = merge_gate_up(*map(part, SPLIT_GATE_UP))
    return converted


def _hf_shapes(language: LanguageArchitecture) -> dict[str, tuple[int, ...]]:
    """Shapes on the Hugging Face side, found by converting tensors without storage."""
    empty = {key: torch.empty(shape, device="meta") for key, shape in language_shapes(language).items()}
    return {name: tuple(tensor.shape) for name, tensor in language_to_hf(empty, language).items()}
