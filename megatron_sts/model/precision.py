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


def why_not_offered(module: str, attribute: str) -> str | None:
    """Why a module cannot be imported, or lacks what is used of it; None where it can be used."""
    try:
        return None if hasattr(import_module(module), attribute) else f"{module} has no {attribute}"
    except ModuleNotFoundError as error:
        return f"{error.name} is not installed"
    except Exception as error:
        # A library built for another torch or CUDA fails in many ways while its shared objects load; Transformer
        # Engine's loader asserts that the versions of its parts agree.
        return f"{module} cannot be imported: {type(error).__name__}: {error}".splitlines()[0]


def offers(module: str, attribute: str) -> bool:
    """Whether a module can be imported and has what is used of it."""
    return why_not_offered(module, attribute) is None


_TRANSFORMER_ENGINE = ("transformer_engine.pytorch", "TransformerLayer")


def has_transformer_engine() -> bool:
    """Whether Transformer Engine is installed and works, and there is a GPU."""
    return has_gpu() and offers(*_TRANSFORMER_ENGINE)


def uses_transformer_engine(dtype: torch.dtype) -> bool:
    """Whether layers of this type of weights are built from Transformer Engine, where it can be used.

    Not in fp32: its products are rounded to TF32, its attention is not fused and refuses context parallelism.
    """
    return dtype != torch.float32 and has_transformer_engine()


def fuses_gradient_accumulation() -> bool:
    """Whether megatron-core's own linear layers add weight gradients up inside their matrix product.

    That takes this extension of NVIDIA's Apex; Transformer Engine's layers do it by themselves (model/specs.py).
    """
    return has_gpu() and offers("fused_weight_gradient_mlp_cuda", "wgrad_gemm_accum_fp32")


@dataclass(frozen=True)
class Machine:
    """What FP8 asks of a machine. capability: of the device, cuda: of torch; None without.

    engine_problem: why Transformer Engine cannot be used; None where it can.
    """

    engine_problem: str | None
    capability: tuple[int, int] | None
    cuda: tuple[int, int] | None

    @classmethod
    def here(cls) -> "Machine":
        """The one this process runs on."""
        if not has_gpu():
            return cls("there is no GPU", None, None)
        major, minor, *_ = (int(part) for part in (torch.version.cuda or "0.0").split("."))
        return cls(why_not_offered(*_TRANSFORMER_ENGINE), torch.cuda.get_device_capability(), (major, minor))


def check_machine(recipe: Recipe, machine: Machine) -> None:
    """Raise ConfigError where this machine cannot do the recipe's FP8 products; megatron-core would use bf16 unsaid.

    Nor can megatron-core 0.16 recompute norms on a GPU without Transformer Engine: it takes names that it then lacks.
    """
    if "layernorm" in recipe.recompute and machine.capability is not None and machine.engine_problem is not None:
        raise ConfigError(
            f"recompute has 'layernorm', which on a GPU needs Transformer Engine, but {machine.engine_problem}; leave "
            "it out, or install Transformer Engine"
        )
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
    if machine.engine_problem is not None:
        raise ConfigError(
            f"precision is 'fp8', which needs Transformer Engine, but {machine.engine_problem}; install the "
            f"Transformer Engine built for torch {torch.__version__}, or {remedy}"
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
    engine = uses_transformer_engine(parameter_dtype(recipe))
    parts = [device_name(), f"torch {torch.__version__}", f"megatron-core {version('megatron-core')}"]
    precision: str = recipe.precision
    if recipe.precision == "fp8":
        precision += f" ({recipe.fp8_recipe})"
    parts.append(precision)
    if engine:
        parts.append(f"Transformer Engine {_version('transformer_engine')}: layers, attention, rotary embedding")
    else:
        parts.append(f"{_why_plain(recipe)}: megatron-core's layers, torch's attention")
    fused = {"Transformer Engine's layers": engine, "the output layer, by apex": fuses_gradient_accumulation()}
    parts.append(f"gradient accumulation fused in: {', '.join(part for part in fused if fused[part]) or 'no layer'}")
    if recipe.optimizer.kind == "adam":
        parts.append(f"Adam of {_adam()}")
    return "; ".join(parts)


def _why_plain(recipe: Recipe) -> str:
    if not has_gpu():
        return "no Transformer Engine"
    problem = why_not_offered(*_TRANSFORMER_ENGINE)
    return f"no Transformer Engine ({problem})" if problem else f"Transformer Engine not used in {recipe.precision}"


def _adam() -> str:
    """Whose Adam megatron-core takes: Transformer Engine's, else apex's, else torch's."""
    from megatron.core.optimizer import Adam

    return Adam.__module__.split(".")[0]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "of unknown version"
