"""Where the supported versions of megatron-core differ in what this project uses; device.py has what a CPU needs."""

from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor


def mlp_spec_with(mlp: Any, **linear_layers: type) -> Any:
    """The spec of a layer's MLP with other linear layers (linear_fc1, linear_fc2).

    It is a ModuleSpec, and from 0.18 on a function that builds the MLP and has its parts as an argument.
    """
    if isinstance(mlp, partial):
        parts = replace(mlp.keywords["submodules"], **linear_layers)
        return partial(mlp.func, *mlp.args, **(mlp.keywords | {"submodules": parts}))
    return replace(mlp, submodules=replace(mlp.submodules, **linear_layers))


def gradients_of_norm(optimizer: Any) -> list[Tensor]:
    """This rank's gradients that count for the norm, each held by one rank, of one of megatron-core's optimisers.

    From 0.19 on the method has another name.
    """
    if hasattr(optimizer, "get_grads_for_grad_norm"):
        return optimizer.get_grads_for_grad_norm()
    return optimizer.get_main_grads_for_grad_norm()
