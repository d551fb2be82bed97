"""Transformer Engine's FP8 state as it lies in a checkpoint: bytes, which it reads by plain pickle."""

import io
import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from typing import Any

import torch

_RECIPES = "transformer_engine.common.recipe"
_ALLOWED = {
    ("collections", "OrderedDict"),
    ("builtins", "getattr"),
    ("torch._utils", "_rebuild_tensor_v2"),
    ("torch.storage", "_load_from_bytes"),
    ("megatron.core.safe_globals", "safe_load_from_bytes"),
    *((_RECIPES, name) for name in ("DelayedScaling", "Float8CurrentScaling", "Float8BlockScaling")),
    *((_RECIPES, name) for name in ("Format", "_FormatHelper", "MMParams", "QParams")),
}
"""What the state of a linear layer is pickled from: a recipe, and of delayed scaling its tensors."""
_UNPICKLES = "NVTE_ALLOW_UNSAFE_PICKLE_EXTRA_STATE"
"""Without it Transformer Engine refuses the state of delayed scaling, from 2.16 on."""


class _StateReader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it refers to {module}.{name}")
        if name == "getattr":
            return enum_member
        if name in ("_load_from_bytes", "safe_load_from_bytes"):
            return _storage_from_bytes
        return super().find_class(module, name)


def _storage_from_bytes(data: bytes) -> Any:
    """torch's own function of this place reads any pickle; from 0.17 on megatron-core puts one like this there."""
    return torch.load(io.BytesIO(data), weights_only=True)


def check_fp8_state(state: bytes) -> None:
    """Read an FP8 state, and let it go; what unpickling raises comes out where it holds anything else.

    Transformer Engine would run what it is told to by these bytes, so they are looked through before it sees them.
    """
    _StateReader(io.BytesIO(state)).load()


@contextmanager
def engine_reads_states() -> Iterator[None]:
    """Let Transformer Engine read pickled FP8 states. For none but what `check_fp8_state` let through, or is ours."""
    before = os.environ.get(_UNPICKLES)
    os.environ[_UNPICKLES] = "1"
    try:
        yield
    finally:
        del os.environ[_UNPICKLES]
        if before is not None:
            os.environ[_UNPICKLES] = before


def enum_member(of: Any, name: str) -> Enum:
    """All that `getattr` may do: Python before 3.11.4 pickles a member of an Enum as getattr(class, name)."""
    if not (isinstance(of, type) and issubclass(of, Enum)) or name not in of.__members__:
        raise pickle.UnpicklingError(f"refused to load {name} of {of}")
    return of.__members__[name]
