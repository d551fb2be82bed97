"""The exported model's processor: tokenizer, image processor and the chat template of its training."""

from collections.abc import Sequence
from pathlib import Path

from transformers import LlavaProcessor, PreTrainedTokenizerBase

from megatron_sts.config import Architecture, StageConfig
from megatron_sts.data import (
    IMAGE_TOKEN,
    TEMPLATES,
    Template,
    find_template,
    image_token_id,
    load_image_processor,
    pad_token_id,
)
from megatron_sts.errors import ConversionError
from megatron_sts.hf.tokenizer import read_tokenizer

# LLaVA-1.5's, for a model that has not been trained here and whose tokenizer brings no template.
_TEMPLATE_OF_AN_IMPORT = "vicuna_v1"


def load_tokenizer(directory: Path, vocabulary_size: int) -> PreTrainedTokenizerBase:
    """The tokenizer of a directory, padding on the left as generation wants it.

    Raises:
        ConversionError: the directory holds no tokenizer, or one with more tokens than the model has rows.
        DataError: the tokenizer has no special token `<image>`.
    """
    tokenizer = read_tokenizer(directory)
    image_token_id(tokenizer)
    if len(tokenizer) > vocabulary_size:
        raise ConversionError(
            f"{directory}: the tokenizer has {len(tokenizer)} tokens, more than the architecture's "
            f"language.vocabulary_size {vocabulary_size}; give the tokenizer the model was trained with"
        )
    tokenizer.padding_side = "left"
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad_token_id(tokenizer))
    return tokenizer


def build_processor(
    tokenizer: PreTrainedTokenizerBase,
    architecture: Architecture,
    vision: Path | None,
    stages: Sequence[StageConfig],
) -> LlavaProcessor:
    """The processor of a model. Its chat template and its padding of pictures are those of the last stage; without any,
    the tokenizer's own, and none.

    Args:
        vision: directory with the preprocessor_config.json; None: the vision encoder's family decides.
    """
    sizes = architecture.vision
    aspect_ratio = stages[-1].data.image_aspect_ratio if stages else "square"
    return LlavaProcessor(
        image_processor=load_image_processor(vision, sizes.family, sizes.image_size, aspect_ratio),
        tokenizer=tokenizer,
        patch_size=sizes.patch_size,
        # CLIP puts a class token before the patches, which the strategy "default" drops again.
        num_additional_image_tokens=int(sizes.has_class_token),
        vision_feature_select_strategy=sizes.feature_select,
        image_token=IMAGE_TOKEN,
        chat_template=_chat_template(tokenizer, stages),
    )


def trained_template(tokenizer: PreTrainedTokenizerBase, stages: Sequence[StageConfig]) -> Template | None:
    """The template of the last stage; None without any.

    Raises DataError where it is the tokenizer's own, and this tokenizer has none.
    """
    return find_template(stages[-1].data.template, tokenizer) if stages else None


def _chat_template(tokenizer: PreTrainedTokenizerBase, stages: Sequence[StageConfig]) -> str:
    template = trained_template(tokenizer, stages)
    if template is not None:
        return template.chat_template(stages[-1].data.system_prompt)
    if isinstance(tokenizer.chat_template, str):
        return tokenizer.chat_template
    return TEMPLATES[_TEMPLATE_OF_AN_IMPORT].chat_template(None)


def save_processor(processor: LlavaProcessor, directory: Path) -> None:
    """Write the processor, its tokenizer and its image processor.

    The image processor is also written to a file of its own, where transformers before 5 looks for it.
    """
    processor.save_pretrained(directory)
    processor.image_processor.save_pretrained(directory)
