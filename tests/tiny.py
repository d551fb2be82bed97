"""A tiny data set, tokenizer and recipe, made on the spot: the real thing at a size that trains in milliseconds."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from megatron_sts.config import Recipe, check_recipe

_WORDS = [
    *("what", "is", "in", "the", "picture", "describe", "it", "red", "green", "blue", "dark", "light"),
    *("left", "right", "a", "and", "USER", "ASSISTANT", ":", ".", "?", "<0x0A>"),
]

ARCHITECTURE: dict[str, Any] = {
    "vision": {
        "family": "clip",
        "image_size": 56,
        "patch_size": 14,
        "hidden_size": 16,
        "layers": 2,
        "attention_heads": 2,
        "ffn_hidden_size": 32,
        "feature_layer": -2,
    },
    "language": {
        "family": "llama",
        "layers": 4,
        "hidden_size": 32,
        "ffn_hidden_size": 64,
        "attention_heads": 4,
        "query_groups": 2,
        "vocabulary_size": 48,
        "vocabulary_padding": 16,
        "maximum_positions": 128,
    },
}


def tiny_tokenizer(directory: Path) -> Path:
    """A word tokenizer with `<image>`, begin and end of sequence, as a Hugging Face directory."""
    specials = ["<unk>", "<s>", "</s>", "<pad>", "<image>"]
    letters = [f"{mark}{letter}" for letter in "ab" for mark in ("", "▁")]
    vocabulary = {
        word: number for number, word in enumerate(dict.fromkeys([*specials, *(f"▁{w}" for w in _WORDS), *letters]))
    }
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.normalizer = normalizers.Replace("\n", " ")
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.decoder = decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    tokenizer.save_pretrained(directory)
    return directory


def tiny_data(directory: Path, records: int = 24) -> Path:
    """LLaVA json with pictures of noise; every sixth record is text alone, lengths differ."""
    images = directory / "images"
    images.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(7)
    rows: list[dict[str, Any]] = []
    for number in range(records):
        answer = " ".join(generator.choice(["red", "green", "blue", "dark", "light"], size=2 + number % 5))
        question = "what is in the picture" if number % 2 else "describe it"
        record: dict[str, Any] = {"id": f"r{number}"}
        if number % 6 != 5:
            name = f"{number}.png"
            Image.fromarray(generator.integers(0, 255, (56, 56, 3), dtype=np.uint8)).save(images / name)
            record["image"] = name
            question = f"<image>\n{question}"
        record["conversations"] = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
        rows.append(record)
    path = directory / "train.json"
    path.write_text(json.dumps(rows))
    return path


def tiny_recipe(root: Path, **changes: Any) -> Recipe:
    """A checked two-stage recipe over data and tokenizer made under `root`; `changes` by dotted name with __.

    `tune__skip={"alpha": 0.5}` reaches into the stage of that name.
    """
    if not (root / "train.json").exists():
        tiny_data(root)
        tiny_tokenizer(root / "tokenizer")
    data = {
        "train": str(root / "train.json"),
        "images": str(root / "images"),
        "system_prompt": "",
        "max_tokens": 128,
    }
    values: dict[str, Any] = {
        "output_dir": str(root / "run"),
        "seed": 5,
        "precision": "fp32",
        "model": {"architecture": copy.deepcopy(ARCHITECTURE), "tokenizer": str(root / "tokenizer")},
        "logging": {"every_steps": 1, "tensorboard": False},
        "stages": [
            {
                "name": "align",
                "data": data | {"template": "plain"},
                "trains": ["projector"],
                "steps": 3,
                "batch": {"global": 8, "micro": 2},
                "learning_rate": {"projector": 1e-2},
            },
            {
                "name": "tune",
                "data": data | {"template": "vicuna_v1"},
                "trains": ["projector", "language"],
                "steps": 4,
                "batch": {"global": 8, "micro": 2},
                "learning_rate": {"projector": 1e-2, "language": 2e-3},
            },
        ],
    }
    for name, value in changes.items():
        _set(values, name.split("__"), value)
    recipe = Recipe.model_validate(values)
    check_recipe(recipe)
    return recipe


def _set(values: dict[str, Any], path: list[str], value: Any) -> None:
    stages = {stage["name"]: stage for stage in values["stages"]}
    target: Any = values
    if path[0] in stages:
        target, path = stages[path[0]], path[1:]
    for key in path[:-1]:
        target = target.setdefault(key, {})
    if isinstance(value, dict) and isinstance(target.get(path[-1]), dict):
        value = target[path[-1]] | value
    target[path[-1]] = value
