"""Keeps decoded pictures in memory, up to a bound."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from megatron_sts.data.embedded_image import EmbeddedImage
from megatron_sts.data.sample import Picture


class PixelCache:
    """Holds the first pictures that fit `capacity_bytes`; 0 holds none.

    Nothing is thrown out again: an epoch passes every picture once, so the one thrown out would be as likely
    to be needed next as the one let in.
    """

    def __init__(self, capacity_bytes: int) -> None:
        self._room = capacity_bytes
        # Arrays, not tensors: a tensor sent to another process stays in shared memory while it is held here.
        self._pictures: dict[Picture | bytes, tuple[np.ndarray, torch.dtype]] = {}

    def get(self, picture: Picture, read: Callable[[Picture], Tensor]) -> Tensor:
        """The pixels of a picture, from memory or through `read`; always a tensor of the caller's own."""
        # The bytes of an image inside a record would otherwise stay in memory beside its pixels.
        name = picture.digest if isinstance(picture, EmbeddedImage) else picture
        held = self._pictures.get(name)
        if held is not None:
            # As bytes: numpy has no bf16.
            return torch.from_numpy(held[0].copy()).view(held[1])
        pixels = read(picture)
        if pixels.nbytes <= self._room:
            self._room -= pixels.nbytes
            self._pictures[name] = pixels.view(torch.uint8).numpy().copy(), pixels.dtype
        return pixels
