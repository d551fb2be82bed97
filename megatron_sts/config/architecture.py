"""Sizes of the vision tower and of the language model: enough to plan a run with no weight on the disk."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

CLASS_TOKEN_FAMILIES = ("clip", "dinov2")
"""Vision encoders that put a class token before the patches."""


class ConfigModel(BaseModel):
    """A typed and frozen part of the recipe; the docstring of a field is its description."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        validate_by_name=True,
        validate_by_alias=True,
    )


class VisionArchitecture(ConfigModel):
    """The frozen vision tower: a Vision Transformer of Hugging Face's CLIP, SigLIP, SigLIP2 or DINOv2."""

    family: Literal["clip", "siglip", "siglip2", "dinov2"]
    """Which Hugging Face vision encoder: clip or dinov2 (with a class token), siglip or siglip2 (both without).

    SigLIP2 of a fixed resolution is the same encoder as SigLIP, and its files call it so.
    """
    image_size: int = Field(gt=0)
    """Side of the square input image, in pixels."""
    pretrained_image_size: int | None = Field(default=None, gt=0)
    """Side of the images that the position embeddings were made for, where it is another one (dinov2 alone, which
    interpolates them; published models have 518 and are mostly run at 224); None: image_size.
    """
    patch_size: int = Field(gt=0)
    """Side of a square patch, in pixels; a remainder at the border is dropped, as the encoders do."""
    hidden_size: int = Field(gt=0)
    """Width of the tower."""
    layers: int = Field(gt=0)
    """Number of transformer layers of the whole tower, used or not."""
    attention_heads: int = Field(gt=0)
    """Attention heads of a layer."""
    ffn_hidden_size: int = Field(gt=0)
    """Inner width of a layer's MLP."""
    feature_layer: int = -2
    """Index into the tower's hidden states (0: embeddings, `layers`: last layer; negative: from the end)."""
    feature_select: Literal["default", "full"] = "default"
    """default: the class token is dropped (clip, dinov2); full: every token of the tower."""

    @property
    def has_class_token(self) -> bool:
        """Whether the tower puts a class token before the patches."""
        return self.family in CLASS_TOKEN_FAMILIES

    @property
    def position_image_size(self) -> int:
        """Side of the images that the position embeddings were made for."""
        return self.pretrained_image_size or self.image_size

    @property
    def patches(self) -> int:
        """Patches of one image."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def used_layers(self) -> int:
        """Transformer layers that run to give the features of `feature_layer`; the rest are never run."""
        return self.feature_layer if self.feature_layer >= 0 else self.layers + 1 + self.feature_layer


class RotaryScaling(ConfigModel):
    """How the rotary embedding is stretched to longer sequences, as far as megatron-core does it."""

    kind: Literal["llama3", "linear"]
    """llama3: long wavelengths by the factor, short ones not, with the bounds of Llama 3.1; linear: all of them."""
    factor: float = Field(gt=1)
    """How many times longer sequences become (Hugging Face: rope_scaling.factor)."""


class LanguageArchitecture(ConfigModel):
    """The language model: a decoder with rotary embedding, grouped queries, and what its family says of norms and MLP.

    RMS norms, a gated MLP and no biases, where the family is not said to have others.
    """

    family: Literal["llama", "mistral", "qwen2", "qwen3", "phi3", "phi", "gemma"]
    """Which Hugging Face language model: llama (Llama 2 and 3, Vicuna), mistral, qwen2 (Qwen 2 and 2.5: biases on
    query, key and value), qwen3 (norms on query and key), phi3, phi (Phi-1.5 and Phi-2: attention and a plain MLP side
    by side behind one layer norm, biases everywhere), gemma (the first: GeGLU, norms whose weight is added to one, word
    embeddings scaled by the root of the width).
    """
    layers: int = Field(gt=0)
    """Number of transformer layers."""
    hidden_size: int = Field(gt=0)
    """Width of the language model."""
    ffn_hidden_size: int = Field(gt=0)
    """Inner width of the MLP (of a gated one: of the gate and of the up projection, each)."""
    attention_heads: int = Field(gt=0)
    """Query heads of a layer."""
    query_groups: int = Field(gt=0)
    """Key and value heads of a layer; equal to attention_heads without grouped queries."""
    attention_head_size: int | None = Field(default=None, gt=0)
    """Width of one attention head (Hugging Face: head_dim); None: hidden_size / attention_heads."""
    vocabulary_size: int = Field(gt=0)
    """Tokens of the tokenizer, added ones such as `<image>` included."""
    vocabulary_padding: int = Field(default=128, gt=0)
    """The embedding table is padded to a multiple of this, so that no layout changes its size."""
    rotary_base: float = Field(default=10000.0, gt=0)
    """Base of the rotary position embedding (Hugging Face: rope_theta)."""
    rotary_scaling: RotaryScaling | None = None
    """Scaling of the rotary position embedding (Hugging Face: rope_scaling); None: not scaled."""
    partial_rotary_factor: float = Field(default=1.0, gt=0, le=1)
    """Share of a head that the rotary embedding turns, from its start (phi alone: 0.5 in Phi-1.5, 0.4 in Phi-2)."""
    norm_epsilon: float = Field(default=1e-5, gt=0)
    """Epsilon of the norms."""
    tied_embeddings: bool = False
    """Whether the output layer shares the weight of the word embeddings."""
    maximum_positions: int = Field(default=4096, gt=0)
    """Longest sequence the language model was made for, in tokens."""
    sliding_window: int | None = Field(default=None, gt=0)
    """Tokens that attention looks back, itself included (mistral, phi3); None: all. Training attends to all tokens,
    which within the window is the same; longer sequences are refused.
    """

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.attention_head_size or self.hidden_size // self.attention_heads

    @property
    def query_key_value_rows(self) -> int:
        """Rows of the projection to queries, keys and values."""
        return (self.attention_heads + 2 * self.query_groups) * self.head_size

    @property
    def query_key_value_bias(self) -> bool:
        """Whether the query, key and value projections have biases."""
        return self.family == "qwen2" or self.linear_bias

    @property
    def parallel_block(self) -> bool:
        """Whether attention and MLP of a layer read one norm's output and are added to the residual together."""
        return self.family == "phi"

    @property
    def linear_bias(self) -> bool:
        """Whether every linear layer has a bias, the output layer too."""
        return self.family == "phi"

    @property
    def layer_norm(self) -> bool:
        """Whether norms are layer norms with a bias; else RMS norms."""
        return self.family == "phi"

    @property
    def gated_mlp(self) -> bool:
        """Whether the MLP multiplies its activation by a second projection."""
        return self.family != "phi"

    @property
    def mlp_matrices(self) -> int:
        """Matrices of the MLP, each hidden_size x ffn_hidden_size."""
        return 3 if self.gated_mlp else 2

    @property
    def activation(self) -> Literal["silu", "gelu_tanh"]:
        """The MLP's activation; gelu_tanh is the GELU's approximation (Hugging Face: gelu_new)."""
        return "gelu_tanh" if self.family in ("phi", "gemma") else "silu"

    @property
    def zero_centered_norm(self) -> bool:
        """Whether a norm's weight is what is added to one."""
        return self.family == "gemma"

    @property
    def embedding_scale(self) -> float:
        """What word embeddings are multiplied with; visual tokens are not."""
        return self.hidden_size**0.5 if self.family == "gemma" else 1.0

    @property
    def rotary_size(self) -> int:
        """Dimensions of a head that the rotary embedding turns."""
        return int(self.head_size * self.partial_rotary_factor)

    @property
    def query_key_norm(self) -> bool:
        """Whether queries and keys are normalised per head, before the rotary embedding."""
        return self.family == "qwen3"

    @property
    def longest_sequence(self) -> int:
        """Tokens of the longest sequence that can be trained on."""
        return min(self.maximum_positions, self.sliding_window or self.maximum_positions)

    @property
    def padded_vocabulary_size(self) -> int:
        """Rows of the embedding table: vocabulary_size rounded up to a multiple of vocabulary_padding."""
        return -(-self.vocabulary_size // self.vocabulary_padding) * self.vocabulary_padding


class Architecture(ConfigModel):
    """Sizes of tower and language model; the projector (two linear layers) follows from the two widths."""

    vision: VisionArchitecture
    """The vision tower."""
    language: LanguageArchitecture
    """The language model."""

    @property
    def visual_tokens(self) -> int:
        """Tokens the tower yields for one image, before compression.

        Contract: the tower (model) returns exactly this many features per image, and the data package counts
        sequence lengths with it.
        """
        keeps_class_token = self.vision.has_class_token and self.vision.feature_select == "full"
        return self.vision.patches + int(keeps_class_token)
