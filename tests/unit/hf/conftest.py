"""Tiny models, their training checkpoints and an export, each made once."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaForCausalLM,
    Qwen2ForCausalLM,
    SiglipConfig,
    SiglipModel,
)

from megatron_sts.hf import ImportOptions, export_checkpoint, import_pair
from tests.unit.hf.sources import change_config, language_config, make_llava, nothing, tower_config, write_llava
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


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole CLIP, a whole SigLIP2, a Llama without `<image>` whose tokenizer fills its vocabulary, a LLaVA model."""
    root = tmp_path_factory.mktemp("sources")
    torch.manual_seed(0)
    text = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    special = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "vocab_size": 60}
    CLIPModel(CLIPConfig(text_config=text | special, vision_config=tower_config("clip").to_dict())).save_pretrained(
        root / "clip"
    )
    vision = tower_config("siglip2").to_dict() | {"vision_use_head": True}
    SiglipModel(SiglipConfig(text_config=text | special, vision_config=vision)).save_pretrained(root / "siglip2")
    tokenizer = make_tokenizer(image_token=False)
    config = language_config("llama")
    config.vocab_size = len(tokenizer)
    LlamaForCausalLM(config).save_pretrained(root / "llama")
    tokenizer.save_pretrained(root / "llama")
    Qwen2ForCausalLM(language_config("qwen2")).save_pretrained(root / "qwen2")
    tokenizer.save_pretrained(root / "qwen2")
    llava = make_llava("clip", "mistral")
    write_llava(llava, root / "llava", make_tokenizer())
    change_config(root / "llava", image_token_index=len(make_tokenizer()) - 1)
    return root


@pytest.fixture
def copy(sources: Path, tmp_path: Path) -> Callable[[str], Path]:
    """A source that the test may damage."""
    return lambda name: Path(shutil.copytree(sources / name, tmp_path / name))


@pytest.fixture(scope="session")
def pair(sources: Path) -> Path:
    """An import of SigLIP2 and Llama."""
    import_pair(sources / "siglip2", sources / "llama", sources / "pair", ImportOptions(), nothing)
    return sources / "pair"
