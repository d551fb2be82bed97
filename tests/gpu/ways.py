"""The ways to train each stage of LLaVA-1.5 that are timed against each other, by the names that the tables have."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from megatron_sts.config import CompressConfig, SkipConfig, StageConfig

Change = Callable[[StageConfig], StageConfig]


@dataclass(frozen=True)
class Way:
    """setting: name of what is left out. precision: of the products. change: what it makes of the stage."""

    setting: str
    precision: Literal["bf16", "fp8"]
    change: Change

    @property
    def name(self) -> str:
        return f"{self.setting}, {self.precision}"


def _dense(stage: StageConfig) -> StageConfig:
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


def _ways(settings: dict[str, Change], only_fp8: dict[str, Change]) -> tuple[Way, ...]:
    both = [Way(name, precision, change) for precision in ("bf16", "fp8") for name, change in settings.items()]
    return (*both, *(Way(name, "fp8", change) for name, change in only_fp8.items()))


STAGES = {
    "tune": _ways(
        {"dense": _dense, "alpha 0.5": _skipping(0.5, 0.5)},
        # epsilon above 0 would ask for probabilities above 1.
        {"alpha 1.0, 144 tokens": _both(_skipping(1.0, 0.0), _keeping(0.25))},
    ),
    "align": _ways({"dense": _dense, "144 tokens": _keeping(0.25)}, {"36 tokens": _keeping(0.0625)}),
}
"""By stage, the one worth more first: dense and at the paper's rates in both precisions, sparser in FP8."""

LINE = tuple(
    Way(name, "bf16", change)
    for name, change in {
        "dense": _dense,
        **{f"constant {alpha}": _skipping(alpha, 0.0, schedule="constant") for alpha in (0.25, 0.5, 0.75)},
    }.items()
)
"""How the step time follows the layers that run: the same number in every step."""
