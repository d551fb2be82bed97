"""FLOPs of a training step, per part of the model, dense and executed.

A multiplication and an addition count as two. Per layer of the language model and a sequence of S tokens, with
hidden size h, a query heads and g key/value groups of size d each, feed-forward size f:

    forward = 2 S (h d (a + 2 g) + a d h + 3 h f)     projections and the feed-forward, C_matrix (not gated: 2 h f)
            + 2 S^2 a d                               QK^T and AV over the causal half, C_attention

The backward pass costs as much again for the gradient of the activations and, for the matrices alone, as much
again for the gradient of the weights where they are trained; attention has two products to differentiate twice.
So trained: 3 C_matrix + 3 C_attention; frozen with a gradient passing through: 2 C_matrix + 3 C_attention. With
d a = h and S = T + N this is F1 and F2 of the method's summary (c S = C_matrix, 2 h S^2 = C_attention); an
explicit head size makes d a another number than h.
A layer that is skipped for visual tokens has its attention whole and its feed-forward, 6 h f a row, for the T text
rows alone; its other matrices and C_attention are as above. T counts text that is not padding.
The head is 2 S h V; a projector token 2 (w h + h^2); a tower token like a layer with full attention and a plain
feed-forward, plus the patch embedding. Norms, activations, rotary and softmax are left out: below 1% at h >= 512.
The logits are counted over all S rows, because they are computed over all of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from megatron_sts.config import Architecture


@dataclass(frozen=True)
class PassCount:
    """How often each kind of product runs in a step: 1 forward, +1 activation gradient, +1 weight gradient."""

    matrix: int
    attention: int


def pass_count(trained: bool, gradient_flows: bool) -> PassCount:
    """Passes through a part: `gradient_flows` where the part, or something before it, is trained."""
    if trained:
        return PassCount(3, 3)
    return PassCount(2, 3) if gradient_flows else PassCount(1, 1)


@dataclass(frozen=True)
class StepFlops:
    """FLOPs of one step over the whole global batch, per part."""

    tower: float
    projector: float
    layers: float
    head: float

    def __add__(self, other: "StepFlops") -> "StepFlops":
        """Of two passes over the model."""
        return StepFlops(
            self.tower + other.tower,
            self.projector + other.projector,
            self.layers + other.layers,
            self.head + other.head,
        )

    @property
    def total(self) -> float:
        """All parts together."""
        return self.tower + self.projector + self.layers + self.head


class ModelSizes:
    """FLOPs of single pieces of a model, from its sizes alone."""

    def __init__(self, architecture: Architecture):
        self._language = architecture.language
        self._vision = architecture.vision
        self._visual_tokens = architecture.visual_tokens

    def layer_matrices(self, length: int) -> float:
        """Forward FLOPs of one layer's matrix products over one sequence."""
        language = self._language
        heads = 2 * language.attention_heads + 2 * language.query_groups
        return 2.0 * length * language.hidden_size * language.head_size * heads + self.layer_mlp(length)

    def layer_mlp(self, rows: int) -> float:
        """Forward FLOPs of one layer's feed-forward over a number of rows."""
        language = self._language
        return 2.0 * language.mlp_matrices * rows * language.hidden_size * language.ffn_hidden_size

    def layer_attention(self, length: int) -> float:
        """Forward FLOPs of one layer's two attention products over one sequence, causal half."""
        return 2.0 * length * length * self._language.attention_heads * self._language.head_size

    def head(self, length: int) -> float:
        """Forward FLOPs of the output layer over one sequence."""
        return 2.0 * length * self._language.hidden_size * self._language.padded_vocabulary_size

    def projector(self, tokens: int) -> float:
        """Forward FLOPs of the projector over a number of visual tokens."""
        hidden = self._language.hidden_size
        return 2.0 * tokens * (self._vision.hidden_size * hidden + hidden * hidden)

    def tower_layer(self) -> tuple[float, float]:
        """Forward FLOPs of one tower layer for one image: (matrix products, attention products)."""
        vision, rows = self._vision, self._tower_rows()
        matrices = 2.0 * rows * (4 * vision.hidden_size**2 + 2 * vision.hidden_size * vision.ffn_hidden_size)
        return matrices, 4.0 * rows * rows * vision.hidden_size

    def patch_embedding(self) -> float:
        """Forward FLOPs of the patch embedding for one image."""
        vision = self._vision
        patches = (vision.image_size // vision.patch_size) ** 2
        return 2.0 * patches * 3 * vision.patch_size**2 * vision.hidden_size

    def _tower_rows(self) -> int:
        return self._vision.patches + int(self._vision.has_class_token)


def step_flops(
    architecture: Architecture,
    trains: tuple[str, ...],
    *,
    rows: int,
    images: int,
    length: int,
    visual_tokens: int,
    layers_run: int,
    layers_skipped_for_visual: int = 0,
    text_tokens: int = 0,
    scored_tokens: int = 0,
    segments: Sequence[Sequence[int]] | None = None,
) -> StepFlops:
    """FLOPs of one step.

    rows, images: in the global batch; a row is a sample, or several that are packed. length: padded sequence length,
    in tokens. segments: of each packed row, the lengths that attention keeps apart; None: each row is one.
    visual_tokens: kept per image. layers_run: language layers that run. layers_skipped_for_visual: how many of these
    run their MLP for text alone, of which there are text_tokens in the global batch. scored_tokens: per image,
    projected without gradient to choose the kept ones. The dense step of the same samples has all layers, all visual
    tokens and the length that goes with them.
    """
    sizes = ModelSizes(architecture)
    tower_trained, projector_trained, language_trained = (
        "vision" in trains,
        "projector" in trains,
        "language" in trains,
    )

    tower = pass_count(tower_trained, tower_trained)
    tower_layers = architecture.vision.used_layers
    tower_matrix, tower_attention = sizes.tower_layer()
    per_image = tower_layers * (tower_matrix * tower.matrix + tower_attention * tower.attention)
    # The pixels need no gradient: the patch embedding has a forward and, where trained, a weight gradient.
    per_image += sizes.patch_embedding() * (2 if tower_trained else 1)

    projector_passes = pass_count(projector_trained, tower_trained).matrix
    if projector_trained and not tower_trained:
        # Nothing before the projector is trained: its first product has no activation gradient.
        vision_width, hidden = architecture.vision.hidden_size, architecture.language.hidden_size
        first = 2.0 * visual_tokens * vision_width * hidden
        projector = images * (sizes.projector(visual_tokens) * projector_passes - first)
    else:
        projector = images * sizes.projector(visual_tokens) * projector_passes

    projector += images * sizes.projector(scored_tokens)

    language = pass_count(language_trained, projector_trained or tower_trained)
    apart = [[length]] * rows if segments is None else segments
    attention = sum(sizes.layer_attention(piece) for row in apart for piece in row)
    per_layer = rows * sizes.layer_matrices(length) * language.matrix + attention * language.attention
    left_out = sizes.layer_mlp(rows * length - text_tokens) * language.matrix
    head = sizes.head(length) * language.matrix
    return StepFlops(
        tower=images * per_image,
        projector=projector,
        layers=layers_run * per_layer - layers_skipped_for_visual * left_out,
        head=rows * head,
    )
