"""Tiny models, their training checkpoints and an export, each made once."""

from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModel

from megatron_sts.hf import export_checkpoint
from tests.unit.hf.tiny_llava import (
    Made,
    architecture,
    checkpoint_tensors,
    make_model,
    make_recipe,
    make_tokenizer,
    vision_sizes,
    write_checkpoint,
)


@pytest.fixture(scope="session")
def tokenizer_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer().save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def clip_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP vision encoder that differs from its family's defaults in what the architecture does not say."""
    directory = tmp_path_factory.mktemp("clip")
    config = CLIPVisionConfig(**vision_sizes(architecture("clip")), hidden_act="gelu", layer_norm_eps=1e-3)
    CLIPVisionModel(config).save_pretrained(directory)
    crop = {"height": 28, "width": 28}
    CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size=crop).save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def make(
    tmp_path_factory: pytest.TempPathFactory, tokenizer_directory: Path, clip_directory: Path
) -> Callable[..., Made]:
    """A model and its checkpoint by family and tying; CLIP has a directory of its own, SigLIP has none."""
    made: dict[tuple[str, bool], Made] = {}

    def get(family: str, tied: bool = False) -> Made:
        if (family, tied) not in made:
            sizes = architecture(family, tied)
            vision = clip_directory if family == "clip" else None
            image_token = make_tokenizer().convert_tokens_to_ids("<image>")
            model = make_model(sizes, image_token, vision)
            tensors = checkpoint_tensors(model, sizes)
            recipe = make_recipe(sizes, tokenizer_directory, vision)
            directory = tmp_path_factory.mktemp("run") / "step-10"
            made[family, tied] = Made(model, recipe, tensors, write_checkpoint(directory, tensors, recipe))
        return made[family, tied]

    return get


@pytest.fixture(scope="session")
def exported(make: Callable[..., Made], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported SigLIP model."""
    output = tmp_path_factory.mktemp("exported") / "model"
    export_checkpoint(make("siglip").checkpoint, output)
    return output
