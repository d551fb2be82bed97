"""RMSNorm for the plain layer spec."""

import torch
from megatron.core.transformer.transformer_config import TransformerConfig


class PlainRMSNorm(torch.nn.RMSNorm):
    """torch's RMSNorm, marked for sequence parallelism; megatron-core's wrapper refuses it.

    Under sequence parallelism each rank normalises its own chunk, so the weight's gradient is a share per rank;
    the mark makes megatron-core sum the shares.
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5):
        super().__init__(hidden_size, eps=eps, dtype=config.params_dtype, device=torch.cuda.current_device())
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]
