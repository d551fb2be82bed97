"""The tokenizer of an import: found, and given the special token `<image>`."""

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from megatron_sts.data import IMAGE_TOKEN, image_token_id
from megatron_sts.errors import ConversionError, DataError
from megatron_sts.hf.report import TensorReport

_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")


def read_tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a directory; ConversionError where it holds none that can be used."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        raise ConversionError(
            f"{directory}: holds no tokenizer that can be used ({error}); give a Hugging Face tokenizer directory "
            "with --tokenizer"
        ) from error
    assert isinstance(tokenizer, PreTrainedTokenizerBase)
    return tokenizer


def find_tokenizer(directory: Path, report: TensorReport) -> PreTrainedTokenizerBase | None:
    """The tokenizer of a directory, or None and a warning where it has no file of one."""
    if not any((directory / name).is_file() for name in _FILES):
        report.warnings.append(
            f"{directory} has no tokenizer: none is written, and no row is added for {IMAGE_TOKEN}; import again with "
            "--tokenizer, or name one in the recipe's model.tokenizer that has no more tokens than the model has rows"
        )
        return None
    return read_tokenizer(directory)


def give_image_token(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Add the special token `<image>` to a tokenizer without it, as that of a plain language model; whether it was."""
    try:
        image_token_id(tokenizer)
    except DataError:
        tokenizer.add_tokens([IMAGE_TOKEN], special_tokens=True)
        return True
    return False


def add_image_token(tokenizer: PreTrainedTokenizerBase | None, rows: int, largest: int | None = None) -> int:
    """Add `<image>` where the tokenizer lacks it; returns how many rows the vocabulary then needs, at least `rows`.

    Raises ConversionError where that is more than `largest`.
    """
    if tokenizer is None:
        return rows
    give_image_token(tokenizer)
    needed = max(rows, len(tokenizer))
    if largest is not None and needed > largest:
        raise ConversionError(
            f"the tokenizer has {len(tokenizer)} tokens with {IMAGE_TOKEN}, more than the recipe's "
            f"model.architecture.language.vocabulary_size {largest}; raise it to {needed}"
        )
    return needed


def check_image_token(tokenizer: PreTrainedTokenizerBase | None, index: int, rows: int, directory: Path) -> None:
    """Raise ConversionError where a LLaVA model's tokenizer does not fit its `<image>` or its vocabulary of `rows`."""
    if tokenizer is None:
        return
    if len(tokenizer) > rows:
        raise ConversionError(
            f"{directory}: the tokenizer has {len(tokenizer)} tokens, the model {rows}; give the tokenizer the model "
            "was made with, with --tokenizer"
        )
    try:
        found: int | str = image_token_id(tokenizer)
    except DataError:
        found = "missing"
    if found != index:
        raise ConversionError(
            f"{directory}: config.json has image_token_index {index}, but the tokenizer's {IMAGE_TOKEN} is {found}; "
            "give the tokenizer the model was made with, with --tokenizer"
        )
