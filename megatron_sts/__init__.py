"""megatron_sts: Megatron-style training of LLaVA-style models with the Sparse Training Scheme (arXiv 2509.18150)."""

__version__ = "0.1.0"
