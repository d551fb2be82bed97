"""Trains the quickstart's vision tower from nothing (stage 0), on the training images alone.

A LLaVA-style model starts from a pretrained, frozen tower. This one is a small SigLIP encoder from
transformers, taught with plain PyTorch to know, at every patch, which digit the patch's cell shows. Two
throwaway linear heads read the output of the last encoder layer before `post_layernorm` (transformers'
`hidden_states[-1]`, `feature_layer: -1` in an architecture file), so exactly that feature carries the digit
and its place on the image. `post_layernorm` keeps its initial values: nothing reads it.

    images [n, 3, 84, 84] uint8 -> -1..1 -> tower [n, 36, 128] -> digit (0..9, 10 blank) and cell of a patch

Writes a Hugging Face directory: config.json, model.safetensors, preprocessor_config.json.
"""

import argparse
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from compose_digits import BLANK_CELL, CELL_SIZE, CELLS_PER_SIDE, IMAGE_SIZE, image_path
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from transformers import SiglipVisionConfig, SiglipVisionModel
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.utils import logging

from megatron_sts.errors import DataError

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common.scans import Split

PATCH_SIZE = 14
PATCHES_PER_SIDE = IMAGE_SIZE // PATCH_SIZE
HIDDEN_SIZE = 128
LAYERS = 3
ATTENTION_HEADS = 2
FFN_HIDDEN_SIZE = 256
BATCH_SIZE = 32
LEARNING_RATE = 2e-3
WARMUP_STEPS = 30
PLACE_LOSS_WEIGHT = 0.1
# SigLIP starts its position embeddings at 1 / sqrt(width). Larger ones let attention tell the four patches of
# a cell from their neighbours from the first step on.
POSITION_EMBEDDING_STD = 0.5
# The paper between two digits is 4 px wide: a shift by 2 px never cuts a digit.
LARGEST_SHIFT = 2


@dataclass(frozen=True)
class TowerReport:
    """How well the tower's features tell the test images' digits."""

    digit_accuracy: float
    """Share of the cells with a digit that are read right, by the summed logits of a cell's four patches."""
    patch_accuracy: float
    """Share of all patches, blank ones too, that are read right."""
    seconds: float
    cpu_seconds: float


def build_tower() -> SiglipVisionModel:
    """A fresh tower, without the pooling head, which LLaVA does not use."""
    config = SiglipVisionConfig(
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        hidden_size=HIDDEN_SIZE,
        intermediate_size=FFN_HIDDEN_SIZE,
        num_hidden_layers=LAYERS,
        num_attention_heads=ATTENTION_HEADS,
        vision_use_head=False,
    )
    tower = SiglipVisionModel(config)
    nn.init.normal_(tower.embeddings.position_embedding.weight, std=POSITION_EMBEDDING_STD)
    return tower


def image_processor() -> SiglipImageProcessorPil:
    """Resize to IMAGE_SIZE, then pixels from 0..255 to -1..1; `normalise` does the same to a tensor."""
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    return SiglipImageProcessorPil(size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3)


def normalise(images: Tensor) -> Tensor:
    """uint8 [n, 3, H, W] -> float32 in -1..1."""
    return images.float() / 127.5 - 1


def read_split(data: Path, split: Split) -> tuple[Tensor, Tensor]:
    """A split's images, uint8 [n, 3, IMAGE_SIZE, IMAGE_SIZE], and their cells' digits, int64 [n, 9]."""
    labels_file = data / "tiles.npz"
    if not labels_file.is_file():
        raise DataError(f"{labels_file}: not found. Make the data set first: compose_digits.py --output {data}")
    with np.load(labels_file) as arrays:
        cells = torch.from_numpy(arrays[split].astype(np.int64))
    images = torch.empty(len(cells), 3, IMAGE_SIZE, IMAGE_SIZE, dtype=torch.uint8)
    for index in range(len(cells)):
        with Image.open(data / image_path(split, index)) as image:
            images[index] = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    return images, cells


def cell_of_patch() -> Tensor:
    """The cell each patch lies in, row by row, int64 [36]."""
    lattice = torch.arange(CELLS_PER_SIDE**2).reshape(CELLS_PER_SIDE, CELLS_PER_SIDE)
    patches_per_cell = CELL_SIZE // PATCH_SIZE
    return lattice.repeat_interleave(patches_per_cell, 0).repeat_interleave(patches_per_cell, 1).reshape(-1)


def features(tower: SiglipVisionModel, images: Tensor) -> Tensor:
    """The features the language model is given: [n, 36, HIDDEN_SIZE]."""
    # Contract: `vision.feature_layer: -1`, `feature_select: full` in the quickstart's architecture file.
    hidden_states: tuple[Tensor, ...] = tower(normalise(images), output_hidden_states=True).hidden_states
    return hidden_states[-1]


def train_tower(images: Tensor, cells: Tensor, steps: int, seed: int) -> tuple[SiglipVisionModel, nn.Linear]:
    """Teaches a fresh tower the digit and the number of each patch's cell.

    Args:
        images: uint8 [n, 3, IMAGE_SIZE, IMAGE_SIZE].
        cells: int64 [n, 9], digit of each cell or BLANK_CELL.
    Returns:
        The tower, and the linear head that reads digits (11 classes) from its features.
    """
    torch.manual_seed(seed)
    tower = build_tower().train()
    digit_head = nn.Linear(HIDDEN_SIZE, BLANK_CELL + 1)
    place_head = nn.Linear(HIDDEN_SIZE, CELLS_PER_SIDE**2)
    parameters = [*tower.parameters(), *digit_head.parameters(), *place_head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _warmup_and_cosine(step, steps))
    places = cell_of_patch()
    order = torch.empty(0, dtype=torch.int64)
    for step in range(steps):
        if len(order) < BATCH_SIZE:
            order = torch.cat([order, torch.randperm(len(images))])
        batch, order = order[:BATCH_SIZE], order[BATCH_SIZE:]
        shifts = torch.randint(-LARGEST_SHIFT, LARGEST_SHIFT + 1, (2,)).tolist()
        patches = features(tower, images[batch].roll(shifts, dims=(2, 3))).flatten(0, 1)
        digit_loss = functional.cross_entropy(digit_head(patches), cells[batch][:, places].flatten())
        place_loss = functional.cross_entropy(place_head(patches), places.repeat(len(batch)))
        (digit_loss + PLACE_LOSS_WEIGHT * place_loss).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        if (step + 1) % 100 == 0:
            losses = f"digit loss {digit_loss.item():.3f}, place loss {place_loss.item():.3f}"
            print(f"tower: step {step + 1}/{steps}, {losses}", flush=True)
    return tower.eval(), digit_head


@torch.no_grad()
def measure(tower: SiglipVisionModel, digit_head: nn.Linear, images: Tensor, cells: Tensor) -> tuple[float, float]:
    """Accuracy on the cells that hold a digit, and on all patches."""
    places = cell_of_patch()
    logits = torch.cat([digit_head(features(tower, batch)) for batch in images.split(BATCH_SIZE)])
    votes = torch.zeros(len(cells), CELLS_PER_SIDE**2, logits.shape[-1]).index_add_(1, places, logits)
    holds_digit = cells != BLANK_CELL
    digit_accuracy = (votes.argmax(-1) == cells)[holds_digit].float().mean().item()
    patch_accuracy = (logits.argmax(-1) == cells[:, places]).float().mean().item()
    return digit_accuracy, patch_accuracy


def write_tower(data: Path, output: Path, steps: int, seed: int) -> TowerReport:
    """Trains a tower on the training images of `data`, writes it and measures it on the test images."""
    begin, cpu_begin = time.perf_counter(), time.process_time()
    tower, digit_head = train_tower(*read_split(data, "train"), steps=steps, seed=seed)
    tower.save_pretrained(output)
    image_processor().save_pretrained(output)
    digit_accuracy, patch_accuracy = measure(tower, digit_head, *read_split(data, "test"))
    seconds, cpu_seconds = time.perf_counter() - begin, time.process_time() - cpu_begin
    return TowerReport(digit_accuracy, patch_accuracy, seconds, cpu_seconds)


def _warmup_and_cosine(step: int, steps: int) -> float:
    return min(1.0, (step + 1) / WARMUP_STEPS) * 0.5 * (1 + math.cos(math.pi * step / steps))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Train the quickstart's vision tower on its training images.")
    parser.add_argument("--data", type=Path, required=True, help="directory written by compose_digits.py")
    parser.add_argument("--output", type=Path, required=True, help="Hugging Face directory to write")
    parser.add_argument("--steps", type=int, default=400, help="training steps (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1234)
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: %(default)s)")
    options = parser.parse_args(arguments)
    if min(options.steps, options.threads) < 1:
        parser.error("--steps and --threads must be at least 1")
    torch.set_num_threads(options.threads)
    logging.disable_progress_bar()
    report = write_tower(options.data, options.output, options.steps, options.seed)
    print(
        f"tower: {report.digit_accuracy:.1%} of the test digits, {report.patch_accuracy:.1%} of the patches "
        f"read right, {report.seconds:.0f} s ({report.cpu_seconds:.0f} CPU seconds): {options.output}"
    )


if __name__ == "__main__":
    main()
