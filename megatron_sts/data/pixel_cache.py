"""Keeps decoded pictures in memory, up to a bound."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor


class PixelCache:
    """Holds the first pictures that fit `capacity_bytes`; 0 holds none.

    Nothing is thrown out again: an epoch passes every picture once, so the one thrown out would be as likely
    to be needed next as the one let in.
    """

    def __init__(self, capacity_bytes: int) -> None:
        self._room = capacity_bytes
        # Arrays, not tensors: a tensor sent to another process stays in shared memory while it is held here.
        self._pictures: dict[str, np.ndarray] = {}

    def get(self, path: str, read: Callable[[str], Tensor]) -> Tensor:
        """The picture of `path`, from memory or through `read`; always a tensor of the caller's own."""
        held = self._pictures.get(path)
        if held is not None:
            return torch.from_numpy(held.copy())
        pixels = read(path)
        if pixels.nbytes <= self._room:
            self._room -= pixels.nbytes
            self._pictures[path] = pixels.numpy().copy()
        return pixels
