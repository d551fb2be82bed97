"""Shows that the quickstart's tower learns, in which feature, and that transformers loads what is written."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, SiglipVisionModel

sys.path.insert(0, str(Path(__file__).parents[3] / "examples" / "quickstart"))
import compose_digits
import train_tower

from megatron_sts.errors import DataError


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("digits")
    compose_digits.write_dataset(output, {"train": 40, "validation": 1, "test": 4}, questions=1, seed=7)
    return output


def test_reads_images_and_cells_of_one_split(dataset: Path):
    images, cells = train_tower.read_split(dataset, "test")
    assert images.shape == (4, 3, 84, 84) and images.dtype == torch.uint8
    composed = compose_digits.compose("test", 1, seed=7, questions=1)
    assert np.array_equal(images[1].permute(1, 2, 0).numpy(), compose_digits.render(composed))
    assert cells[1].tolist() == compose_digits.cell_labels(composed.grid).tolist()


def test_missing_data_set_is_named_with_the_remedy(tmp_path: Path):
    with pytest.raises(DataError, match=r"tiles\.npz: not found\. Make the data set first: compose_digits"):
        train_tower.read_split(tmp_path, "train")


def test_patches_belong_to_cells_two_by_two():
    top, middle, bottom = [0, 0, 1, 1, 2, 2], [3, 3, 4, 4, 5, 5], [6, 6, 7, 7, 8, 8]
    assert train_tower.cell_of_patch().tolist() == top * 2 + middle * 2 + bottom * 2


def test_the_feature_is_the_last_layer_before_post_layernorm():
    tower = train_tower.build_tower().eval()
    images = torch.randint(0, 256, (2, 3, 84, 84), dtype=torch.uint8)
    feature = train_tower.features(tower, images)
    assert feature.shape == (2, 36, train_tower.HIDDEN_SIZE)
    last = tower(train_tower.normalise(images)).last_hidden_state
    assert torch.equal(tower.post_layernorm(feature), last)
    assert not torch.allclose(feature, last)


def test_image_processor_agrees_with_training():
    pixels = np.random.default_rng(0).integers(0, 256, (84, 84, 3), dtype=np.uint8)
    processed = train_tower.image_processor()(Image.fromarray(pixels), return_tensors="pt")["pixel_values"]
    trained_on = train_tower.normalise(torch.from_numpy(pixels).permute(2, 0, 1)[None])
    torch.testing.assert_close(processed, trained_on)


def test_training_lowers_the_error(dataset: Path):
    images, cells = train_tower.read_split(dataset, "train")
    tower, head = train_tower.train_tower(images, cells, steps=1, seed=1)
    untrained = train_tower.measure(tower, head, images, cells)
    tower, head = train_tower.train_tower(images, cells, steps=25, seed=1)
    trained = train_tower.measure(tower, head, images, cells)
    assert trained[1] > untrained[1] + 0.15


def test_training_repeats_exactly(dataset: Path):
    images, cells = train_tower.read_split(dataset, "train")
    first, _ = train_tower.train_tower(images, cells, steps=3, seed=1)
    again, _ = train_tower.train_tower(images, cells, steps=3, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))


def test_measure_counts_digits_by_the_votes_of_their_patches():
    """A head that always says `three` reads exactly the threes among the digits, whatever the blanks."""
    tower, head = train_tower.build_tower().eval(), torch.nn.Linear(train_tower.HIDDEN_SIZE, 11)
    torch.nn.init.zeros_(head.weight)
    with torch.no_grad():
        head.bias.copy_(torch.eye(11)[3])
    cells = torch.tensor([[3, 4, 10, 3, 5, 10, 10, 10, 10]])
    images = torch.zeros(1, 3, 84, 84, dtype=torch.uint8)
    assert train_tower.measure(tower, head, images, cells) == pytest.approx((2 / 4, 2 / 9))


def test_written_directory_loads_in_transformers(dataset: Path, tmp_path: Path):
    report = train_tower.write_tower(dataset, tmp_path, steps=2, seed=1)
    assert 0 <= report.digit_accuracy <= 1 and report.seconds > 0
    written = {path.name for path in tmp_path.iterdir()}
    assert written >= {"config.json", "model.safetensors", "preprocessor_config.json"}
    loaded = AutoModel.from_pretrained(tmp_path)
    assert isinstance(loaded, SiglipVisionModel)
    images, _ = train_tower.read_split(dataset, "test")
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    picture = Image.fromarray(images[0].permute(1, 2, 0).numpy())
    pixels = processor(picture, return_tensors="pt")["pixel_values"]
    again = SiglipVisionModel.from_pretrained(tmp_path)
    expected = train_tower.features(again.eval(), images[:1])
    torch.testing.assert_close(loaded.eval()(pixels, output_hidden_states=True).hidden_states[-1], expected)
