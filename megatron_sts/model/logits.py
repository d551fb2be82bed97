"""The logits of supervised tokens, read on the last stage before the loss takes them apart.

Shapes: s sequence, b micro-batch, V vocabulary, t tensor-parallel ranks, n supervised tokens that this rank holds,
in the order of rows, then of positions.
"""

from typing import Protocol

import torch.distributed as dist
from megatron.core.models.gpt import GPTModel
from torch import Tensor

from megatron_sts.parallel.divergence import vocabulary_parallel_divergence


class LogitsReader(Protocol):
    """Takes in the logits [s, b, V / t] of one micro-batch; leaves them as they are."""

    def read(self, logits: Tensor) -> None:
        """Called once, on the last stage."""
        ...


class ReadableGPTModel(GPTModel):
    """megatron-core's GPTModel, whose logits can be read where they become the loss."""

    reader: LogitsReader | None = None

    def compute_language_model_loss(self, labels: Tensor, logits: Tensor) -> Tensor:
        """labels [b, s], logits [s, b, V / t] -> the loss of each token [b, s]."""
        reader, self.reader = self.reader, None
        if reader is not None:
            reader.read(logits)
        loss: Tensor = super().compute_language_model_loss(labels, logits)
        return loss


class KeptLogits:
    """Keeps the logits of supervised tokens as `rows` [n, V / t]."""

    def __init__(self, supervised: Tensor):
        """supervised: bool [b, s]."""
        self._supervised = supervised
        self.rows: Tensor | None = None

    def read(self, logits: Tensor) -> None:
        """As of LogitsReader; the loss may compute in their place, so that what is kept is a copy."""
        self.rows = logits.transpose(0, 1)[self._supervised]


class Divergence(KeptLogits):
    """Also takes `divergence` [n], the KL divergence from a teacher's predictions to those of supervised tokens."""

    def __init__(self, supervised: Tensor, teacher: Tensor, group: dist.ProcessGroup):
        """teacher: its logits [n, V / t] of the same tokens. group: the tensor-parallel ranks."""
        super().__init__(supervised)
        self._teacher, self._group = teacher, group
        self.divergence: Tensor | None = None

    def read(self, logits: Tensor) -> None:
        """As of LogitsReader."""
        super().read(logits)
        assert self.rows is not None and self.rows.shape == self._teacher.shape
        self.divergence, self.rows = vocabulary_parallel_divergence(self.rows, self._teacher, self._group), None
