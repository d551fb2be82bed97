"""Shows that a state is let through only where it is FP8 state. The recipe's class stands for Transformer Engine's."""

import dataclasses
import os
import pickle
import sys
from types import ModuleType

import pytest
import torch

from megatron_sts.parallel.fp8_state import check_fp8_state, engine_reads_states


@dataclasses.dataclass
class DelayedScaling:
    margin: int = 0


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
    check_fp8_state(pickle.dumps(state))


class Canary:
    def __init__(self, path: str):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_code_in_a_state_is_refused_and_not_run(tmp_path):
    path = tmp_path / "canary"
    with pytest.raises(pickle.UnpicklingError, match=r"posix.mkdir"):
        check_fp8_state(pickle.dumps({"recipe": Canary(str(path))}))
    assert not path.exists()


class InsideStorage:
    """A pickle inside the bytes of a storage."""

    def __init__(self, path: str):
        self.path = path

    def __reduce__(self):
        return torch.storage._load_from_bytes, (pickle.dumps(Canary(self.path)),)


def test_code_in_the_bytes_of_a_tensor_is_not_run_either(tmp_path):
    path = tmp_path / "canary"
    with pytest.raises(pickle.UnpicklingError):
        check_fp8_state(pickle.dumps({"scale_fwd": InsideStorage(str(path))}))
    assert not path.exists()


@pytest.mark.parametrize("before", [None, "0"])
def test_transformer_engine_is_allowed_to_unpickle_only_meanwhile(monkeypatch, before):
    variable = "NVTE_ALLOW_UNSAFE_PICKLE_EXTRA_STATE"
    monkeypatch.delenv(variable, raising=False)
    if before is not None:
        monkeypatch.setenv(variable, before)
    with engine_reads_states():
        assert os.environ[variable] == "1"
    assert os.environ.get(variable) == before
