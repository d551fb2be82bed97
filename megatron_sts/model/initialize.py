"""Fresh weights that do not depend on the layout: each tensor is drawn whole from its own seed, then sliced."""

import hashlib
import math
from collections.abc import Iterator

import torch
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory

from megatron_sts.model.mllm import MultimodalModel

# The two matrices that write to the residual stream are drawn smaller by sqrt(2 L), as in GPT-2.
_RESIDUAL_MATRICES = ("self_attention.linear_proj.weight", "mlp.linear_fc2.weight")


def initialize_fresh(chunk: MultimodalModel, seed: int, layers: int) -> None:
    """Draw the language model's and the projector's weights; the tower keeps what it was built with.

    The draw of a tensor depends on the seed and its checkpoint key (and layer) alone. Norms multiply by one, biases
    are zero, matrices normal with standard deviation
    sqrt(2 / (5 h)), h the hidden size (Nguyen and Salazar, arXiv 1910.05895), those of the projector 1 / sqrt(fan-in).
    """
    with torch.no_grad():
        for tensor in _sharded_tensors(chunk):
            if not tensor.key.startswith("vision."):
                _draw(tensor, seed, layers, 0.0 if chunk.config.layernorm_zero_centered_gamma else 1.0)


def _sharded_tensors(chunk: MultimodalModel) -> Iterator[ShardedTensor]:
    for value in nested_values(chunk.sharded_state_dict()):
        if isinstance(value, ShardedTensorFactory):
            yield from (part for part in nested_values(value.build()) if isinstance(part, ShardedTensor))
        elif isinstance(value, ShardedTensor):
            yield value


def _draw(tensor: ShardedTensor, seed: int, layers: int, norm_weight: float) -> None:
    stacked = tensor.prepend_axis_num
    offset = tensor.global_offset[stacked:]
    target = tensor.data
    assert target is not None
    index = tensor.global_offset[:stacked]
    whole = fresh_tensor(tensor.key, tensor.global_shape[stacked:], seed, layers, index, norm_weight)
    own = whole[tuple(slice(start, start + size) for start, size in zip(offset, target.shape, strict=True))]
    target.copy_(own)


def fresh_tensor(
    key: str,
    shape: tuple[int, ...],
    seed: int,
    layers: int,
    index: tuple[int, ...] = (),
    norm_weight: float = 1.0,
) -> torch.Tensor:
    """A whole fresh tensor, float32. key: in a checkpoint; index: of the layer, where the key stands for all layers.

    norm_weight: of norms; 0 where the weight is added to one.
    """
    if len(shape) == 1:
        return torch.full(shape, 0.0 if key.endswith("bias") else norm_weight)
    text = f"{seed}/{key}/{index}".encode()
    generator = torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(text).digest()[:7], "big"))
    return torch.empty(shape, dtype=torch.float32).normal_(0.0, _deviation(key, shape, layers), generator=generator)


def _deviation(key: str, shape: tuple[int, ...], layers: int) -> float:
    if key.startswith("projector."):
        return 1.0 / math.sqrt(shape[1])
    if key.endswith(_RESIDUAL_MATRICES):
        return math.sqrt(2 / (5 * shape[0]) / (2 * layers))
    return math.sqrt(2 / (5 * shape[1]))
