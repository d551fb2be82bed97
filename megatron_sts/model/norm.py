"""Norms for the plain layer spec, marked for sequence parallelism; megatron-core's wrapper refuses it.

Under sequence parallelism each rank normalises its own chunk, so a parameter's gradient is a share per rank; the mark
makes megatron-core sum the shares.
"""

import torch
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.nn import functional as F


class PlainRMSNorm(torch.nn.RMSNorm):
    """torch's RMSNorm."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5):
        super().__init__(hidden_size, eps=eps, dtype=config.params_dtype, device=torch.cuda.current_device())
        _mark(self, config)


class ZeroCenteredRMSNorm(PlainRMSNorm):
    """RMSNorm whose weight is added to one, as in Gemma: weight decay pulls the factor to one, not to zero."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[..., h] -> [..., h]."""
        weight = 1.0 + self.weight.float()
        return F.rms_norm(hidden_states.float(), self.normalized_shape, weight, self.eps).to(hidden_states.dtype)


class PlainLayerNorm(torch.nn.LayerNorm):
    """torch's LayerNorm, with a bias."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5):
        super().__init__(hidden_size, eps=eps, dtype=config.params_dtype, device=torch.cuda.current_device())
        _mark(self, config)


def plain_norm(config: TransformerConfig) -> type[PlainRMSNorm] | type[PlainLayerNorm]:
    """The class of the norms that the config asks for."""
    if config.normalization == "LayerNorm":
        return PlainLayerNorm
    return ZeroCenteredRMSNorm if config.layernorm_zero_centered_gamma else PlainRMSNorm


def _mark(norm: torch.nn.Module, config: TransformerConfig) -> None:
    for parameter in norm.parameters():
        parameter.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]
