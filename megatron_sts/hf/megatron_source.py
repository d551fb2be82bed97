"""The language model in a distributed checkpoint of Megatron-LM, Megatron-Bridge or NeMo.

All of them write a GPTModel's own parameter names, some with a prefix (`module.`, `model.`, `language_model.`), and the
layers stacked under one name or, where layers may differ, each under its number.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from megatron_sts.config import LanguageArchitecture
from megatron_sts.errors import ConversionError
from megatron_sts.hf.families import FINAL_NORM, LAYERS
from megatron_sts.hf.language import check_tensors, megatron_shapes, rules_outside
from megatron_sts.hf.report import TensorReport
from megatron_sts.hf.source import Renamed
from megatron_sts.hf.training_checkpoint import METADATA_FILE, TensorReader

_ITERATIONS = "iter_*"
# `<image>` and a few more that a recipe's vocabulary may have beyond the checkpoint's.
_MOST_ADDED_TOKENS = 64
# Layers built without Transformer Engine may keep their norms under their own names.
_ALIASES = {
    "input_layernorm.weight": "self_attention.linear_qkv.layer_norm_weight",
    "input_layernorm.bias": "self_attention.linear_qkv.layer_norm_bias",
    "pre_mlp_layernorm.weight": "mlp.linear_fc1.layer_norm_weight",
}


def open_megatron(directory: Path, report: TensorReport) -> Renamed:
    """The language model's tensors by GPTModel's names; others are entered in the report as left out.

    directory: with `.metadata`, or Megatron-LM's `--save` directory, whose last iteration is taken.
    """
    if not (directory / METADATA_FILE).is_file():
        iterations = sorted(path for path in directory.glob(_ITERATIONS) if (path / METADATA_FILE).is_file())
        if not iterations:
            raise ConversionError(
                f"{directory}: no {METADATA_FILE}, here or in an {_ITERATIONS} directory: no distributed checkpoint; "
                "write one with Megatron-LM's --ckpt-format torch_dist"
            )
        directory = iterations[-1]
    reader = TensorReader(directory)
    ending = FINAL_NORM.key
    prefixes = [key.removesuffix(ending) for key in reader.shapes if key.endswith(ending)]
    if len(prefixes) != 1:
        found = f"{len(prefixes)} of them ({', '.join(prefixes)})" if prefixes else "none"
        raise ConversionError(
            f"{directory}: a language model has one {ending}, here is {found}; give the checkpoint of a GPTModel"
        )
    names: dict[str, str] = {}
    for key in reader.shapes:
        if key.startswith(prefixes[0]) and not key.endswith("._extra_state"):
            names[_canonical(key.removeprefix(prefixes[0]))] = key
        else:
            report.left_out[key] = "not of the language model"
    return Renamed(reader, names)


def check_megatron_tensors(source: Renamed, language: LanguageArchitecture, directory: Path) -> None:
    """Raise ConversionError unless the tensors are those of the architecture; the vocabulary's padding may differ."""
    expected = megatron_shapes(language)
    found: dict[str, tuple[int, ...]] = {}
    numbered: dict[str, set[int]] = {}
    for name, shape in source.shapes.items():
        layer = re.match(rf"{re.escape(LAYERS)}(\d+)\.(.+)", name)
        if layer is None:
            found[name] = shape
        else:
            key = LAYERS + layer[2]
            numbered.setdefault(key, set()).add(int(layer[1]))
            found[key] = (len(numbered[key]), *shape)
    for rule in rules_outside(language):
        if rule.of_vocabulary and rule.key in found:
            found[rule.key] = _without_padding(found[rule.key], expected[rule.key], language)
    check_tensors(found, expected, f"{directory}, language model")


def _without_padding(
    found: tuple[int, ...], expected: tuple[int, ...], language: LanguageArchitecture
) -> tuple[int, ...]:
    """The expected shape where the rows are enough for the vocabulary, or lack only those of added tokens."""
    enough = found[0] >= language.vocabulary_size - _MOST_ADDED_TOKENS
    return (expected[0], *found[1:]) if enough else found


def _canonical(name: str) -> str:
    match = re.fullmatch(rf"({re.escape(LAYERS)}(?:\d+\.)?)(.+)", name)
    if match is None:
        return name
    aliases: Mapping[str, str] = _ALIASES
    return match[1] + aliases.get(match[2], match[2])
