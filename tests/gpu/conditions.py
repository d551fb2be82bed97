"""What a GPU check needs of the machine."""

import os

import pytest
import torch

from megatron_sts.model.precision import Machine

_HERE = Machine.here()
on_gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")]
needs_fp8 = pytest.mark.skipif(
    _HERE.engine_problem is not None or (_HERE.capability or (0, 0)) < (8, 9),
    reason="there is no Transformer Engine or no FP8 device",
)
needs_blocks = pytest.mark.skipif(
    (_HERE.capability or (0, 0)) < (9, 0) or (_HERE.cuda or (0, 0)) < (12, 9),
    reason="FP8 by blocks takes compute capability 9.0 and CUDA 12.9",
)
needs_two_ranks = pytest.mark.skipif(
    torch.cuda.device_count() < 2 and "NCCL_MULTI_RANK_GPU_ENABLE" not in os.environ,
    reason="NCCL puts two ranks on one GPU from 2.30 on, with NCCL_MULTI_RANK_GPU_ENABLE=1",
)
PRECISIONS = [
    pytest.param({}, id="bf16"),
    pytest.param({"precision": "fp8"}, id="tensorwise", marks=needs_fp8),
    pytest.param({"precision": "fp8", "fp8_recipe": "delayed"}, id="delayed", marks=needs_fp8),
    pytest.param({"precision": "fp8", "fp8_recipe": "blockwise"}, id="blockwise", marks=[needs_fp8, needs_blocks]),
]
"""Changes to a recipe: bf16, and each way to scale FP8."""
