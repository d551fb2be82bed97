"""What ran on the device under torch's profiler, by name and by kind; on a CPU operators take the kernels' place."""

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from megatron_sts.parallel.device import has_gpu

# The first that fits counts: attention kernels are built from products too, and products from copies.
KINDS = {
    "communication": r"nccl",
    "attention": r"flash|fmha|sdpa|fused_attn|scaled_dot_product",
    "sums within a product": r"splitk.?reduce",
    "matrix product": r"gemm|nvjet|xmma|cutlass|^aten::(mm|addmm|bmm)$",
    "optimiser": r"multi_tensor|adam",
    "norm": r"rms_?norm|layer_?norm|rmsnorm|ln_(fwd|bwd)",
    "cast and transpose": r"cast|quantize|transpose|amax",
    "loss": r"softmax|cross_entropy|nll",
    "copy": r"memcpy|memset|copy_",
}


@dataclass(frozen=True)
class Kernel:
    """A kernel, or on a CPU an operator: how often it ran, and its seconds together."""

    name: str
    count: int
    seconds: float

    @property
    def kind(self) -> str:
        """Of KINDS; else other."""
        return next((kind for kind, words in KINDS.items() if re.search(words, self.name, re.IGNORECASE)), "other")


def activities() -> list[ProfilerActivity]:
    """What to record on this machine."""
    return [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if has_gpu() else [])]


def kernels_of(recorded: profile) -> list[Kernel]:
    """The kernels of a profile, the longest first."""
    on_gpu = has_gpu()
    found: dict[str, list[float]] = defaultdict(list)
    for event in recorded.events():
        if on_gpu and event.device_type == DeviceType.CUDA and not event.is_user_annotation:
            found[event.name].append(event.time_range.elapsed_us() / 1e6)
        elif not on_gpu:
            found[event.name].append(event.self_cpu_time_total / 1e6)
    kernels = [Kernel(name, len(times), sum(times)) for name, times in found.items()]
    return sorted(kernels, key=lambda kernel: -kernel.seconds)


def products(kernels: Iterable[Kernel]) -> int:
    """How many matrix products ran."""
    return sum(kernel.count for kernel in kernels if kernel.kind == "matrix product")


def synchronisations(recorded: profile) -> int:
    """How often the host waited for the device; on a CPU how often it read a number, for which it would."""
    waiting = r"^cuda(Device|Stream|Event)Synchronize$" if has_gpu() else r"^aten::_local_scalar_dense$"
    return sum(1 for event in recorded.events() if re.search(waiting, event.name))


def times_text(title: str, kernels: list[Kernel], seconds: float, shown: int = 40) -> str:
    """A table of a step of `seconds`: by kind, what was left idle, and the longest by name."""
    by_kind: dict[str, float] = defaultdict(float)
    for kernel in kernels:
        by_kind[kernel.kind] += kernel.seconds
    lines = [title, ""]
    for kind, spent in sorted(by_kind.items(), key=lambda item: -item[1]):
        lines.append(f"{spent:>10.4f} s {spent / seconds:>7.1%}  {kind}")
    idle = seconds - sum(by_kind.values())
    lines += [f"{idle:>10.4f} s {idle / seconds:>7.1%}  nothing (kernels that overlap count twice: below 0)", ""]
    lines += [f"{kernel.seconds:>10.4f} s {kernel.count:>7}  {kernel.name[:160]}" for kernel in kernels[:shown]]
    return "\n".join(lines)
