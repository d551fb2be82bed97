"""What a mapping table is made of: one rule for each tensor of megatron-core's, read in both directions.

Both sides name full tensors, free of any parallel layout. megatron-core stacks the layers on a first dimension; a rule
is about one layer.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from transformers import PreTrainedConfig

from megatron_sts.config import LanguageArchitecture
from megatron_sts.hf.families.fused import alone, same

Shape = Callable[[LanguageArchitecture], tuple[int, ...]]

LAYERS = "decoder.layers."


@dataclass(frozen=True, slots=True)
class Rule:
    """One tensor of megatron-core's and those of Hugging Face's it is made of.

    key: megatron-core's name; of a layer's tensor what follows `decoder.layers.`.
    names: Hugging Face's; of a layer's tensors what follows `model.layers.N.`.
    shape: of megatron-core's tensor, of one layer where it is a layer's.
    merge, split: from Hugging Face's tensors to megatron-core's, and back.
    of_vocabulary: the first dimension is that of the tokens, which megatron-core's tensor pads.
    """

    key: str
    names: tuple[str, ...]
    shape: Shape
    merge: Callable[[Sequence[Tensor], LanguageArchitecture], Tensor] = same
    split: Callable[[Tensor, LanguageArchitecture], tuple[Tensor, ...]] = alone
    of_vocabulary: bool = False


def hidden(language: LanguageArchitecture) -> tuple[int, ...]:
    """[h], a norm's weight."""
    return (language.hidden_size,)


def vocabulary(language: LanguageArchitecture) -> tuple[int, ...]:
    """[V, h], without the rows that pad it."""
    return language.vocabulary_size, language.hidden_size


EMBEDDING = Rule("embedding.word_embeddings.weight", ("model.embed_tokens.weight",), vocabulary, of_vocabulary=True)
FINAL_NORM = Rule("decoder.final_layernorm.weight", ("model.norm.weight",), hidden)
OUTPUT_BIAS = Rule(
    "output_layer.bias", ("lm_head.bias",), lambda language: vocabulary(language)[:1], of_vocabulary=True
)
OUTPUT = Rule("output_layer.weight", ("lm_head.weight",), vocabulary, of_vocabulary=True)


@dataclass(frozen=True, slots=True)
class LanguageFamily:
    """A family of language models: its configuration class and its mapping table.

    in_layer: rules of one layer. fixed: settings of Hugging Face's configuration whose other values this project cannot
    train, with the value it can. outside: rules of what is in no layer; tied embeddings leave out OUTPUT. norm_epsilon:
    what Hugging Face's configuration calls the epsilon of the norms.
    """

    config: Callable[..., PreTrainedConfig]
    in_layer: tuple[Rule, ...]
    fixed: Mapping[str, Any] = field(default_factory=dict)
    outside: tuple[Rule, ...] = (EMBEDDING, FINAL_NORM, OUTPUT)
    norm_epsilon: str = "rms_norm_eps"
