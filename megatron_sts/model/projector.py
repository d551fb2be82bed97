"""The projector of LLaVA-1.5: two linear layers with a GELU between, from the tower's width to the hidden size."""

import torch
import torch.nn.functional as F
from torch import Tensor


class Projector(torch.nn.Module):
    """Projects visual tokens; replicated over the tensor-parallel ranks.

    Under sequence parallelism every rank projects only the tokens of its own chunk, so a gradient is a share per
    rank: the parameters carry the mark by which megatron-core sums such gradients.
    """

    def __init__(self, vision_width: int, hidden_size: int, dtype: torch.dtype, sequence_parallel: bool):
        super().__init__()
        device = torch.cuda.current_device()
        self.linear_1 = torch.nn.Linear(vision_width, hidden_size, dtype=dtype, device=device)
        self.linear_2 = torch.nn.Linear(hidden_size, hidden_size, dtype=dtype, device=device)
        for parameter in self.parameters():
            parameter.sequence_parallel = sequence_parallel  # type: ignore[attr-defined]

    def forward(self, features: Tensor) -> Tensor:
        """features [v, w] -> [v, h]."""
        return self.linear_2(F.gelu(self.linear_1(features)))
