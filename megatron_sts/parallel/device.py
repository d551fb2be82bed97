"""The device that training runs on, and the one file that adapts megatron-core to a machine without a GPU.

megatron-core calls torch.cuda directly at a few places. On a CPU those calls are pointed at their CPU
counterpart here, once, before anything is built; nowhere else does this project patch a library. Each patch says
which code of megatron-core needs it. On a GPU nothing is patched.
"""

import contextlib
import functools
import logging
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import torch

from megatron_sts.errors import ConfigError

T = TypeVar("T")

_FACTORIES = (
    "zeros",
    "ones",
    "tensor",
    "empty",
    "full",
    "arange",
    "zeros_like",
    "ones_like",
    "empty_like",
    "full_like",
)


def has_gpu() -> bool:
    """Whether this machine offers a CUDA device."""
    return torch.cuda.is_available()


def prepare_device() -> torch.device:
    """Choose this process's device and make megatron-core work on it.

    The GPU named by LOCAL_RANK where there is one, else the CPU. May be called again. Raises ConfigError where there
    are more ranks than GPUs; with MEGATRON_STS_SHARE_GPU=1 in the environment they share them.
    """
    if has_gpu():
        local_rank, devices = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if local_rank >= devices and os.environ.get("MEGATRON_STS_SHARE_GPU") != "1":
            raise ConfigError(
                f"LOCAL_RANK is {local_rank}, but this machine offers {devices} GPU(s); start at most {devices} "
                "rank(s) on it (--nproc-per-node, CUDA_VISIBLE_DEVICES)"
            )
        device = torch.device("cuda", local_rank % devices)
        torch.cuda.set_device(device)
        return device
    _adapt_megatron_core_to_cpu()
    return torch.device("cpu")


def compute_fp32_in_full() -> None:
    """Have fp32 products and convolutions of this process keep all bits of their numbers.

    torch takes TF32 for convolutions by itself, and NVIDIA's images set it for products by an environment variable.
    """
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


def backend() -> str:
    """The collective backend that goes with the device."""
    return "nccl" if has_gpu() else "gloo"


def device_name() -> str:
    """The model of the device, for a table of measurements."""
    return torch.cuda.get_device_name() if has_gpu() else f"CPU, {torch.get_num_threads()} thread(s) a rank"


def synchronize() -> None:
    """Wait for what the device was given to do."""
    if has_gpu():
        torch.cuda.synchronize()


def to_device(values: torch.Tensor, device: torch.device | int) -> torch.Tensor:
    """A tensor of the CPU on the device, without waiting for it: a GPU copies from pinned memory by itself."""
    return (values.pin_memory() if has_gpu() else values).to(device, non_blocking=True)


class SideStream:
    """Work for the device beside what the main thread gives it; on a CPU it is done at once."""

    def __init__(self) -> None:
        self._stream = torch.cuda.Stream() if has_gpu() else None
        self._device = torch.cuda.current_device()

    def do(self, work: Callable[[], T]) -> T:
        """What `work`, which may copy to the device, returns; on any thread."""
        if self._stream is None:
            return work()
        # Each thread has a current device of its own.
        torch.cuda.set_device(self._device)
        with torch.cuda.stream(self._stream):
            return work()

    def join(self, tensors: Iterable[torch.Tensor]) -> None:
        """Have the main thread's stream begin with these tensors when `do` has made them; the host does not wait."""
        if self._stream is None:
            return
        main = torch.cuda.current_stream()
        main.wait_stream(self._stream)
        for tensor in tensors:
            if tensor.is_cuda:
                # Its memory is not given to others before the main stream is done with it.
                tensor.record_stream(main)


def reset_peak_memory() -> None:
    """Let `peak_memory_bytes` begin anew. Does nothing on a CPU whose kernel does not offer it (outside Linux)."""
    if has_gpu():
        torch.cuda.reset_peak_memory_stats()
        return
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory_bytes() -> int:
    """The most memory that this process has held: on the GPU by torch's allocator, on a CPU the resident set."""
    if has_gpu():
        return torch.cuda.max_memory_allocated()
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _adapt_megatron_core_to_cpu() -> None:
    if getattr(torch.cuda.current_device, "megatron_sts_cpu", False):
        return
    cpu = torch.device("cpu")

    def current_device() -> torch.device:
        return cpu

    current_device.megatron_sts_cpu = True  # type: ignore[attr-defined]
    # Gradient buffers, receive buffers, tensor-parallel layers, the distributed optimizer.
    torch.cuda.current_device = current_device  # type: ignore[assignment]
    # p2p_communication after batched transfers, the checkpoint writer before it reads tensors.
    torch.cuda.synchronize = lambda device=None: None
    # From 0.19 on: param_and_grad_buffer before it reduces gradients, which a replayed CUDA graph may still be writing.
    torch.cuda.current_stream = lambda device=None: IdleStream()  # type: ignore[assignment, return-value]
    _adapt_random_state()
    with cpu:
        # The first use of a device context notes which functions are factories; it must meet torch's own, or
        # `with torch.device("meta")`, by which transformers loads weights, would pass them over.
        torch.empty(0)
    for name in _FACTORIES:
        setattr(torch, name, _on_cpu(getattr(torch, name)))
    # language_module moves tied embeddings, tensor_parallel/data its batches.
    torch.Tensor.cuda = lambda self, *args, **kwargs: self  # type: ignore[method-assign]
    torch.nn.Module.cuda = lambda self, *args, **kwargs: self  # type: ignore[method-assign]
    _adapt_type_names()


class IdleStream:
    """A stream, or an event, of a machine without a GPU: whatever it was given is done."""

    def wait_event(self, event: Any) -> None:
        """Nothing is waited for."""

    def wait_stream(self, stream: Any) -> None:
        """Nothing is waited for."""

    def record_event(self, event: Any = None) -> None:
        """Nothing is recorded."""


def _adapt_random_state() -> None:
    """tensor_parallel/random.py keeps the GPU's random state; here the CPU's default generator stands in."""
    import megatron.core.tensor_parallel.random as megatron_random

    def get_state(*args: Any, **kwargs: Any) -> torch.Tensor:
        return torch.default_generator.get_state()

    def set_state(state: torch.Tensor, *args: Any, **kwargs: Any) -> None:
        torch.default_generator.set_state(state)

    torch.cuda.get_rng_state = get_state
    torch.cuda.set_rng_state = set_state  # type: ignore[assignment]
    # torch.manual_seed would call back into torch.cuda.manual_seed.
    torch.cuda.manual_seed = lambda seed: torch.default_generator.manual_seed(seed)  # type: ignore[assignment]
    megatron_random._get_cuda_rng_state = get_state
    megatron_random._set_cuda_rng_state = set_state
    if not megatron_random.HAVE_TE:
        # CheckpointWithoutOutput asks whether FP8 is on, by names that it has of Transformer Engine alone.
        megatron_random.FP8GlobalStateManager = _NoFp8
        megatron_random.activation_recompute_forward = _nothing
        megatron_random.fp8_autocast = _nothing
    # It warns that the CPU's state changed, which here is the point.
    logging.getLogger(megatron_random.__name__).setLevel(logging.ERROR)


class _NoFp8:
    """Transformer Engine's FP8GlobalStateManager, where there is none."""

    @staticmethod
    def is_fp8_enabled() -> bool:
        return False


def _nothing(**_: Any) -> contextlib.nullcontext[None]:
    return contextlib.nullcontext()


def _on_cpu(factory: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """A tensor factory that reads device="cuda" as the CPU and does not pin (schedules, clip_grads, optimizer)."""

    @functools.wraps(factory)
    def wrapped(*args: Any, **kwargs: Any) -> torch.Tensor:
        device = kwargs.get("device")
        if device is not None and str(device).startswith("cuda"):
            kwargs["device"] = "cpu"
        if "pin_memory" in kwargs:
            kwargs.pop("pin_memory")
        return factory(*args, **kwargs)

    return wrapped


def _adapt_type_names() -> None:
    """clip_grads and the optimizers tell dtypes apart by the names "torch.cuda.*Tensor"."""
    original = torch.Tensor.type

    def type_name(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        result = original(self, *args, **kwargs)
        if not args and not kwargs:
            return result.replace("torch.", "torch.cuda.", 1)
        return result

    torch.Tensor.type = type_name  # type: ignore[assignment, method-assign]
