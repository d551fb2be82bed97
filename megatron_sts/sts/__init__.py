"""The Sparse Training Scheme as pure functions: no torch, no megatron-core.

schedule.py  skip probabilities p_l(e) and the number of visual tokens kept
plan.py      the StepPlan: what one training step skips and keeps
flops.py     FLOPs per part of the model, dense and executed
"""

from megatron_sts.sts.flops import ModelSizes, StepFlops, step_flops
from megatron_sts.sts.plan import StagePlanner, StepPlan, full_plan
from megatron_sts.sts.schedule import kept_visual_tokens, skip_probabilities, uniform_indices

__all__ = [
    "ModelSizes",
    "StagePlanner",
    "StepFlops",
    "StepPlan",
    "full_plan",
    "kept_visual_tokens",
    "skip_probabilities",
    "step_flops",
    "uniform_indices",
]
