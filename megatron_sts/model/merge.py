"""Which visual tokens land on which rows of this rank's sequence chunk, and their merge into the text.

Shapes: s the chunk's length, b micro-batch, h hidden size, n images, k visual tokens kept per image.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_sts.parallel.chunk import places_in
from megatron_sts.parallel.device import to_device


@dataclass(frozen=True)
class VisualRows:
    """Visual tokens of one chunk, one entry each: where a token comes from and where it goes.

    image, slot: index of the image in the micro-batch and of the token among those that the image keeps.
    position, row: index in the chunk and in the micro-batch. All on the CPU.
    """

    image: Tensor
    slot: Tensor
    position: Tensor
    row: Tensor


def visual_rows(
    image_rows: Tensor, image_starts: Tensor, visual_tokens: int, ranges: tuple[tuple[int, int], ...]
) -> VisualRows:
    """The visual tokens, `visual_tokens` of each image, whose position lies in one of the ranges [start, end).

    The ranges ascend, and follow one another in the chunk.
    image_rows, image_starts [n]: each image's row in the micro-batch and the position of its first slot.
    """
    slots = image_starts[:, None] + torch.arange(visual_tokens, device=image_rows.device)
    in_chunk = places_in(ranges, slots)
    image, slot = (in_chunk >= 0).nonzero(as_tuple=True)
    return VisualRows(image, slot, in_chunk[image, slot], image_rows[image])


def merge(text: Tensor, visual: Tensor, rows: VisualRows) -> Tensor:
    """Write visual embeddings [v, h] over their slots in the text embeddings [s, b, h]; returns a new tensor."""
    places = tuple(to_device(index, text.device) for index in (rows.position, rows.row))
    return text.index_put(places, visual.to(text.dtype))
