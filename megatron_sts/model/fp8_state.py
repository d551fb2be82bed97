"""Transformer Engine's FP8 state: every layer registered before the first step."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.nn import Module

from megatron_sts.parallel.fp8_state import engine_reads_states


def register_fp8_layers(chunks: Iterable[Module], forward: Callable[[], object]) -> None:
    """Let every layer join the buffers of delayed scaling, in order of depth, and leave its state as it was.

    A module joins at its first forward pass, and ranks reduce those buffers by position: were a layer skipped in the
    first step, it would join later than others, on a resumed run in another order. forward: a pass without gradients
    in which every layer runs. Contract: called once, after a saved state was loaded and before the first step.
    """
    with fp8_state_kept(chunks):
        forward()


@contextmanager
def fp8_state_kept(chunks: Iterable[Module]) -> Iterator[None]:
    """Leave the layers' FP8 state as it was: the histories of delayed scaling, which every forward pass moves."""
    modules: list[Any] = [module for chunk in chunks for module in chunk.modules() if hasattr(module, "fp8_meta")]
    saved = [module.get_extra_state() for module in modules]
    yield
    for module, state in zip(modules, saved, strict=True):
        if isinstance(state, Tensor) and state.numel():
            with engine_reads_states():
                module.set_extra_state(state)
        else:
            for key in ("scaling_fwd", "scaling_bwd"):
                if key in module.fp8_meta:
                    module.fp8_meta[key].amax_history.zero_()
