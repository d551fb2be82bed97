"""Where the supported versions of megatron-core differ in what this project uses; device.py has what a CPU needs."""

from dataclasses import replace
from functools import partial
from typing import Any


def mlp_spec_with(mlp: Any, **linear_layers: type) -> Any:
    """The spec of a layer's MLP with other linear layers (linear_fc1, linear_fc2).

    It is a ModuleSpec, and from 0.18 on a function that builds the MLP and has its parts as an argument.
    """
    if isinstance(mlp, partial):
        parts = replace(mlp.keywords["submodules"], **linear_layers)
        return partial(mlp.func, *mlp.args, **(mlp.keywords | {"submodules": parts}))
    return replace(mlp, submodules=replace(mlp.submodules, **linear_layers))
