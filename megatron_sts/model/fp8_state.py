"""Transformer Engine's FP8 state: every layer registered before the first step, and states read without trust."""

import io
import pickle
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from megatron_sts.errors import CheckpointError

_RECIPES = "transformer_engine.common.recipe"
_ALLOWED = {
    ("collections", "OrderedDict"),
    ("torch._utils", "_rebuild_tensor_v2"),
    ("torch.storage", "_load_from_bytes"),
    *((_RECIPES, name) for name in ("DelayedScaling", "Float8CurrentScaling", "Float8BlockScaling")),
    *((_RECIPES, name) for name in ("Format", "_FormatHelper", "MMParams", "QParams")),
}
"""What the state of a linear layer is pickled from: a recipe, and of delayed scaling its tensors."""


class _StateReader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it refers to {module}.{name}")
        if name == "_load_from_bytes":
            return _storage_from_bytes
        return super().find_class(module, name)


def _storage_from_bytes(data: bytes) -> Any:
    """torch's own function of this place reads any pickle."""
    return torch.load(io.BytesIO(data), weights_only=True)


def check_states(states: dict[str, Any]) -> None:
    """Raise CheckpointError where a module's extra state holds anything but FP8 state.

    states: a loaded state dict. Transformer Engine reads the bytes of `_extra_state` with plain pickle, which runs
    what it is told to, so they are looked through before they reach a module.
    """
    for name, state in states.items():
        if not name.endswith("_extra_state") or not isinstance(state, Tensor) or state.numel() == 0:
            continue
        try:
            _StateReader(io.BytesIO(state.detach().cpu().numpy().tobytes())).load()
        except Exception as error:
            raise CheckpointError(
                f"{name} of the checkpoint is not Transformer Engine's FP8 state ({error}) and is not read; "
                "use another checkpoint"
            ) from error


def register_fp8_layers(chunks: Iterable[Module], forward: Callable[[], object]) -> None:
    """Let every layer join the buffers of delayed scaling, in order of depth, and leave its state as it was.

    A module joins at its first forward pass, and ranks reduce those buffers by position: were a layer skipped in the
    first step, it would join later than others, on a resumed run in another order. forward: a pass without gradients
    in which every layer runs. Contract: called once, after a saved state was loaded and before the first step.
    """
    modules: list[Any] = [module for chunk in chunks for module in chunk.modules() if hasattr(module, "fp8_meta")]
    saved = [module.get_extra_state() for module in modules]
    forward()
    for module, state in zip(modules, saved, strict=True):
        if isinstance(state, Tensor) and state.numel():
            module.set_extra_state(state)
        else:
            for key in ("scaling_fwd", "scaling_bwd"):
                if key in module.fp8_meta:
                    module.fp8_meta[key].amax_history.zero_()
