"""From a checkpoint to an ordinary Hugging Face LLaVA model, in one process, a tensor at a time.

    run.json ----> config.json, generation_config.json, processor, chat template, README.md
    tensors  ----> model*.safetensors      (checked by name and shape before any is read)

The model is written beside its place and moved there when it is whole.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

import torch
from torch import Tensor
from transformers import GenerationConfig, LlavaConfig, PreTrainedConfig, PreTrainedTokenizerBase

from megatron_sts.config import Architecture, LanguageArchitecture, read_run
from megatron_sts.data import Template
from megatron_sts.errors import ConversionError
from megatron_sts.hf.card import model_card
from megatron_sts.hf.checkpoint_writer import Advance
from megatron_sts.hf.config import llava_config
from megatron_sts.hf.families import LAYERS, OUTPUT, OUTPUT_BIAS, Rule
from megatron_sts.hf.head_bias import folded_head
from megatron_sts.hf.language import (
    check_tensors,
    hugging_face_names,
    located_rules,
    megatron_key,
    megatron_shapes,
)
from megatron_sts.hf.names import (
    FILE_PREFIX,
    PROJECTOR,
    VISION,
    checkpoint_vision_name,
    is_harmless,
    is_pooling_head,
    projector_shapes,
    runs,
    vision_file_name,
    vision_shapes,
)
from megatron_sts.hf.output import check_output, written_beside
from megatron_sts.hf.processor import build_processor, load_tokenizer, save_processor, trained_template
from megatron_sts.hf.report import REPORT_FILE, Kind, TensorReport, TensorRow
from megatron_sts.hf.shards import ShardWriter, shard_bytes
from megatron_sts.hf.training_checkpoint import TensorReader


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
    details: TensorReport
    """What became of every tensor; also in the output's tensors.json."""


def export_checkpoint(
    checkpoint: Path,
    output: Path,
    vision: Path | None = None,
    tokenizer: Path | None = None,
    dtype: torch.dtype | None = None,
    largest_shard_bytes: int | None = None,
    start: Callable[[int], Advance] = lambda total: lambda done: None,
) -> ExportReport:
    """Write `checkpoint` as a model that `AutoModelForImageTextToText` and `AutoProcessor` load.

    Args:
        checkpoint: directory with run.json and a torch_dist checkpoint.
        output: directory to make.
        vision: vision encoder directory, for its configuration and image processing; None: the recipe's, and
            where the recipe has none, the family's defaults.
        tokenizer: tokenizer directory; None: the recipe's.
        dtype: of the exported weights; None: each as the checkpoint has it.
        largest_shard_bytes: weights above this are split over several files; None: a share of the model.
        start: called with the bytes to write before writing begins; returns what is called with the bytes written.

    Raises:
        ConversionError: `output` exists or its disk is full, or the checkpoint, the tokenizer or the vision encoder do
            not fit.
        CheckpointError: the checkpoint is missing, damaged or incomplete.
    """
    run = read_run(checkpoint)
    architecture = run.recipe.architecture
    vision = _directory(vision, run.recipe.model.vision, "vision")
    tokenizer = _directory(tokenizer, run.recipe.model.tokenizer, "tokenizer")
    if tokenizer is None:
        raise ConversionError(f"{checkpoint}: the recipe has no model.tokenizer; give one with --tokenizer")

    loaded_tokenizer = load_tokenizer(tokenizer, architecture.language.vocabulary_size)
    processor = build_processor(loaded_tokenizer, architecture, vision, run.recipe.stages)
    reader = TensorReader(checkpoint)
    stored = dtype or _language_dtype(reader, checkpoint)
    config = llava_config(architecture, vision, loaded_tokenizer, stored)
    unused = tuple(sorted(filter(_is_unused, reader.shapes)))
    _check_checkpoint(reader, config, architecture, checkpoint)
    total = sum(prod(shape) * (dtype or reader.dtype(key)).itemsize for key, shape in reader.shapes.items())
    check_output(output, total)

    details = TensorReport(left_out=dict.fromkeys(unused, "which no LLaVA model has"))
    with written_beside(output) as directory:
        config.save_pretrained(directory)
        generation_config(loaded_tokenizer, trained_template(loaded_tokenizer, run.recipe.stages)).save_pretrained(
            directory
        )
        save_processor(processor, directory)
        writer = ShardWriter(directory, largest_shard_bytes or shard_bytes(total))
        advance = start(total)
        for row, tensor in _tensors(reader, architecture):
            details.rows.append(row)
            advance(writer.add(row.tensor, tensor, dtype or tensor.dtype))
        files = writer.finish()
        dtype_name = str(stored).removeprefix("torch.")
        (directory / "README.md").write_text(model_card(output.name, run, dtype_name), encoding="utf-8")
        details.write(directory / REPORT_FILE)
    return ExportReport(
        output=output,
        stage=run.stage,
        step=run.step,
        dtype=dtype_name,
        tensors=len(writer.names),
        parameters=writer.total_parameters,
        weight_bytes=writer.total_bytes,
        weight_files=tuple(files),
        dropped=unused,
        details=details,
    )


def generation_config(tokenizer: PreTrainedTokenizerBase, template: Template | None) -> GenerationConfig:
    """Generation ends at the tokenizer's end of a sequence, and at the token that the template ends an answer with."""
    ends = [tokenizer.eos_token_id]
    if template is not None and template.stop is not None:
        ends.append(tokenizer.convert_tokens_to_ids(template.stop))
    ends = [end for end in dict.fromkeys(ends) if end is not None]
    return GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=ends if len(ends) > 1 else tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def _directory(given: Path | None, recipe: Path | None, field: str) -> Path | None:
    """The directory asked for, else the recipe's; ConversionError where it is not there."""
    directory = given or recipe
    if directory is not None and not directory.is_dir():
        origin = f"--{field}" if given else f"the recipe's model.{field}"
        raise ConversionError(f"{origin} is {directory}, but there is no such directory; give one with --{field}")
    return directory


def _language_dtype(reader: TensorReader, checkpoint: Path) -> torch.dtype:
    """The dtype that config.json names: that of the language model's weights."""
    for key in reader.shapes:
        if key.startswith(LAYERS):
            return reader.dtype(key)
    raise ConversionError(f"{checkpoint}: holds no {LAYERS}*, so no language model; use another checkpoint")


def _is_unused(key: str) -> bool:
    name = checkpoint_vision_name(key)
    return key.startswith(VISION) and (is_pooling_head(name) or is_harmless(name))


def _check_checkpoint(reader: TensorReader, config: LlavaConfig, architecture: Architecture, checkpoint: Path) -> None:
    """Raise ConversionError unless the checkpoint has exactly the tensors of the model."""
    expected = megatron_shapes(architecture.language)
    expected |= projector_shapes(architecture.vision.hidden_size, architecture.language.hidden_size)
    assert isinstance(config.vision_config, PreTrainedConfig)
    # A checkpoint may be of a release of transformers that calls the vision encoder's tensors otherwise.
    expected |= {_own(key): shape for key, shape in vision_shapes(config.vision_config).items()}
    found = {_own(key): shape for key, shape in reader.shapes.items() if not _is_unused(key)}
    check_tensors(found, expected, str(checkpoint))


def _own(key: str) -> str:
    return VISION + checkpoint_vision_name(key) if key.startswith(VISION) else key


def _tensors(reader: TensorReader, architecture: Architecture) -> Iterator[tuple[TensorRow, Tensor]]:
    """Every tensor of the model with its row of the report, read one tensor or one layer's at a time."""
    for key in reader.shapes:
        if key.startswith(VISION) and not _is_unused(key):
            name = checkpoint_vision_name(key)
            kind: Kind = "mapped" if runs(name, architecture.vision.used_layers) else "carried"
            yield _row(vision_file_name(name, architecture.vision), key, reader.read(key), kind)
        elif key.startswith(PROJECTOR):
            yield _row(FILE_PREFIX["projector"] + key.removeprefix(PROJECTOR), key, reader.read(key))
    for rule, layer in located_rules(architecture.language):
        if rule == OUTPUT_BIAS:
            continue
        key = megatron_key(rule, layer)
        parts = rule.split(_read(reader, rule, layer, architecture.language), architecture.language)
        for name, part in zip(hugging_face_names(rule, layer), parts, strict=True):
            row, tensor = _row(FILE_PREFIX["language"] + name, key if layer is None else f"{key}[{layer}]", part)
            if rule == OUTPUT and architecture.language.linear_bias:
                row = replace(row, sources=(*row.sources, OUTPUT_BIAS.key))
            yield row, tensor


def _read(reader: TensorReader, rule: Rule, layer: int | None, language: LanguageArchitecture) -> Tensor:
    """megatron-core's tensor of a rule; the vocabulary without its padding, the head's weight with its bias in it."""
    key = megatron_key(rule, layer)
    if layer is not None:
        return reader.read_layer(key, layer)
    tensor = reader.read(key, slice(language.vocabulary_size) if rule.of_vocabulary else slice(None))
    if rule == OUTPUT and language.linear_bias:
        bias = reader.read(OUTPUT_BIAS.key, slice(language.vocabulary_size))
        return folded_head(
            tensor, bias, *(reader.read(f"decoder.final_layernorm.{part}") for part in ("weight", "bias"))
        )
    return tensor


def _row(name: str, key: str, tensor: Tensor, kind: Kind = "mapped") -> tuple[TensorRow, Tensor]:
    dtype = str(tensor.dtype).removeprefix("torch.")
    return TensorRow(name, kind, (key,), tuple(tensor.shape), dtype), tensor
