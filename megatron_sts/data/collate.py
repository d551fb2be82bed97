"""From encoded conversations to one padded micro-batch."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from megatron_sts.data.encode import IGNORED_LABEL, Encoded
from megatron_sts.parallel.sequence import round_up

NO_TOKEN = -1
"""Fills up rows of guides."""


@dataclass(frozen=True, slots=True)
class RawItem:
    """An encoded conversation and what belongs to it.

    pictures: each [3, H, W], None in the place of one that another rank sees; None where this rank needs no
    pixels at all. sample_index: its number in the stage's
    data. guide_token_ids: the words of its human turns, where visual tokens are chosen by them. problem: why a picture
    of it cannot be read; None where all can.
    """

    encoded: Encoded
    pictures: list[Tensor | None] | None
    sample_index: int = 0
    guide_token_ids: list[int] = field(default_factory=list)
    problem: str | None = None

    def blank(self) -> "RawItem":
        """The same shapes without content: pictures of zeros, and no label, so that it teaches nothing."""
        silent = Encoded(self.encoded.token_ids, [IGNORED_LABEL] * len(self.encoded.labels))
        pictures = self.pictures
        if pictures is not None:
            pictures = [None if picture is None else torch.zeros_like(picture) for picture in pictures]
        return replace(self, encoded=silent, pictures=pictures)


@dataclass(frozen=True, slots=True)
class Batch:
    """A micro-batch. b rows (1 of packed samples), s positions, n images, H and W the picture's size in pixels; of the
    n images m are this rank's share (`Place.own_images`), whose pictures its tower sees.

    Contract: an image fills `visual_tokens` slots from its start on; the model puts the image's features there. Images
    are ordered by row, then by position, and so are the neighbours among them in `pixels`. What says where images
    belong stays on the CPU: the sizes of what ranks send each other come from it, and nobody waits for a GPU to learn
    them.
    """

    tokens: Tensor
    """[b, s] int64: image slots hold the `<image>` id, padding the pad id."""
    labels: Tensor
    """[b, s] int64, shifted: `labels[:, t]` is the target of position t; -100 where there is no loss."""
    pixels: Tensor | None
    """[m, 3, H, W], fp32 or as the tower computes; None without, or where not needed."""
    image_rows: Tensor
    """[n] int64: the row of each image."""
    image_starts: Tensor
    """[n] int64: the position of each image's first slot."""
    visual_tokens: int
    """Slots per image."""
    image_samples: Tensor
    """[n, 2] int64: the index of each image's sample, and the image's place among the images of it."""
    guides: Tensor
    """[n, g] int64: token ids of the human turns of each image's sample, filled up with -1; g may be 0."""
    weights: Tensor | None = None
    """[b, s] float32: what multiplies the loss of each position, 0 where there is none; None: 1 at every label."""

    def on_device(self, device: torch.device | int) -> "Batch":
        """What is computed with, on the device; from pinned memory it gets there beside what the device does."""
        moved = {
            name: None if values is None else values.to(device, non_blocking=True)
            for name, values in (
                ("tokens", self.tokens),
                ("labels", self.labels),
                ("weights", self.weights),
                ("pixels", self.pixels),
                ("guides", self.guides),
            )
        }
        return replace(self, **moved)  # type: ignore[arg-type]

    def device_tensors(self) -> list[Tensor]:
        """What `on_device` moves."""
        moved = (self.tokens, self.labels, self.weights, self.pixels, self.guides)
        return [values for values in moved if values is not None]


def collate(
    items: Sequence[RawItem],
    visual_tokens: int,
    length: int,
    image_token_id: int,
    pad_token_id: int,
    packed: bool = False,
    pinned: bool = False,
    multiple: int = 1,
) -> Batch:
    """Expands each `<image>` to `visual_tokens` slots, shifts the labels, pads on the right to `length`.

    packed: the samples lie end to end in one row, each without a label on its last position and padded to a length that
    `multiple` divides. pinned: what goes to a GPU lies in pinned memory, which it copies from by itself.
    """
    assert visual_tokens >= 1
    size = (1 if packed else len(items), length)
    tokens = np.full(size, pad_token_id, dtype=np.int64)
    labels = np.full(size, IGNORED_LABEL, dtype=np.int64)
    weights: np.ndarray | None = None
    if any(item.encoded.weights is not None for item in items):
        weights = np.zeros(size, dtype=np.float32)
    rows: list[int] = []
    starts: list[int] = []
    samples: list[tuple[int, int]] = []
    guides: list[list[int]] = []
    pixels: list[Tensor] = []
    row, start = 0, 0
    for item in items:
        encoded, pictures = item.encoded, item.pictures
        token_ids = np.array(encoded.token_ids, dtype=np.int64)
        is_image = token_ids == image_token_id
        slots = np.where(is_image, visual_tokens, 1)
        total = int(slots.sum())
        # Contract: the step's length, and where text is, come from the sample index, which counts as we do here.
        end = start + total
        assert end <= length, f"{end} positions do not fit the step's length {length}"
        tokens[row, start:end] = np.repeat(token_ids, slots)
        labels[row, start : end - 1] = np.repeat(np.array(encoded.labels, dtype=np.int64), slots)[1:]
        if weights is not None:
            own = [label != IGNORED_LABEL for label in encoded.labels] if encoded.weights is None else encoded.weights
            weights[row, start : end - 1] = np.repeat(np.array(own, dtype=np.float32), slots)[1:]
        own_starts = (start + np.cumsum(slots) - slots)[is_image].tolist()
        rows.extend([row] * len(own_starts))
        starts.extend(own_starts)
        samples.extend((item.sample_index, place) for place in range(len(own_starts)))
        guides.extend([item.guide_token_ids] * len(own_starts))
        if pictures is not None:
            assert len(pictures) == len(own_starts), f"{len(pictures)} pictures for {len(own_starts)} images"
            pixels.extend(picture for picture in pictures if picture is not None)
        row, start = (row, start + round_up(total, multiple)) if packed else (row + 1, 0)
    return Batch(
        tokens=_pinned(torch.from_numpy(tokens), pinned),
        labels=_pinned(torch.from_numpy(labels), pinned),
        weights=None if weights is None else _pinned(torch.from_numpy(weights), pinned),
        pixels=_stacked(pixels, pinned),
        image_rows=torch.tensor(rows, dtype=torch.int64),
        image_starts=torch.tensor(starts, dtype=torch.int64),
        visual_tokens=visual_tokens,
        image_samples=torch.tensor(samples, dtype=torch.int64).reshape(-1, 2),
        guides=_pinned(_filled_up(guides), pinned),
    )


def _pinned(values: Tensor, pinned: bool) -> Tensor:
    return values.pin_memory() if pinned else values


def _stacked(pictures: list[Tensor], pinned: bool) -> Tensor | None:
    if not pictures:
        return None
    # Straight to pinned memory: pictures are what takes time to copy.
    whole = torch.empty(len(pictures), *pictures[0].shape, dtype=pictures[0].dtype, pin_memory=pinned)
    return torch.stack(pictures, out=whole)


def _filled_up(rows: list[list[int]]) -> Tensor:
    longest = max(map(len, rows), default=0)
    filled = [row + [NO_TOKEN] * (longest - len(row)) for row in rows]
    return torch.tensor(filled, dtype=torch.int64).reshape(len(rows), longest)
