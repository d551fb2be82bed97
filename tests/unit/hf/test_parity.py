"""Shows that an export computes what the model under training computes, on the trainer's own checkpoint."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor

from megatron_sts.config import Recipe
from megatron_sts.data import TEMPLATES, RawItem, Sample, Turn, collate, encode, image_token_id, load_image_processor
from megatron_sts.hf import export_checkpoint
from megatron_sts.model.build import build_chunks
from megatron_sts.parallel.groups import group_collection, start_groups
from megatron_sts.sts.plan import full_plan
from megatron_sts.train.checkpoint import sharded_state
from megatron_sts.train.checkpoint_save import CheckpointSave
from tests.ranks import run_ranks
from tests.unit.hf.tiny_llava import architecture, make_recipe, make_tokenizer

SAMPLE = Sample("0", (Turn("human", "<image>\nWhat digit is it?"), Turn("assistant", "two five")), ("0.png",))


def _train_and_forward(recipe: Recipe, pixels: Tensor) -> tuple[Path, np.ndarray]:
    """A checkpoint of a fresh model, and its logits [s, V] for one conversation."""
    start_groups(recipe.parallel, recipe.seed)
    chunks = build_chunks(recipe, group_collection(), draw_weights=True)
    with torch.no_grad():
        # Fresh norms are ones and fresh biases zeros, which would hide an exchange.
        for number, parameter in enumerate(chunks[0].parameters()):
            generator = torch.Generator().manual_seed(number)
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    state = sharded_state(chunks, None)
    path = CheckpointSave(recipe, "tune", 10, state, copies=False).finish()
    tokenizer = make_tokenizer()
    visual_tokens = recipe.architecture.visual_tokens
    encoded = encode(SAMPLE, TEMPLATES["vicuna_v1"], tokenizer)
    length = len(encoded.token_ids) + visual_tokens - 1
    batch = collate([RawItem(encoded, [pixels])], visual_tokens, length, image_token_id(tokenizer), 3)
    model = chunks[0].eval()
    model.set_plan(full_plan(visual_tokens))
    with torch.no_grad():
        return path, model(batch)[0].numpy()


@pytest.mark.parametrize(("family", "tied"), [("clip", False), ("siglip", True)])
def test_logits_are_those_of_the_trained_model(
    tmp_path: Path, tokenizer_directory: Path, family: str, tied: bool
) -> None:
    sizes = architecture(family, tied)
    recipe = make_recipe(sizes, tokenizer_directory, None).model_copy(update={"output_dir": tmp_path / "run"})
    picture = Image.radial_gradient("L").resize((40, 30)).convert("RGB")
    image_processor = load_image_processor(None, sizes.vision.family, sizes.vision.image_size)
    pixels = image_processor(picture, return_tensors="pt")["pixel_values"][0]
    ((checkpoint, logits),) = run_ranks(1, _train_and_forward, recipe, pixels)

    export_checkpoint(checkpoint, tmp_path / "model")
    processor = AutoProcessor.from_pretrained(tmp_path / "model")
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "model").eval()
    text = "".join(segment.text for segment in TEMPLATES["vicuna_v1"].render(SAMPLE))
    inputs = processor(text=text, images=picture, return_tensors="pt")
    with torch.inference_mode():
        found = model(**inputs).logits[0]
    expected = torch.from_numpy(logits)[:, : sizes.language.vocabulary_size]
    assert expected.std() > 0.1
    # Two implementations of attention and norms in fp32: only the order of sums differs.
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
