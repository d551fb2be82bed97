"""The language model's tensors under both sets of names, from its family's mapping table.

megatron-core's keys are those of a checkpoint: the layers of a tensor stacked on a first dimension, the vocabulary
padded. Hugging Face's names are those of the family's ForCausalLM class.
"""

from collections.abc import Iterator, Mapping

import torch

from megatron_sts.config import LanguageArchitecture
from megatron_sts.errors import ConversionError
from megatron_sts.hf.families import LANGUAGES, LAYERS, OUTPUT, Rule


def rules_outside(language: LanguageArchitecture) -> tuple[Rule, ...]:
    """The rules of the tensors that are in no layer; tied embeddings have no output layer."""
    outside = LANGUAGES[language.family].outside
    return tuple(rule for rule in outside if rule != OUTPUT) if language.tied_embeddings else outside


def rules_in_layer(language: LanguageArchitecture) -> tuple[Rule, ...]:
    """The rules of one layer's tensors."""
    return LANGUAGES[language.family].in_layer


def located_rules(language: LanguageArchitecture) -> Iterator[tuple[Rule, int | None]]:
    """Every rule with the layer it is applied to; None outside the layers."""
    yield from ((rule, None) for rule in rules_outside(language))
    yield from ((rule, layer) for layer in range(language.layers) for rule in rules_in_layer(language))


def megatron_key(rule: Rule, layer: int | None) -> str:
    """The name in a checkpoint, without the layer, which is an index of the tensor's first dimension."""
    return rule.key if layer is None else LAYERS + rule.key


def hugging_face_names(rule: Rule, layer: int | None) -> tuple[str, ...]:
    """The names in a Hugging Face model."""
    return rule.names if layer is None else tuple(f"model.layers.{layer}.{name}" for name in rule.names)


def megatron_shapes(language: LanguageArchitecture) -> dict[str, tuple[int, ...]]:
    """megatron-core's tensors of this language model, with their full shapes."""
    shapes: dict[str, tuple[int, ...]] = {}
    for rule in rules_outside(language):
        shape = rule.shape(language)
        shapes[rule.key] = (language.padded_vocabulary_size, *shape[1:]) if rule.of_vocabulary else shape
    return shapes | {LAYERS + rule.key: (language.layers, *rule.shape(language)) for rule in rules_in_layer(language)}


def hugging_face_shapes(language: LanguageArchitecture) -> dict[str, tuple[int, ...]]:
    """Hugging Face's tensors of this language model, found by taking apart tensors without storage."""
    shapes = {}
    for rule, layer in located_rules(language):
        parts = rule.split(torch.empty(rule.shape(language), device="meta"), language)
        for name, part in zip(hugging_face_names(rule, layer), parts, strict=True):
            shapes[name] = tuple(part.shape)
    return shapes


def check_tensors(found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]], where: str) -> None:
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
            f"{where}: the tensors are not those of the architecture; use the one they were made with:\n"
            + "\n".join(problems)
        )
