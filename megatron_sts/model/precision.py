"""What computes: the precision of a recipe on this machine, and the libraries that it uses there.

Detection asks for the very attribute that is used later: PyPI's `apex` is another package, and an installed
Transformer Engine may be built for another torch.
"""

from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from megatron_sts.config import Recipe
from megatron_sts.errors import ConfigError
from megatron_sts.parallel.device import device_name, has_gpu

_OLDEST_FP8_DEVICE = (8, 9)
"""Compute capability of the first devices with FP8 matrix products (Ada; Hopper is 9.0)."""
_OLDEST_FP8_BLOCK_DEVICE = (9, 0)
_OLDEST_FP8_BLOCK_CUDA = (12, 9)


def parameter_dtype(recipe: Recipe) -> torch.dtype:
    """The type of weights and activations; with FP8 products both stay in bf16."""
    return torch.float32 if recipe.precision == "fp32" else torch.bfloat16


def offers(module: str, attribute: str) -> bool:
    """Whether a module can be imported and has what is used of it."""
    try:
        return hasattr(import_module(module), attribute)
    except (ImportError, OSError, RuntimeError):
        # A library built for another torch or CUDA fails while its shared objects load.
        return False


def uses_transformer_engine() -> bool:
    """Whether layers are built from Transformer Engine: where it is installed and works, and there is a GPU."""
    return has_gpu() and offers("transformer_engine.pytorch", "TransformerLayer")


def fuses_gradient_accumulation() -> bool:
    """Whether megatron-core's own linear layers add weight gradients up inside their matrix product.

    That takes this extension of NVIDIA's Apex; Transformer Engine's layers do it by themselves (model/specs.py).
    """
    return has_gpu() and offers("fused_weight_gradient_mlp_cuda", "wgrad_gemm_accum_fp32")


@dataclass(frozen=True)
class Machine:
    """What FP8 asks of a machine. capability: of the device, cuda: of torch; None without."""

    transformer_engine: bool
    capability: tuple[int, int] | None
    cuda: tuple[int, int] | None

    @classmethod
    def here(cls) -> "Machine":
        """The one this process runs on."""
        if not has_gpu():
            return cls(False, None, None)
        major, minor, *_ = (int(part) for part in (torch.version.cuda or "0.0").split("."))
        return cls(uses_transformer_engine(), torch.cuda.get_device_capability(), (major, minor))


def check_machine(recipe: Recipe, machine: Machine) -> None:
    """Raise ConfigError where this machine cannot do the recipe's FP8 products; megatron-core would use bf16 unsaid."""
    if recipe.precision != "fp8":
        return
    remedy = "set precision: bf16, or train where it can be used (docs/fp8.md)"
    if machine.capability is None:
        raise ConfigError(f"precision is 'fp8', but this machine has no CUDA device; {remedy}")
    found = f"this device has compute capability {'.'.join(map(str, machine.capability))}"
    if machine.capability < _OLDEST_FP8_DEVICE:
        raise ConfigError(
            f"precision is 'fp8', which needs compute capability 8.9 (Hopper: 9.0), but {found}; {remedy}"
        )
    if not machine.transformer_engine:
        raise ConfigError(
            "precision is 'fp8', but transformer_engine.pytorch is not installed or cannot be imported with this "
            f"torch {torch.__version__}; install the Transformer Engine built for it, or {remedy}"
        )
    if recipe.fp8_recipe == "blockwise":
        cuda = ".".join(map(str, machine.cuda or (0, 0)))
        if machine.capability < _OLDEST_FP8_BLOCK_DEVICE or (machine.cuda or (0, 0)) < _OLDEST_FP8_BLOCK_CUDA:
            raise ConfigError(
                f"fp8_recipe is 'blockwise', which needs compute capability 9.0 and CUDA 12.9, but {found} and torch "
                f"has CUDA {cuda}; set fp8_recipe: tensorwise"
            )


def fp8_settings(recipe: Recipe) -> dict[str, Any]:
    """The arguments of megatron-core's TransformerConfig for FP8; none in other precisions.

    tensorwise and delayed take e4m3 forward and e5m2 for gradients; scaled by blocks e4m3 is enough for both, as in
    DeepSeek-V3 (arXiv 2412.19437, section 3.3). Weights are kept in bf16.
    """
    if recipe.precision != "fp8":
        return {}
    ends = recipe.fp8_bf16_layers
    return {
        "fp8": "e4m3" if recipe.fp8_recipe == "blockwise" else "hybrid",
        "fp8_recipe": recipe.fp8_recipe,
        # Transformer Engine's own defaults for delayed scaling; megatron-core's history is one step long.
        "fp8_amax_history_len": 1024,
        "fp8_amax_compute_algo": "max",
        "first_last_layers_bf16": ends > 0,
        "num_layers_at_start_in_bf16": ends,
        "num_layers_at_end_in_bf16": ends,
    }


def what_runs(recipe: Recipe) -> str:
    """One line for the log: the device, the precision, and which of the optional libraries are used."""
    engine = uses_transformer_engine()
    parts = [device_name(), f"torch {torch.__version__}", f"megatron-core {version('megatron-core')}"]
    precision: str = recipe.precision
    if recipe.precision == "fp8":
        precision += f" ({recipe.fp8_recipe})"
    parts.append(precision)
    if engine:
        parts.append(f"Transformer Engine {_version('transformer_engine')}: layers, attention, rotary embedding")
    else:
        parts.append("no Transformer Engine: megatron-core's layers, torch's attention")
    fused = {"Transformer Engine's layers": engine, "the output layer, by apex": fuses_gradient_accumulation()}
    parts.append(f"gradient accumulation fused in: {', '.join(part for part in fused if fused[part]) or 'no layer'}")
    if recipe.optimizer.kind == "adam":
        parts.append(f"Adam of {_adam()}")
    return "; ".join(parts)


def _adam() -> str:
    """Whose Adam megatron-core takes: Transformer Engine's, else apex's, else torch's."""
    from megatron.core.optimizer import Adam

    return Adam.__module__.split(".")[0]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "of unknown version"
