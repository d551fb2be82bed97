"""Makes Transformer Engine importable without a GPU, over the reference kernels, and this project take it for usable.

Called once, at the start of a process, before megatron-core is imported: what it finds decides what it offers.
"""

import importlib
import os
import sys
from contextlib import nullcontext
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import torch
import torch.distributed as dist

from megatron_sts.parallel.device import IdleStream
from tests.reference_kernels.extension import make_extension

_TRITON = ("triton", "triton.language", "triton.language.core", "triton.language.standard")


def install() -> None:
    """From here on `transformer_engine.pytorch` can be imported, on a device that says it is a Hopper."""
    _answer_as_hopper()
    _import_engine()
    _take_for_usable()


def _answer_as_hopper() -> None:
    properties = SimpleNamespace(major=9, minor=0, multi_processor_count=132, name="reference kernels")
    cuda: Any = torch.cuda
    cuda.get_device_properties = lambda device=None: properties
    cuda.get_device_capability = lambda device=None: (9, 0)
    cuda.is_current_stream_capturing = lambda: False
    torch.version.cuda = "13.0"
    # Streams and events order work that here is done at once.
    cuda.Stream = cuda.Event = IdleStream
    cuda.current_stream = lambda device=None: IdleStream()
    cuda.stream = lambda stream: nullcontext()
    # From 2.14 on torch's optimisers ask it of a machine with a GPU.
    optimizer: Any = torch.optim.Optimizer
    optimizer._accelerator_graph_capture_health_check = lambda self: None
    # gloo has no call that sends several tensors as one; without a device they are sent one by one.
    together = dist._coalescing_manager
    dist._coalescing_manager = lambda group=None, device=None, async_ops=False: together(group, None, async_ops)  # type: ignore[attr-defined]
    # In a backward pass, a transfer of gloo's that is waited for long after it was done has been seen to wait for ever.
    exchange = dist.batch_isend_irecv
    dist.batch_isend_irecv = lambda operations: [work for work in exchange(operations) if not work.wait()]


def _import_engine() -> None:
    # torch uses triton where it finds it, and must have looked before.
    importlib.import_module("torch._dynamo")
    # Of these only names are met while modules are loaded.
    names = (*_TRITON, "onnx", "onnxscript")
    sys.modules |= {name: MagicMock(name=name, __version__="3.0.0") for name in names}
    sys.modules["transformer_engine_torch"] = make_extension()
    # It would load its libraries for CUDA else.
    os.environ["NVTE_PROJECT_BUILDING"] = "1"
    os.environ["NVTE_TORCH_COMPILE"] = "0"
    spec = importlib.util.find_spec("transformer_engine")
    assert spec is not None and spec.submodule_search_locations is not None
    # Its own __init__ imports all at once: its loader of compiled halves is replaced before.
    package = ModuleType("transformer_engine")
    package.__path__ = list(spec.submodule_search_locations)
    sys.modules["transformer_engine"] = package
    common = importlib.import_module("transformer_engine.common")
    common.load_framework_extension = lambda framework: None  # type: ignore[attr-defined]
    del sys.modules["transformer_engine"]
    engine = importlib.import_module("transformer_engine")
    engine.common = common  # type: ignore[attr-defined]
    # Recomputation keeps the state of the GPU's random numbers, of which there are none.
    recomputing: Any = importlib.import_module("transformer_engine.pytorch.distributed")
    recomputing._get_cuda_rng_state = lambda *args, **kwargs: torch.default_generator.get_state()
    recomputing._set_cuda_rng_state = lambda state, *args, **kwargs: torch.default_generator.set_state(state)
    for name in names:
        del sys.modules[name]


def _take_for_usable() -> None:
    from megatron_sts.parallel import device

    device.prepare_device()
    # Transformer Engine asks for it when its layers run; this project's own question stays answered as before.
    without_gpu = torch.cuda.is_available
    torch.cuda.is_available = lambda: True
    torch.Tensor.is_cuda = True  # type: ignore[assignment, misc]
    device.has_gpu = without_gpu
    from megatron_sts.model import precision

    precision.has_gpu = lambda: True
