"""Fused tensors taken apart and put together, bitwise; pure functions of tensors and sizes.

Shapes: h hidden, f inner width of the MLP, a query heads, g query groups (key and value heads), d head size. A trailing
h is missing where the tensor is a bias.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from megatron_sts.config import LanguageArchitecture


def same(parts: Sequence[Tensor], language: LanguageArchitecture) -> Tensor:
    """One tensor, the same on both sides."""
    (tensor,) = parts
    return tensor


def alone(tensor: Tensor, language: LanguageArchitecture) -> tuple[Tensor, ...]:
    """The inverse of `same`."""
    return (tensor,)


def merge_qkv(parts: Sequence[Tensor], language: LanguageArchitecture) -> Tensor:
    """[a d, h], [g d, h], [g d, h] -> [(a + 2g) d, h]: each group its a/g query heads, then its key, then its value."""
    groups, head = language.query_groups, language.head_size
    rest = parts[0].shape[1:]
    grouped = [part.reshape(groups, -1, head, *rest) for part in parts]
    return torch.cat(grouped, dim=1).reshape(-1, *rest)


def split_qkv(tensor: Tensor, language: LanguageArchitecture) -> tuple[Tensor, ...]:
    """The inverse of `merge_qkv`."""
    groups, head = language.query_groups, language.head_size
    rest = tensor.shape[1:]
    grouped = tensor.reshape(groups, -1, head, *rest)
    return tuple(part.reshape(-1, *rest) for part in grouped.split([grouped.size(1) - 2, 1, 1], dim=1))


def merge_stacked_qkv(parts: Sequence[Tensor], language: LanguageArchitecture) -> Tensor:
    """[(a + 2g) d, h], all queries, then all keys, then all values -> the same rows by group, as in `merge_qkv`."""
    (stacked,) = parts
    heads, groups, head = language.attention_heads, language.query_groups, language.head_size
    return merge_qkv(stacked.split([heads * head, groups * head, groups * head]), language)


def split_stacked_qkv(tensor: Tensor, language: LanguageArchitecture) -> tuple[Tensor, ...]:
    """The inverse of `merge_stacked_qkv`."""
    return (torch.cat(split_qkv(tensor, language)),)


def merge_gate_up(parts: Sequence[Tensor], language: LanguageArchitecture) -> Tensor:
    """[f, h], [f, h] -> [2f, h], the gate first."""
    return torch.cat(tuple(parts))


def split_gate_up(tensor: Tensor, language: LanguageArchitecture) -> tuple[Tensor, ...]:
    """The inverse of `merge_gate_up`."""
    return tuple(tensor.chunk(2))
