"""What a checkpoint says of its optimiser beside the tensors, in the form of today and in those of earlier versions."""

from dataclasses import dataclass
from typing import Any, Self

from megatron_sts.train.optimizer_state import MASTER_WEIGHT


@dataclass(frozen=True)
class SavedOptimizer:
    """updates: how many times it had updated. master_weight: what its keys call a weight in fp32."""

    updates: int
    master_weight: str

    @classmethod
    def of(cls, common: dict[str, Any], step: int) -> Self:
        """From what the ranks have in common in a checkpoint of `step` steps.

        Earlier versions saved by megatron-core: the moments are where they are today, the count of updates in a common
        step or with each group of parameters, and of the distributed optimiser the weights under another name.
        """
        saved = common.get("optimizer", {})
        if "updates" in saved:
            return cls(int(saved["updates"]), MASTER_WEIGHT)
        inner = saved.get("optimizer", saved)
        counts = [
            inner.get("state", {}).get("common_step"),
            *(group.get("step") for group in inner.get("param_groups", ())),
        ]
        return cls(
            next((int(count) for count in counts if count is not None), step),
            "param" if saved.get("param_state_sharding_type") == "fully_reshardable" else MASTER_WEIGHT,
        )
