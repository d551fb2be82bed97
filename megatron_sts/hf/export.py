"""From a training checkpoint to an ordinary Hugging Face LLaVA model, in one process, a file at a time.

    run.json ----> config.json, generation_config.json, processor, chat template, README.md
    tensors  ----> model*.safetensors      (checked by name and shape before any is read)

The model is written beside its place and moved there when it is whole.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import GenerationConfig, LlavaConfig, PreTrainedTokenizerBase

from megatron_sts.config import LanguageArchitecture, read_run
from megatron_sts.errors import ConversionError
from megatron_sts.hf.card import model_card
from megatron_sts.hf.config import llava_config
from megatron_sts.hf.llama import (
    GATE_UP,
    LAYERS,
    OUTSIDE_LAYERS,
    QKV,
    SAME_IN_LAYER,
    layer_to_hf,
    outside_layer_to_hf,
)
from megatron_sts.hf.names import (
    PROJECTOR,
    VISION,
    check_checkpoint,
    file_name,
    is_unused,
    model_shapes,
    vision_name,
)
from megatron_sts.hf.processor import build_processor, load_tokenizer, save_processor
from megatron_sts.hf.shards import LARGEST_SHARD_BYTES, ShardWriter
from megatron_sts.hf.training_checkpoint import TensorReader

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_DTYPE_OF_PRECISION = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp8": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What was written, and from where."""

    output: Path
    stage: str
    step: int
    dtype: str
    tensors: int
    parameters: int
    weight_bytes: int
    weight_files: tuple[str, ...]
    dropped: tuple[str, ...]
    """Checkpoint tensors that no LLaVA model has, such as SigLIP's pooling head."""


def export_checkpoint(
    checkpoint: Path,
    output: Path,
    vision: Path | None = None,
    tokenizer: Path | None = None,
    dtype: torch.dtype | None = None,
    largest_shard_bytes: int = LARGEST_SHARD_BYTES,
) -> ExportReport:
    """Write `checkpoint` as a model that `AutoModelForImageTextToText` and `AutoProcessor` load.

    Args:
        checkpoint: directory with run.json and a torch_dist checkpoint.
        output: directory to make.
        vision: vision encoder directory, for its configuration and image processing; None: the recipe's, and
            where the recipe has none, the family's defaults.
        tokenizer: tokenizer directory; None: the recipe's.
        dtype: of the exported weights; None: that of the recipe's precision.
        largest_shard_bytes: weights above this are split over several files.

    Raises:
        ConversionError: `output` exists, or the checkpoint, the tokenizer or the vision encoder do not fit.
        CheckpointError: the checkpoint is missing, damaged or incomplete.
    """
    run = read_run(checkpoint)
    if output.exists():
        raise ConversionError(f"{output}: exists already; remove it or give another --output")
    architecture = run.recipe.architecture
    vision = _directory(vision, run.recipe.model.vision, "vision")
    tokenizer = _directory(tokenizer, run.recipe.model.tokenizer, "tokenizer")
    if tokenizer is None:
        raise ConversionError(f"{checkpoint}: the recipe has no model.tokenizer; give one with --tokenizer")
    dtype = dtype or _DTYPE_OF_PRECISION[run.recipe.precision]

    loaded_tokenizer = load_tokenizer(tokenizer, architecture.language.vocabulary_size)
    processor = build_processor(loaded_tokenizer, architecture, vision, run.recipe.stages[-1])
    config = llava_config(architecture, vision, loaded_tokenizer, dtype)
    reader = TensorReader(checkpoint)
    check_checkpoint(reader.shapes, config, architecture.language)

    with _written_beside(output) as directory:
        config.save_pretrained(directory)
        _generation_config(loaded_tokenizer).save_pretrained(directory)
        save_processor(processor, directory)
        writer = ShardWriter(directory, largest_shard_bytes)
        files = _write_weights(reader, writer, config, architecture.language, dtype)
        dtype_name = str(dtype).removeprefix("torch.")
        (directory / "README.md").write_text(model_card(output.name, run, dtype_name), encoding="utf-8")
    return ExportReport(
        output=output,
        stage=run.stage,
        step=run.step,
        dtype=dtype_name,
        tensors=len(writer.names),
        parameters=writer.total_parameters,
        weight_bytes=writer.total_bytes,
        weight_files=tuple(files),
        dropped=tuple(sorted(filter(is_unused, reader.shapes))),
    )


def _generation_config(tokenizer: PreTrainedTokenizerBase) -> GenerationConfig:
    return GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def _directory(given: Path | None, recipe: Path | None, field: str) -> Path | None:
    """The directory asked for, else the recipe's; ConversionError where it is not there."""
    directory = given or recipe
    if directory is not None and not directory.is_dir():
        origin = f"--{field}" if given else f"the recipe's model.{field}"
        raise ConversionError(f"{origin} is {directory}, but there is no such directory; give one with --{field}")
    return directory


def _write_weights(
    reader: TensorReader,
    writer: ShardWriter,
    config: LlavaConfig,
    language: LanguageArchitecture,
    dtype: torch.dtype,
) -> list[str]:
    for name, tensor in _tensors(reader, language):
        writer.add(name, tensor, dtype)
    expected = {file_name(name) for name in model_shapes(config)}
    assert writer.names == expected, f"the tables of names disagree: {writer.names ^ expected}"
    return writer.finish()


def _tensors(reader: TensorReader, language: LanguageArchitecture) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the model with its name in the file, read one tensor or one layer at a time."""
    for key in reader.shapes:
        if key.startswith(VISION) and not is_unused(key):
            yield file_name(f"model.vision_tower.{vision_name(key)}"), reader.read(key)
        elif key.startswith(PROJECTOR):
            yield file_name(f"model.multi_modal_projector.{key.removeprefix(PROJECTOR)}"), reader.read(key)
        elif key in OUTSIDE_LAYERS:
            name, tensor = outside_layer_to_hf(key, reader.read(key), language)
            yield f"language_model.{name}", tensor
    for layer in range(language.layers):
        stacked = {name: reader.read(LAYERS + name, layer) for name in (*SAME_IN_LAYER, QKV, GATE_UP)}
        for name, tensor in layer_to_hf(stacked, layer, language).items():
            yield f"language_model.{name}", tensor


@contextmanager
def _written_beside(output: Path) -> Iterator[Path]:
    """A new directory beside `output` that takes its place at the end, and is removed after an error."""
    output.parent.mkdir(parents=True, exist_ok=True)
    directory = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    try:
        yield directory
        # mkdtemp and safetensors make private ones; a model is readable like any other new file.
        mask = os.umask(0)
        os.umask(mask)
        directory.chmod(0o777 & ~mask)
        for file in directory.iterdir():
            file.chmod(0o666 & ~mask)
        try:
            directory.rename(output)
        except OSError as error:
            raise ConversionError(f"{output}: appeared during the export ({error}); give another --output") from error
    except BaseException:
        shutil.rmtree(directory, ignore_errors=True)
        raise
