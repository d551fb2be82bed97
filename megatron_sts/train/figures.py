"""The figures of one training step, as metrics.jsonl has them."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class StepFigures:
    """One line of metrics.jsonl.

    step: 1-based, steps done. tokens_per_second: positions of the global batch that are not padding, per second.
    data_wait_s: of step_time_s, for samples, of the rank that waited longest. save_stall_s: of step_time_s, for
    checkpoints that were begun or finished since the step before.
    visual_tokens_kept, visual_tokens_total: over the global batch. layers_skipped: 0-based layer numbers.
    layers_skipped_for_visual: those that ran, but their MLP for text alone.
    flops_dense: of the same samples with every layer and every visual token. dropped_step: nothing was updated.
    distill_loss: in a step that distills, the mean KL divergence of a supervised token from the sparse plan's
    predictions, in nats, without its weight; None in the others.
    validation_loss: of held-out samples after the step, with all layers and visual tokens; validation_loss_sparse:
    under the step's own plan. None where they were not measured, or the plan was dense.
    """

    stage: str
    step: int
    loss: float
    grad_norm: float
    learning_rate: float
    step_time_s: float
    data_wait_s: float
    save_stall_s: float
    tokens_per_second: float
    sequence_length: int
    visual_tokens_kept: int
    visual_tokens_total: int
    layers_skipped: list[int]
    layers_skipped_for_visual: list[int]
    flops_dense: float
    flops_executed: float
    dropped_step: bool
    distill_loss: float | None = None
    validation_loss: float | None = None
    validation_loss_sparse: float | None = None

    def record(self) -> dict[str, Any]:
        """Plain values under the fixed keys."""
        return asdict(self)

    def scalars(self) -> dict[str, float]:
        """The figures a plotting service takes: numbers only."""
        numbers = {name: value for name, value in self.record().items() if isinstance(value, int | float)}
        return {name: float(value) for name, value in numbers.items() if name != "step"} | {
            "layers_skipped": float(len(self.layers_skipped)),
            "layers_skipped_for_visual": float(len(self.layers_skipped_for_visual)),
            "flops_saved": 1.0 - self.flops_executed / self.flops_dense,
        }
