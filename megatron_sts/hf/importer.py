"""From Hugging Face or Megatron weights to the checkpoint that a recipe's `model.init` names.

    --vision DIR --language DIR         a vision encoder and a language model; the projector is fresh
    --hf DIR                            a whole LlavaForConditionalGeneration model
    --vision DIR --megatron DIR         a vision encoder and a GPTModel's distributed checkpoint; the projector is fresh

Everything is checked by name, shape and dtype from the files' headers before the first tensor is read. The result also
holds what training needs beside the weights: architecture.yaml, vision/ (configuration and image processing) and
tokenizer/, which a recipe with that `model.init` takes by itself.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from megatron_sts.config import (
    Architecture,
    LanguageArchitecture,
    ModelConfig,
    Recipe,
    entries_of,
    files_of,
    write_architecture,
    write_manifest,
    write_run,
)
from megatron_sts.errors import ConversionError
from megatron_sts.hf.checkpoint_writer import Advance, Piece, write_checkpoint
from megatron_sts.hf.families import LAYERS
from megatron_sts.hf.head_bias import with_head_bias
from megatron_sts.hf.image_processor import copy_image_processor, processed_size
from megatron_sts.hf.language import check_tensors
from megatron_sts.hf.megatron_source import check_megatron_tensors, open_megatron
from megatron_sts.hf.names import PROJECTOR, checkpoint_vision_name, projector_shapes, vision_shapes
from megatron_sts.hf.output import check_output, written_beside
from megatron_sts.hf.parts import language_part, parts_of_llava, vision_part
from megatron_sts.hf.pieces import PieceMaker
from megatron_sts.hf.read_config import (
    check_architecture,
    language_architecture,
    read_language_config,
    read_llava_config,
    read_vision_config,
    vision_architecture,
)
from megatron_sts.hf.reconcile import reconcile
from megatron_sts.hf.report import REPORT_FILE, TensorReport
from megatron_sts.hf.source import TensorSource, open_source
from megatron_sts.hf.tokenizer import add_image_token, check_image_token, find_tokenizer

IMPORT_STAGE = "import"
Precision = Literal["fp32", "bf16"]
# Modules of a layer that keep an extra state, with Transformer Engine or without; there is nothing in it at the start.
_EXTRA_STATES = (
    "self_attention.linear_qkv",
    "self_attention.linear_proj",
    "self_attention.core_attention",
    "mlp.linear_fc1",
    "mlp.linear_fc2",
)


@dataclass(frozen=True, slots=True)
class ImportOptions:
    """What the user can choose.

    tokenizer: a directory; None: that of the language model. recipe: gives the seed of a fresh projector and what
    the sources do not say (feature layer, padding of the vocabulary); the sizes in both must agree. dtype: of the
    weights; None: as they are. allow_pickle: also take weights from pickle files.
    """

    tokenizer: Path | None = None
    recipe: Recipe | None = None
    dtype: torch.dtype | None = None
    allow_pickle: bool = False


@dataclass(slots=True)
class _Parts:
    """What a conversion is made of. projector None: a fresh one of `fresh_dtype`."""

    architecture: Architecture
    vision_config: PreTrainedConfig
    vision_directory: Path
    vision: TensorSource
    language_pieces: Callable[[PieceMaker], Iterator[Piece]]
    projector: TensorSource | None
    fresh_dtype: torch.dtype
    tokenizer: PreTrainedTokenizerBase | None
    report: TensorReport = field(default_factory=TensorReport)


def import_pair(
    vision: Path, language: Path, output: Path, options: ImportOptions, start: Callable[[int], Advance]
) -> TensorReport:
    """A checkpoint of a vision encoder and a language model, with a fresh projector.

    start: called with the bytes to write before writing begins; returns what is called with the bytes written since.
    Raises ConversionError, and leaves nothing, where a directory does not hold what it should or the disk is full.
    """
    report = TensorReport()
    encoder_config = read_vision_config(vision)
    config = read_language_config(language)
    tower = vision_architecture(encoder_config, vision / "config.json", processed_size=processed_size(vision))
    own = language_architecture(config, language / "config.json")
    check_architecture(Architecture(vision=tower, language=own), language / "config.json")
    source = language_part(open_source(language, options.allow_pickle), own, language, report)
    tokenizer = find_tokenizer(options.tokenizer or language, report)
    rows = add_image_token(tokenizer, own.vocabulary_size)
    parts = _Parts(
        architecture=reconcile(tower, own.model_copy(update={"vocabulary_size": rows}), options.recipe),
        vision_config=encoder_config,
        vision_directory=vision,
        vision=vision_part(open_source(vision, options.allow_pickle), report),
        language_pieces=lambda maker: maker.language_pieces(source),
        projector=None,
        fresh_dtype=source.dtype("model.embed_tokens.weight"),
        tokenizer=tokenizer,
        report=report,
    )
    return _write(parts, output, options, start)


def import_megatron(
    vision: Path, megatron: Path, output: Path, options: ImportOptions, start: Callable[[int], Advance]
) -> TensorReport:
    """A checkpoint of a vision encoder and the language model of a Megatron-LM or Megatron-Bridge checkpoint.

    The recipe's architecture says what the language model is; see `import_pair` for the rest.
    """
    report = TensorReport()
    if options.recipe is None:
        raise ConversionError(
            f"{megatron}: a Megatron checkpoint does not say what its model is; give a recipe whose "
            "model.architecture does, with --recipe (docs/hugging_face.md leads from Megatron-LM's arguments to it)"
        )
    encoder_config = read_vision_config(vision)
    tower = vision_architecture(encoder_config, vision / "config.json", processed_size=processed_size(vision))
    language = options.recipe.architecture.language
    source = open_megatron(megatron, report)
    check_megatron_tensors(source, language, megatron)
    tokenizer = find_tokenizer(options.tokenizer or options.recipe.model.tokenizer or megatron, report)
    add_image_token(tokenizer, language.vocabulary_size, largest=language.vocabulary_size)
    parts = _Parts(
        architecture=reconcile(tower, language, options.recipe),
        vision_config=encoder_config,
        vision_directory=vision,
        vision=vision_part(open_source(vision, options.allow_pickle), report),
        language_pieces=lambda maker: maker.megatron_pieces(source),
        projector=None,
        fresh_dtype=source.dtype("embedding.word_embeddings.weight"),
        tokenizer=tokenizer,
        report=report,
    )
    return _write(parts, output, options, start)


def import_llava(
    directory: Path, output: Path, options: ImportOptions, start: Callable[[int], Advance]
) -> TensorReport:
    """A checkpoint of a whole LlavaForConditionalGeneration model; see `import_pair` for the rest."""
    report = TensorReport()
    where = directory / "config.json"
    config = read_llava_config(directory)
    own = language_architecture(config.text, where, tied=config.tied)
    vision = vision_architecture(
        config.vision, where, config.feature_layer, config.feature_select, processed_size(directory)
    )
    check_architecture(Architecture(vision=vision, language=own), where)
    by_part = parts_of_llava(open_source(directory, options.allow_pickle), directory, report)
    source = language_part(with_head_bias(by_part["language"], own), own, directory, report)
    tokenizer = find_tokenizer(options.tokenizer or directory, report)
    check_image_token(tokenizer, config.image_token, own.vocabulary_size, directory)
    parts = _Parts(
        architecture=reconcile(vision, own, options.recipe),
        vision_config=config.vision,
        vision_directory=directory,
        vision=vision_part(by_part["vision"], report),
        language_pieces=lambda maker: maker.language_pieces(source),
        projector=by_part["projector"],
        fresh_dtype=source.dtype("model.embed_tokens.weight"),
        tokenizer=tokenizer,
        report=report,
    )
    return _write(parts, output, options, start)


def _write(parts: _Parts, output: Path, options: ImportOptions, start: Callable[[int], Advance]) -> TensorReport:
    architecture, report = parts.architecture, parts.report
    seed = options.recipe.seed if options.recipe is not None else int(Recipe.model_fields["seed"].default)
    pieces = _pieces(parts, PieceMaker(architecture.language, options.dtype, report), seed)
    total = sum(piece.nbytes for piece in pieces)
    check_output(output, total)
    with written_beside(output) as directory:
        copy_image_processor(parts.vision_directory, directory / "vision", architecture.vision, report)
        parts.vision_config.save_pretrained(directory / "vision")
        if parts.tokenizer is not None:
            parts.tokenizer.save_pretrained(directory / "tokenizer")
        write_architecture(directory, architecture)
        write_checkpoint(directory, pieces, _extra_states(architecture.language), start(total))
        report.write(directory / REPORT_FILE)
        write_run(directory, IMPORT_STAGE, 0, _recipe(parts, output, options, seed))
        write_manifest(directory, entries_of(directory, files_of(directory)))
    return report


def _pieces(parts: _Parts, maker: PieceMaker, seed: int) -> list[Piece]:
    vision, language = parts.architecture.vision, parts.architecture.language
    tower = vision_shapes(parts.vision_config)
    expected = {checkpoint_vision_name(key): shape for key, shape in tower.items()}
    check_tensors(parts.vision.shapes, expected, f"{parts.vision_directory}, vision encoder")
    projector = projector_shapes(vision.hidden_size, language.hidden_size)
    pieces = [*parts.language_pieces(maker), *maker.vision_pieces(tower, vision, parts.vision)]
    if parts.projector is None:
        return [*pieces, *maker.fresh_projector_pieces(projector, seed, parts.fresh_dtype)]
    expected = {key.removeprefix(PROJECTOR): shape for key, shape in projector.items()}
    check_tensors(parts.projector.shapes, expected, f"{parts.vision_directory}, projector")
    return [*pieces, *maker.projector_pieces(projector, parts.projector)]


def _recipe(parts: _Parts, output: Path, options: ImportOptions, seed: int) -> Recipe:
    """What run.json says: the model and where its parts lie, and no stage, as nothing has been trained."""
    stored = options.dtype or parts.fresh_dtype
    precision: Precision = "fp32" if stored == torch.float32 else "bf16"
    return Recipe(
        output_dir=output,
        seed=seed,
        precision=options.recipe.precision if options.recipe is not None else precision,
        model=ModelConfig(
            architecture=parts.architecture,
            vision=output / "vision",
            tokenizer=output / "tokenizer" if parts.tokenizer is not None else None,
        ),
        stages=(),
    )


def _extra_states(language: LanguageArchitecture) -> list[str]:
    return [
        f"{LAYERS}{module}._extra_state/shard_{layer}_{language.layers}"
        for module in _EXTRA_STATES
        for layer in range(language.layers)
    ]
