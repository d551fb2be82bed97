"""Bytes of weights, gradients and optimiser state on a rank of each pipeline stage.

With n parameters on a rank, n' of them trained, and d data-parallel ranks:

    weights      2 n in bf16, 4 n in fp32; with FP8 2 more for each number of a layer's matrices, which Transformer
                 Engine keeps as FP8 too, once as they lie and once transposed
    gradients    4 n', an fp32 buffer; 2 n' with `parallel.grad_reduce_dtype: bf16`, and while weights are updated 4 n',
                 over d with the distributed optimiser, for their fp32 copy
    optimiser    s n', over d with the distributed optimiser; s = 8 for Adam's two moments in fp32, 4 for SGD's momentum
                 (0 without), and 4 more in bf16 for the fp32 weights that are stepped

Context-parallel ranks hold the same weights and split the optimiser's state like data-parallel ones.

Tensor parallelism divides the matrices of the language model and the embedding; norms, projector and tower are whole
on every rank. Left out: activations, communication buffers, the padding of the distributed optimiser's buffers (at
most 64 elements a tensor and 128 a bucket), what the CUDA context and libraries take.
"""

from dataclasses import dataclass

from megatron_sts.config import LanguageArchitecture, Recipe, StageConfig, VisionArchitecture


@dataclass(frozen=True)
class RankBytes:
    """Bytes that a rank holds throughout a stage of training."""

    parameters: int
    gradients: int
    optimizer: int

    @property
    def total(self) -> int:
        """All three."""
        return self.parameters + self.gradients + self.optimizer


def part_parameters(recipe: Recipe, rank: int, tensor: int = 1) -> dict[str, int]:
    """Parameters of each part that a pipeline rank holds: vision, projector, language.

    tensor: ranks that share them; 1 gives those of the whole pipeline stage. A tied output layer is one with the
    embedding on a single stage, and has a copy of its own on the last of several.
    """
    parallel, language, vision = recipe.parallel, recipe.architecture.language, recipe.architecture.vision
    hidden, last = language.hidden_size, parallel.pipeline - 1
    layers = parallel.layers_of_stages(language.layers)[rank :: parallel.pipeline]
    embedding = language.padded_vocabulary_size * hidden // tensor
    held = sum(map(len, layers)) * layer_parameters(recipe, tensor)
    if rank == 0:
        held += embedding
    if rank == last:
        held += norm_parameters(language)
        if language.linear_bias:
            held += language.padded_vocabulary_size // tensor
        if not (language.tied_embeddings and last == 0):
            held += embedding
    first = rank == 0
    projector = vision.hidden_size * hidden + hidden + hidden * hidden + hidden
    return {
        "vision": tower_parameters(vision) if first else 0,
        "projector": projector if first else 0,
        "language": held,
    }


def layer_parameters(recipe: Recipe, tensor: int = 1) -> int:
    """Parameters of one layer of the language model on one of `tensor` ranks.

    Four matrices and two norms (one in a parallel block); in some families biases of query, key and value or of every
    matrix, or norms of query and key.
    """
    language = recipe.architecture.language
    heads = language.attention_heads + 2 * language.query_groups
    biases = language.head_size * heads // tensor if language.query_key_value_bias else 0
    if language.linear_bias:
        biases += language.ffn_hidden_size // tensor + 2 * language.hidden_size
    head_norms = 2 * language.head_size if language.query_key_norm else 0
    norms = (1 if language.parallel_block else 2) * norm_parameters(language)
    return layer_matrices(recipe, tensor) + norms + biases + head_norms


def norm_parameters(language: LanguageArchitecture) -> int:
    """Parameters of one norm over the hidden size; a layer norm has a bias."""
    return (2 if language.layer_norm else 1) * language.hidden_size


def layer_matrices(recipe: Recipe, tensor: int = 1) -> int:
    """Numbers in the four matrices of a layer on one of `tensor` ranks."""
    language = recipe.architecture.language
    attention = 2 * language.head_size * (language.attention_heads + language.query_groups)
    return language.hidden_size * ((attention + language.mlp_matrices * language.ffn_hidden_size) // tensor)


def fp8_weight_bytes(recipe: Recipe, rank: int) -> int:
    """Bytes of the weights that a pipeline rank holds as FP8, beside those in bf16; 0 in other precisions."""
    if recipe.precision != "fp8":
        return 0
    parallel, count, ends = recipe.parallel, recipe.architecture.language.layers, recipe.fp8_bf16_layers
    held = parallel.layers_of_stages(count)[rank :: parallel.pipeline]
    layers = sum(ends <= layer < count - ends for stage in held for layer in stage)
    return 2 * layers * layer_matrices(recipe, parallel.tensor)


def tower_parameters(vision: VisionArchitecture, used: bool = False) -> int:
    """Parameters of the tower, also those behind its feature layer, which are held and never run; `used`: without."""
    hidden, inner = vision.hidden_size, vision.ffn_hidden_size
    layer = 4 * hidden * (hidden + 1) + 2 * hidden * inner + inner + hidden + 4 * hidden
    if vision.family == "dinov2":
        # Layer scale: a factor for each channel behind attention and MLP.
        layer += 2 * hidden
    layers = (vision.used_layers if used else vision.layers) * layer
    # The norm after the layers is not used.
    layers += 0 if used else 2 * hidden
    positions = (vision.position_image_size // vision.patch_size) ** 2
    patches = 3 * vision.patch_size**2 * hidden + positions * hidden
    # clip: class token with its position, and a norm before the layers; siglip: a bias of the patch embedding; dinov2:
    # that bias and a class token with its position (published ones also hold a mask token, which is left out here).
    return layers + patches + {"clip": 4, "dinov2": 3}.get(vision.family, 1) * hidden


def trained_parameters(recipe: Recipe, stage: StageConfig, rank: int) -> int:
    """Parameters that each rank of a 0-based pipeline rank trains."""
    held = part_parameters(recipe, rank, recipe.parallel.tensor)
    trained = sum(count for part, count in held.items() if part in stage.trains)
    if rank == 0 and "vision" in stage.trains:
        trained -= held["vision"] - tower_parameters(recipe.architecture.vision, used=True)
    return trained


def rank_bytes(recipe: Recipe, stage: StageConfig, rank: int, data_parallel: int) -> RankBytes:
    """Bytes on each rank of a 0-based pipeline rank in a stage of training."""
    held, trained = part_parameters(recipe, rank, recipe.parallel.tensor), trained_parameters(recipe, stage, rank)
    half = recipe.precision != "fp32"
    optimizer = recipe.optimizer
    state = 8 if optimizer.kind == "adam" else 4 if optimizer.momentum else 0
    shared = data_parallel * recipe.parallel.context if optimizer.distributed else 1
    return RankBytes(
        parameters=(2 if half else 4) * sum(held.values()) + fp8_weight_bytes(recipe, rank),
        gradients=(4 if recipe.parallel.grad_reduce_dtype == "fp32" else 2) * trained,
        optimizer=-(-trained * (state + (4 if half else 0)) // shared),
    )
