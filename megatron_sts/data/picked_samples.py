"""Some of the samples that there are, each made when it is asked for."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import overload

import numpy as np

from megatron_sts.data.sample import Sample


@dataclass(frozen=True)
class PickedSamples(Sequence[Sample], ABC):
    """Samples by their numbers among all that there are; a slice makes none of them."""

    numbers: np.ndarray

    @abstractmethod
    def sample(self, number: int) -> Sample:
        """The sample of a number."""

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, position: int) -> Sample: ...
    @overload
    def __getitem__(self, position: slice) -> Sequence[Sample]: ...
    def __getitem__(self, position: int | slice) -> Sample | Sequence[Sample]:
        if isinstance(position, slice):
            return replace(self, numbers=self.numbers[position])
        return self.sample(int(self.numbers[position]))
