"""How a conversation is written for a language model, and which of it the model learns to write."""

from transformers import PreTrainedTokenizerBase

from megatron_sts.data.templates.headed import CHATML, LLAMA3
from megatron_sts.data.templates.own import TokenizerTemplate
from megatron_sts.data.templates.plain import PlainTemplate
from megatron_sts.data.templates.template import Segment, Template
from megatron_sts.data.templates.vicuna import MIPHA_GEMMA, MIPHA_PHI, VICUNA

TEMPLATES: dict[str, Template] = {
    template.name: template for template in (PlainTemplate(), VICUNA, CHATML, LLAMA3, MIPHA_PHI, MIPHA_GEMMA)
}
"""The templates that need no tokenizer."""


def find_template(name: str, tokenizer: PreTrainedTokenizerBase) -> Template:
    """The template of that name; `tokenizer` is the tokenizer's own chat template.

    Raises DataError where the tokenizer has none, or one that cannot be trained with.
    """
    return TokenizerTemplate(tokenizer) if name == TokenizerTemplate.name else TEMPLATES[name]


__all__ = ["TEMPLATES", "Segment", "Template", "find_template"]
