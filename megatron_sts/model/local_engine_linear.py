"""The linear layers of local_linear.py built from Transformer Engine's; imported only where that is installed."""

from typing import Any

from megatron.core.extensions.transformer_engine import TEColumnParallelLinear, TERowParallelLinear

from megatron_sts.model.local_linear import mark_local


class EngineLocalColumnParallelLinear(TEColumnParallelLinear):
    """As LocalColumnParallelLinear. Transformer Engine, told of no other ranks, does not mark the bias as cut."""

    def __init__(self, *args: Any, is_expert: bool, bias: bool, **kwargs: Any):
        assert not is_expert
        super().__init__(*args, is_expert=True, bias=bias, **kwargs)
        mark_local(self)
        if bias:
            self.bias.tensor_model_parallel = True
            self.bias.partition_dim = 0


class EngineLocalRowParallelLinear(TERowParallelLinear):
    """As LocalRowParallelLinear. Transformer Engine marks neither the bias nor along which dimension it is cut."""

    def __init__(self, *args: Any, is_expert: bool, bias: bool, **kwargs: Any):
        assert not is_expert
        super().__init__(*args, is_expert=True, bias=bias, **kwargs)
        mark_local(self)
        self.weight.partition_dim = 1
        if bias:
            self.bias.sequence_parallel = self.config.sequence_parallel
