"""The tokenizer of a recipe."""

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from megatron_sts.config import Recipe
from megatron_sts.errors import ConfigError


def load_tokenizer(recipe: Recipe) -> PreTrainedTokenizerBase:
    """The tokenizer of `model.tokenizer`. Raises ConfigError where it is missing or larger than the embedding."""
    directory = recipe.model.tokenizer
    if directory is None:
        raise ConfigError("model.tokenizer is not set; name a Hugging Face tokenizer directory to train with")
    try:
        tokenizer = AutoTokenizer.from_pretrained(Path(directory), local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        raise ConfigError(
            f"model.tokenizer {directory} holds no tokenizer that can be used ({error}); name a Hugging Face tokenizer "
            "directory"
        ) from error
    size = recipe.architecture.language.vocabulary_size
    if len(tokenizer) > size:
        raise ConfigError(
            f"model.tokenizer {directory} has {len(tokenizer)} tokens, but the architecture's vocabulary_size is "
            f"{size}; raise it to hold them"
        )
    return tokenizer
