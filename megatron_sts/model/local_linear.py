"""Tensor-parallel linear layers that leave communication to their caller, who does it once for several of them.

megatron-core has such layers for experts, where the token dispatcher communicates. These are its experts' layers, with
the marks on their parameters those of other layers.
"""

from typing import Any

import torch
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from torch.nn import Module


class LocalColumnParallelLinear(ColumnParallelLinear):
    """The outputs of this rank's columns, of an input that the caller has gathered.

    What comes back for the input in the backward pass is this rank's summand.
    """

    def __init__(self, *args: Any, is_expert: bool, **kwargs: Any):
        assert not is_expert
        super().__init__(*args, is_expert=True, **kwargs)
        mark_local(self)


class LocalRowParallelLinear(RowParallelLinear):
    """This rank's summand of the output; the caller sums over the ranks, and adds the bias."""

    def __init__(self, *args: Any, is_expert: bool, **kwargs: Any):
        assert not is_expert
        super().__init__(*args, is_expert=True, **kwargs)
        mark_local(self)


def mark_local(linear: Module) -> None:
    """Let gradients be summed over all data-parallel ranks, not over those that hold the same experts."""
    for parameter in linear.parameters():
        parameter.allreduce = True  # type: ignore[attr-defined]


def local_linears(transformer_engine: bool) -> tuple[type[torch.nn.Module], type[torch.nn.Module]]:
    """The classes of column- and row-parallel linear layers, Transformer Engine's or megatron-core's own."""
    if not transformer_engine:
        return LocalColumnParallelLinear, LocalRowParallelLinear
    from megatron_sts.model.local_engine_linear import EngineLocalColumnParallelLinear, EngineLocalRowParallelLinear

    return EngineLocalColumnParallelLinear, EngineLocalRowParallelLinear
