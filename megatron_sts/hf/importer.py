"""From Hugging Face or Megatron weights to the checkpoint that a recipe's `model.init` names.

    --vision DIR --language DIR         a vision encoder and a language model; the projector is fresh
    --hf DIR                            a whole LlavaForConditionalGeneration model
    --vision DIR --megatron DIR         a vision encoder and a GPTModel's distributed checkpoint; the projector is fresh

Everything is checked by name, shape and dtype from the files' headers before the first tensor is read. The result also
holds what training needs beside the weights: architecture.yaml, vision/ (configuration and image processing) and
tokenizer/, which a recipe with that `model.init` takes by itself.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from megatron_sts.config import (
    Architecture,
    LanguageArchitecture,
    ModelConfig,
    Recipe,
    write_architecture,
    write_run,
)
from megatron_sts.errors import ConversionError
from megatron_sts.hf.checkpoint_writer import Advance, Piece, write_checkpoint
from megatron_sts.hf.families import LAYERS, OUTPUT
from megatron_sts.hf.image_processor import copy_image_processor
from megatron_sts.hf.language import check_tensors, hugging_face_shapes
from megatron_sts.hf.megatron_source import check_megatron_tensors, open_megatron
from megatron_sts.hf.names import (
    checkpoint_vision_name,
    is_harmless,
    is_pooling_head,
    part_of,
    projector_shapes,
    vision_name,
    vision_shapes,
)
from megatron_sts.hf.output import check_output, written_beside
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
from megatron_sts.hf.report import TensorReport
from megatron_sts.hf.source import Renamed, TensorSource, open_source
from megatron_sts.hf.tokenizer import add_image_token, check_image_token, find_tokenizer

REPORT_FILE = "tensors.json"
IMPORT_STAGE = "import"
# Modules of a layer that keep an extra state, with Transformer Engine or without; there is nothing in it at the start.
_EXTRA_STATES = (
    "self_attention.linear_qkv",
    "self_attention.linear_proj",
    "self_attention.core_attention",
    "mlp.linear_fc1",
    "mlp.linear_fc2",
)
# .metadata, run.json, tokenizer and the like.
_ROOM_BESIDE_TENSORS = 64 * 2**20


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
    tower = vision_architecture(encoder_config, vision / "config.json")
    own = language_architecture(config, language / "config.json")
    check_architecture(Architecture(vision=tower, language=own), language / "config.json")
    source = _language_part(open_source(language, options.allow_pickle), own, language, report)
    tokenizer = find_tokenizer(options.tokenizer or language, report)
    rows = add_image_token(tokenizer, own.vocabulary_size)
    parts = _Parts(
        architecture=reconcile(tower, own.model_copy(update={"vocabulary_size": rows}), options.recipe),
        vision_config=encoder_config,
        vision_directory=vision,
        vision=_vision_part(open_source(vision, options.allow_pickle), report),
        language_pieces=lambda maker: maker.language_pieces(source),
        projector=None,
        fresh_dtype=source.dtype("model.norm.weight"),
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
    language = options.recipe.architecture.language
    source = open_megatron(megatron, report)
    check_megatron_tensors(source, language, megatron)
    tokenizer = find_tokenizer(options.tokenizer or options.recipe.model.tokenizer or megatron, report)
    add_image_token(tokenizer, language.vocabulary_size, largest=language.vocabulary_size)
    parts = _Parts(
        architecture=reconcile(vision_architecture(encoder_config, vision / "config.json"), language, options.recipe),
        vision_config=encoder_config,
        vision_directory=vision,
        vision=_vision_part(open_source(vision, options.allow_pickle), report),
        language_pieces=lambda maker: maker.megatron_pieces(source),
        projector=None,
        fresh_dtype=source.dtype("decoder.final_layernorm.weight"),
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
    own = language_architecture(config.text_config, where, tied=config.tie_word_embeddings)
    vision = vision_architecture(
        config.vision_config, where, config.vision_feature_layer, config.vision_feature_select_strategy
    )
    check_architecture(Architecture(vision=vision, language=own), where)
    by_part = _parts_of(open_source(directory, options.allow_pickle), directory, report)
    source = _language_part(by_part["language"], own, directory, report)
    tokenizer = find_tokenizer(options.tokenizer or directory, report)
    check_image_token(tokenizer, config.image_token_index, own.vocabulary_size, directory)
    parts = _Parts(
        architecture=reconcile(vision, own, options.recipe),
        vision_config=config.vision_config,
        vision_directory=directory,
        vision=_vision_part(by_part["vision"], report),
        language_pieces=lambda maker: maker.language_pieces(source),
        projector=by_part["projector"],
        fresh_dtype=source.dtype("model.norm.weight"),
        tokenizer=tokenizer,
        report=report,
    )
    return _write(parts, output, options, start)


def _write(parts: _Parts, output: Path, options: ImportOptions, start: Callable[[int], Advance]) -> TensorReport:
    architecture, report = parts.architecture, parts.report
    seed = options.recipe.seed if options.recipe is not None else int(Recipe.model_fields["seed"].default)
    pieces = _pieces(parts, PieceMaker(architecture.language, options.dtype, report), seed)
    total = sum(piece.nbytes for piece in pieces)
    check_output(output, total + _ROOM_BESIDE_TENSORS)
    with written_beside(output) as directory:
        copy_image_processor(parts.vision_directory, directory / "vision", architecture.vision, report)
        parts.vision_config.save_pretrained(directory / "vision")
        if parts.tokenizer is not None:
            parts.tokenizer.save_pretrained(directory / "tokenizer")
        write_architecture(directory, architecture)
        write_checkpoint(directory, pieces, _extra_states(architecture.language), start(total))
        report.write(directory / REPORT_FILE)
        write_run(directory, IMPORT_STAGE, 0, _recipe(parts, output, options, seed))
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
    expected = {key.removeprefix("projector."): shape for key, shape in projector.items()}
    check_tensors(parts.projector.shapes, expected, f"{parts.vision_directory}, projector")
    return [*pieces, *maker.projector_pieces(projector, parts.projector)]


def _recipe(parts: _Parts, output: Path, options: ImportOptions, seed: int) -> Recipe:
    """What run.json says: the model and where its parts lie, and no stage, as nothing has been trained."""
    given: dict[str, Any] = {}
    if options.recipe is not None:
        given["precision"] = options.recipe.precision
    return Recipe(
        output_dir=output,
        seed=seed,
        model=ModelConfig(
            architecture=parts.architecture,
            vision=output / "vision",
            tokenizer=output / "tokenizer" if parts.tokenizer is not None else None,
        ),
        stages=(),
        **given,
    )


def _extra_states(language: LanguageArchitecture) -> list[str]:
    return [
        f"{LAYERS}{module}._extra_state/shard_{layer}_{language.layers}"
        for module in _EXTRA_STATES
        for layer in range(language.layers)
    ]


def _parts_of(source: TensorSource, directory: Path, report: TensorReport) -> dict[str, Renamed]:
    """The three parts of a LLaVA file by their own names, in the older or in transformers 5's layout."""
    names: dict[str, dict[str, str]] = {"vision": {}, "projector": {}, "language": {}}
    unknown = []
    for name in source.shapes:
        found = part_of(name)
        if found is not None and found[1] not in names[found[0]]:
            names[found[0]][found[1]] = name
        elif is_harmless(name):
            report.left_out[name] = "computed"
        else:
            unknown.append(name)
    if unknown:
        raise ConversionError(
            f"{directory}: holds tensors that are no part of a LLaVA model: {', '.join(sorted(unknown)[:10])}; give a "
            "LlavaForConditionalGeneration directory as transformers wrote it"
        )
    return {part: Renamed(source, own) for part, own in names.items()}


def _vision_part(source: TensorSource, report: TensorReport) -> Renamed:
    """A vision encoder's tensors by its own names, out of its own file or that of a whole CLIP or SigLIP model."""
    names: dict[str, str] = {}
    for name in source.shapes:
        own = vision_name(name)
        if is_harmless(name) or is_harmless(own):
            report.left_out[_original(source, name)] = "computed, or not of the vision encoder"
        elif is_pooling_head(own):
            report.left_out[_original(source, name)] = "pooling head, which a LLaVA model does not have"
        else:
            names[own] = name
    return Renamed(source, names)


def _language_part(
    source: TensorSource, language: LanguageArchitecture, directory: Path, report: TensorReport
) -> Renamed:
    """A language model's tensors, checked by name and shape."""
    names = {}
    for name in source.shapes:
        if is_harmless(name):
            report.left_out[_original(source, name)] = "computed"
        else:
            names[name] = name
    (head,) = OUTPUT.names
    if language.tied_embeddings and head in names:
        _check_tied(source, head, directory)
        report.left_out[_original(source, names.pop(head))] = "the tied embedding once more"
    part = Renamed(source, names)
    check_tensors(part.shapes, hugging_face_shapes(language), f"{directory}, language model")
    return part


def _check_tied(source: TensorSource, head: str, directory: Path) -> None:
    embedding = "model.embed_tokens.weight"
    count = source.shapes[head][0]
    same = source.shapes.get(embedding) == source.shapes[head] and all(
        torch.equal(source.read(head, slice(row, row + 4096)), source.read(embedding, slice(row, row + 4096)))
        for row in range(0, count, 4096)
    )
    if not same:
        raise ConversionError(
            f"{directory}: config.json says tie_word_embeddings, but lm_head.weight is not the embedding; set it to "
            "false, or remove lm_head.weight"
        )


def _original(source: TensorSource, name: str) -> str:
    names: Mapping[str, str] = source.names if isinstance(source, Renamed) else {}
    return names.get(name, name)
