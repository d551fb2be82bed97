"""The parts of a model in its files: tensors by a part's own names, checked; the report names what has no place."""

from collections.abc import Mapping
from pathlib import Path

import torch

from megatron_sts.config import LanguageArchitecture
from megatron_sts.errors import ConversionError
from megatron_sts.hf.families import OUTPUT
from megatron_sts.hf.language import check_tensors, hugging_face_shapes
from megatron_sts.hf.names import is_harmless, is_pooling_head, part_of, vision_name
from megatron_sts.hf.report import TensorReport
from megatron_sts.hf.source import Renamed, TensorSource


def parts_of_llava(source: TensorSource, directory: Path, report: TensorReport) -> dict[str, Renamed]:
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


def vision_part(source: TensorSource, report: TensorReport) -> Renamed:
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


def language_part(
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
