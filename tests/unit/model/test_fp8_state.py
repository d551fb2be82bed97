"""Shows that a state is read only where it is FP8 state, and that registering leaves scales and histories alone.

The modules here stand for Transformer Engine's, with its attributes; no FP8 product runs.
"""

import dataclasses
import os
import pickle
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from megatron_sts.errors import CheckpointError
from megatron_sts.model.fp8_state import check_states, register_fp8_layers


@dataclasses.dataclass
class DelayedScaling:
    margin: int = 0


def as_bytes(state) -> torch.Tensor:
    return torch.frombuffer(bytearray(pickle.dumps(state)), dtype=torch.uint8)


@pytest.fixture
def recipe(monkeypatch):
    name = "transformer_engine.common.recipe"
    module = ModuleType(name)
    monkeypatch.setattr(DelayedScaling, "__module__", name)
    module.DelayedScaling = DelayedScaling
    for parent in ("transformer_engine", "transformer_engine.common"):
        monkeypatch.setitem(sys.modules, parent, ModuleType(parent))
    monkeypatch.setitem(sys.modules, name, module)
    return DelayedScaling()


def test_a_state_of_delayed_scaling_is_read(recipe):
    state = {"recipe": recipe, "scale_fwd": torch.ones(3), "extra_fp8_variables": {"num_gemms": 1}}
    check_states({"linear._extra_state": as_bytes(state), "linear.weight": torch.ones(2)})


def test_no_state_is_a_state():
    check_states({"a._extra_state": torch.empty(0, dtype=torch.uint8), "b._extra_state": None, "c._extra_state": b""})


class Canary:
    def __init__(self, path: str):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_code_in_a_state_is_refused_and_not_run(tmp_path):
    path = tmp_path / "canary"
    with pytest.raises(CheckpointError, match=r"layers.0.linear_fc1._extra_state .*posix.mkdir"):
        check_states({"layers.0.linear_fc1._extra_state": as_bytes({"recipe": Canary(str(path))})})
    assert not path.exists()


class InsideStorage:
    """A pickle inside the bytes of a storage."""

    def __init__(self, path: str):
        self.path = path

    def __reduce__(self):
        return torch.storage._load_from_bytes, (pickle.dumps(Canary(self.path)),)


def test_code_in_the_bytes_of_a_tensor_is_not_run_either(tmp_path):
    path = tmp_path / "canary"
    with pytest.raises(CheckpointError):
        check_states({"linear._extra_state": as_bytes({"scale_fwd": InsideStorage(str(path))})})
    assert not path.exists()


class Scaled(torch.nn.Module):
    """Has a state only where one was loaded, as Transformer Engine's modules before their first forward pass."""

    def __init__(self, loaded: float | None):
        super().__init__()
        self.loaded = loaded
        history = torch.full((2, 3), loaded or 0.0)
        self.fp8_meta = {"scaling_fwd": SimpleNamespace(amax_history=history)}

    def forward(self) -> None:
        self.fp8_meta["scaling_fwd"].amax_history[0] = 9.0

    def get_extra_state(self) -> torch.Tensor:
        if self.loaded is None:
            return torch.empty(0, dtype=torch.uint8)
        return self.fp8_meta["scaling_fwd"].amax_history.clone()

    def set_extra_state(self, state: torch.Tensor) -> None:
        self.fp8_meta["scaling_fwd"].amax_history.copy_(state)


def test_registering_runs_every_layer_and_leaves_no_trace():
    fresh, resumed = Scaled(None), Scaled(5.0)
    ran = []

    def forward() -> None:
        for module in (fresh, resumed):
            module()
            ran.append(float(module.fp8_meta["scaling_fwd"].amax_history.max()))

    register_fp8_layers([torch.nn.ModuleList([fresh, torch.nn.Identity(), resumed])], forward)
    assert ran == [9.0, 9.0]
    assert torch.equal(fresh.fp8_meta["scaling_fwd"].amax_history, torch.zeros(2, 3))
    assert torch.equal(resumed.fp8_meta["scaling_fwd"].amax_history, torch.full((2, 3), 5.0))
