"""What the GPU benchmark compares: ways to train each stage of LLaVA-1.5, by the names that its tables have."""

from collections.abc import Callable
from dataclasses import dataclass

from megatron_sts.config import CompressConfig, SkipConfig, StageConfig

Change = Callable[[StageConfig], StageConfig]


@dataclass(frozen=True)
class Part:
    """Settings that are timed in one process, dense among them, step by step in turn.

    plans: steps, spread over the stage; a stage whose plan does not change needs one. repeats: of each.
    """

    stage: str
    settings: dict[str, Change]
    plans: int
    repeats: int


def dense(stage: StageConfig) -> StageConfig:
    """Every layer, every visual token."""
    return stage.model_copy(update={"skip": (), "compress": None})


def _keeping(ratio: float) -> Change:
    compress = CompressConfig(strategy="uniform", keep_ratio=ratio)
    return lambda stage: stage.model_copy(update={"compress": compress})


def _skipping(alpha: float, epsilon: float, **changes: object) -> Change:
    skip = SkipConfig(alpha=alpha, epsilon=epsilon, **changes)
    return lambda stage: stage.model_copy(update={"skip": (skip,)})


def _both(first: Change, second: Change) -> Change:
    return lambda stage: second(first(stage))


PARTS = {
    "align": Part(
        "align",
        {"dense": dense, "288 tokens": _keeping(0.5), "144 tokens": _keeping(0.25), "36 tokens": _keeping(0.0625)},
        plans=1,
        repeats=6,
    ),
    "tune": Part(
        "tune",
        {
            "dense": dense,
            "alpha 0.0": _skipping(0.0, 0.0),
            "alpha 0.5": _skipping(0.5, 0.5),
            # epsilon above 0 would ask for probabilities above 1.
            "alpha 1.0": _skipping(1.0, 0.0),
            "alpha 1.0, 144 tokens": _both(_skipping(1.0, 0.0), _keeping(0.25)),
        },
        plans=6,
        repeats=2,
    ),
    # How the step time follows the layers that run: the same number in every step.
    "linear": Part(
        "tune",
        {"dense": dense}
        | {f"constant {alpha}": _skipping(alpha, 0.0, schedule="constant") for alpha in (0.25, 0.5, 0.75)},
        plans=2,
        repeats=3,
    ),
}
"""By name: the two stages, and the line of the step time against the layers skipped."""
