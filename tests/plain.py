"""The project as it is where there is no Transformer Engine, in a process that has imported it."""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

from megatron.core import optimizer
from megatron.core.optimizer import clip_grads
from megatron.core.utils import local_multi_tensor_scale

from megatron_sts.model import precision


@contextmanager
def plain() -> Iterator[None]:
    """Plain layers, and torch's optimiser and clipping, which megatron-core chose when it was imported."""
    with (
        patch.object(precision, "has_gpu", lambda: False),
        patch.object(optimizer, "USING_PYTORCH_OPTIMIZER", True),
        patch.object(clip_grads, "multi_tensor_scale_impl", local_multi_tensor_scale),
    ):
        yield
