"""The recipe's keys of the layout."""

from itertools import accumulate
from typing import Literal

from pydantic import Field

from megatron_sts.config.architecture import ConfigModel


class ParallelConfig(ConfigModel):
    """How the model is spread over the ranks; data parallel is what is left of them."""

    tensor: int = Field(default=1, ge=1)
    """Tensor parallel ranks."""
    pipeline: int = Field(default=1, ge=1)
    """Pipeline stages."""
    virtual_pipeline: int = Field(default=1, ge=1)
    """Model chunks on each pipeline stage (interleaved schedule); 1: not interleaved."""
    context: int = Field(default=1, ge=1)
    """Context parallel ranks."""
    sequence_parallel: bool = False
    """Whether activations between the tensor-parallel parts are split along the sequence."""
    layers_per_stage: tuple[int, ...] | None = None
    """Layers of every virtual stage in order of depth; None: an even split."""
    overlap_grad_reduce: bool | None = None
    """Whether gradients are reduced over the data-parallel ranks, bucket by bucket, while the backward pass runs; None:
    on GPUs. It changes no number."""
    overlap_param_gather: bool | None = None
    """Whether the distributed optimiser's weights are gathered while the next forward pass runs; None: on GPUs where
    gradients are reduced so. It changes no number."""
    grad_reduce_dtype: Literal["fp32", "bf16"] = "fp32"
    """What gradients are added up in, over micro-batches and data-parallel ranks, where weights are bf16; bf16 halves
    their memory and what is sent, and rounds each sum."""
    bucket_parameters: int | None = Field(default=None, ge=1)
    """Least parameters of a gradient bucket under overlap_grad_reduce; None: megatron-core's own choice."""
    timeout_minutes: float = Field(default=10.0, gt=0)
    """How long a rank waits for another, in minutes, before the run ends: for one that was lost, for rank 0 while it
    measures the data, for the slowest writer of a checkpoint."""

    def layers_of_stages(self, layers: int) -> list[range]:
        """Layers (0-based) of each virtual stage, in order of depth.

        Virtual stage i lives on pipeline rank i % pipeline as its chunk i // pipeline, as in megatron-core.
        """
        stages = self.pipeline * self.virtual_pipeline
        counts = self.layers_per_stage or (layers // stages,) * stages
        assert len(counts) == stages and sum(counts) == layers
        ends = list(accumulate(counts))
        return [range(end - count, end) for count, end in zip(counts, ends, strict=True)]
