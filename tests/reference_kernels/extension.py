"""A stand-in for the compiled half of Transformer Engine: the functions of `transformer_engine_torch` that a model
of this project comes to, each by its definition, in plain torch.

What runs above it is Transformer Engine's and megatron-core's own Python. It says nothing about what a GPU computes
or how fast. A function that is not here raises NotImplementedError with its name.
"""

from types import ModuleType
from typing import Any

from tests.reference_kernels import attention, gemm, names, normalization, optimizer, packed_context, quantize, rotary
from tests.reference_kernels.newer_engine import adapt_to_engine

_FUNCTIONS = {
    attention: ("get_fused_attn_backend", "fused_attn_fwd", "fused_attn_bwd"),
    gemm: ("generic_gemm",),
    normalization: ("rmsnorm_fwd", "rmsnorm_bwd", "layernorm_fwd", "layernorm_bwd"),
    optimizer: (
        "multi_tensor_adam",
        "multi_tensor_l2norm",
        "multi_tensor_scale",
        "fused_amax_and_scale_update_after_reduction",
    ),
    packed_context: (
        "thd_read_half_tensor",
        "thd_read_second_half_lse",
        "thd_second_half_lse_correction",
        "thd_out_correction",
        "thd_grad_correction",
    ),
    quantize: ("quantize", "bgrad_quantize", "dequantize", "fp8_transpose", "swap_first_dims"),
    rotary: ("fused_rope_forward", "fused_rope_backward"),
}


class _Extension(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name[0].isupper():
            # A class that other functions take, named in annotations.
            return type(name, (), {})
        return _missing(name)


def _missing(name: str) -> Any:
    def missing(*args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(f"transformer_engine_torch.{name} has no reference")

    return missing


def make_extension() -> ModuleType:
    """The module, as `import transformer_engine_torch` would give it."""
    extension = _Extension("transformer_engine_torch")
    for module, functions in _FUNCTIONS.items():
        for function in functions:
            setattr(extension, function, getattr(module, function))
    for name, value in vars(names).items():
        if name[0].isupper() and isinstance(value, type) and value is not names.IntEnum:
            setattr(extension, name, value)
    extension.get_cublasLt_version = lambda: 130000  # type: ignore[attr-defined]
    extension.get_cudnn_version = lambda: 91400  # type: ignore[attr-defined]
    adapt_to_engine(extension)
    return extension
