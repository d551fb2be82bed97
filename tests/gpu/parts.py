"""The parts of tests/gpu/run.sh: what each does, in what time, and which processes it takes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from tests.gpu import checks, first, host, lengths, losses, ranks, repeats, speed, study, waits
from tests.gpu.slot import Slot

Function = Callable[[Slot], None]


@dataclass(frozen=True)
class Job:
    """What one process does.

    timed: it runs in the one process that all timed jobs take in turn, whose kernels are compiled by then.
    environment: of its process; LD_PRELOAD makes it one of its own, that imports all anew.
    """

    run: Function
    timed: bool = False
    environment: Callable[[], Mapping[str, str]] = dict


@dataclass(frozen=True)
class Part:
    """limit: seconds that it may take. jobs: side by side. keep: what is done with what they have left, once they have
    ended or were ended."""

    about: str
    limit: float
    jobs: Mapping[str, Job]
    keep: Function | None = None


def _alone(run: Function) -> dict[str, Job]:
    return {"run": Job(run, timed=True)}


def _each(run: Callable[[Slot, str], None], *names: str) -> dict[str, Job]:
    return {name: Job(partial(run, name=name)) for name in names}


_PRECISIONS = ("bf16", "tensorwise", "delayed", "blockwise")
_WITHOUT_GPU = {"CUDA_VISIBLE_DEVICES": ""}
PARTS = {
    "first": Part(
        "steps in each precision against the CPU's in fp32, skipped, packed, recomputed, saved and resumed",
        100,
        {"cpu": Job(first.on_cpu, environment=lambda: _WITHOUT_GPU), "device": Job(first.on_device, timed=True)},
    ),
    "speed": Part("both stages at 7B shapes: dense, STS, FP8, both, step by step in turn", 150, _alone(speed.speed)),
    "waits": Part("how often the host waits in a step; a step under the profiler", 40, _alone(waits.waits)),
    "losses": Part(
        "FP8 against bf16 over 300 steps of a small model",
        90,
        _each(losses.train_precision, *_PRECISIONS),
        losses.keep,
    ),
    "ranks": Part(
        "two ranks on one GPU against one",
        90,
        {
            "one": Job(ranks.one),
            "rank0": Job(ranks.rank, environment=lambda: ranks.environment(0)),
            "rank1": Job(ranks.rank, environment=lambda: ranks.environment(1)),
        },
        ranks.keep,
    ),
    "host": Part("what a layer costs the host", 40, _alone(host.host)),
    "lengths": Part("what a new sequence length costs", 40, _alone(lengths.lengths)),
    "study": Part("the study of examples/study on real weights", 240, {"run": Job(study.study)}, study.keep),
    "checks": Part(
        "padding, frozen weights, memory over 500 steps, in each precision",
        540,
        _each(checks.check_precision, *_PRECISIONS),
    ),
    "repeats": Part("a run again, and a stopped run resumed, bitwise", 540, _each(repeats.repeat, *_PRECISIONS)),
    "linear": Part("step time against the layers that are skipped", 200, _alone(speed.linear)),
}
"""By name, in order of worth."""

SLOT = (("first",), ("speed",), ("waits",), ("losses", "ranks"), ("host",), ("lengths",), ("study",))
"""What `slot` runs, one after another; those of a group side by side, since no one times them."""
SLOT_SECONDS = 420.0
