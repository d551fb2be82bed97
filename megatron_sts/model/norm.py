"""Norms for the plain layer spec, marked for sequence parallelism; megatron-core's wrapper refuses it.

Under sequence parallelism each rank normalises its own chunk, so a parameter's gradient is a share per rank; the mark
makes megatron-core sum the shares.
"""

import torch
from megatron.core.transformer.transformer_config import TransformerConfig


class PlainRMSNorm(torch.nn.RMSNorm):
    """torch's RMSNorm."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5):
        super().__init__(hidden_size, eps=eps, dtype=config.params_dtype, device=torch.cuda.current_device())
        _mark(self, config)


class PlainLayerNorm(torch.nn.LayerNorm):
    """torch's LayerNorm, with a bias."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5):
        super().__init__(hidden_size, eps=eps, dtype=config.params_dtype, device=torch.cuda.current_device())
        _mark(self, config)


def plain_norm(config: TransformerConfig) -> type[PlainRMSNorm] | type[PlainLayerNorm]:
    """The class of the norms that the config asks for."""
    return PlainLayerNorm if config.normalization == "LayerNorm" else PlainRMSNorm


def _mark(norm: torch.nn.Module, config: TransformerConfig) -> None:
    for parameter in norm.parameters():
        parameter.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]
