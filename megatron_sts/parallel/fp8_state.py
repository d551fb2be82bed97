"""Transformer Engine's FP8 state as it lies in a checkpoint: bytes, which it reads by plain pickle."""

import io
import pickle
from enum import Enum
from typing import Any

import torch

_RECIPES = "transformer_engine.common.recipe"
_ALLOWED = {
    ("collections", "OrderedDict"),
    ("builtins", "getattr"),
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
        if name == "getattr":
            return enum_member
        if name == "_load_from_bytes":
            return _storage_from_bytes
        return super().find_class(module, name)


def _storage_from_bytes(data: bytes) -> Any:
    """torch's own function of this place reads any pickle."""
    return torch.load(io.BytesIO(data), weights_only=True)


def check_fp8_state(state: bytes) -> None:
    """Read an FP8 state, and let it go; what unpickling raises comes out where it holds anything else.

    Transformer Engine would run what it is told to by these bytes, so they are looked through before it sees them.
    """
    _StateReader(io.BytesIO(state)).load()


def enum_member(of: Any, name: str) -> Enum:
    """All that `getattr` may do: Python before 3.11.4 pickles a member of an Enum as getattr(class, name)."""
    if not (isinstance(of, type) and issubclass(of, Enum)) or name not in of.__members__:
        raise pickle.UnpicklingError(f"refused to load {name} of {of}")
    return of.__members__[name]
