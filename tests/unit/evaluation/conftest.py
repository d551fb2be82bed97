"""A tiny random LLaVA directory as transformers writes it, and pictures to ask about."""

from pathlib import Path

import pytest
from PIL import Image
from transformers import LlavaProcessor

from megatron_sts.data import TEMPLATES, load_image_processor
from tests.unit.hf.tiny_llava import architecture, make_model, make_tokenizer


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with a SigLIP tower, whose tokenizer pads on the right as most do."""
    directory = tmp_path_factory.mktemp("exported") / "model"
    sizes, tokenizer = architecture("siglip"), make_tokenizer()
    make_model(sizes, tokenizer.convert_tokens_to_ids("<image>"), None).save_pretrained(directory)
    LlavaProcessor(
        image_processor=load_image_processor(None, "siglip", sizes.vision.image_size),
        tokenizer=tokenizer,
        patch_size=sizes.vision.patch_size,
        vision_feature_select_strategy=sizes.vision.feature_select,
        chat_template=TEMPLATES["vicuna_v1"].chat_template(None),
    ).save_pretrained(directory)
    return directory


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder with three pictures of different content and size."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, size in enumerate([(30, 30), (40, 24), (28, 28)]):
        Image.radial_gradient("L").rotate(number * 40).resize(size).convert("RGB").save(folder / f"{number}.png")
    return folder
