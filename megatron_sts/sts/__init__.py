"""The Sparse Training Scheme as pure functions: no torch, no megatron-core.

schedule.py     skip probabilities p_l(e) and the number of visual tokens kept
independent.py  which layers a step skips: one draw per layer, as in the paper
balanced.py     which layers a step skips: the same number of every group, so that pipeline stages stay even
groups.py       the groups of balanced selection, resolved once per run
compression.py  how many visual tokens a step keeps, and random draws of them
full_steps.py   which steps run all layers and keep all visual tokens
plan.py         the StepPlan: what one training step skips and keeps
flops.py        FLOPs per part of the model, dense and executed
steps.py        how many steps a stage has
lengths.py      the lengths that a stage has had, and how far its schedules are
resume.py       the recipe as the run in output_dir goes on with it
simulation.py   how long a step takes in a pipeline
"""

from megatron_sts.sts.compression import Draws, scored_tokens
from megatron_sts.sts.flops import ModelSizes, StepFlops, step_flops
from megatron_sts.sts.groups import group_sizes, resolve_skip_groups, settled_groups
from megatron_sts.sts.lengths import with_length
from megatron_sts.sts.plan import StagePlanner, StepPlan, full_plan
from megatron_sts.sts.resume import ResumedRecipe, resume_recipe
from megatron_sts.sts.schedule import kept_visual_tokens, skip_probabilities, uniform_indices
from megatron_sts.sts.simulation import PipelineSchedule, StepTime
from megatron_sts.sts.steps import check_sample_count, held_out_share, stage_steps, trained_samples

__all__ = [
    "Draws",
    "ModelSizes",
    "PipelineSchedule",
    "ResumedRecipe",
    "StagePlanner",
    "StepFlops",
    "StepPlan",
    "StepTime",
    "check_sample_count",
    "full_plan",
    "group_sizes",
    "held_out_share",
    "kept_visual_tokens",
    "resolve_skip_groups",
    "resume_recipe",
    "scored_tokens",
    "settled_groups",
    "skip_probabilities",
    "stage_steps",
    "step_flops",
    "trained_samples",
    "uniform_indices",
    "with_length",
]
