"""Every check that concerns more than one size of a model."""

from collections.abc import Callable, Iterator

from megatron_sts.config.architecture import Architecture

_FAMILIES_WITH_WINDOW = ("mistral", "phi3")
_FAMILIES_WITHOUT_SCALING = ("phi", "phi3")


def check_vision_sizes(architecture: Architecture) -> Iterator[str]:
    """Patches fit into the image, heads into the width."""
    vision = architecture.vision
    if vision.patch_size > vision.image_size:
        yield (
            f"vision.patch_size is {vision.patch_size}, larger than vision.image_size {vision.image_size}; "
            "an image must hold at least one patch"
        )
    if vision.pretrained_image_size is not None and vision.family != "dinov2":
        yield (
            f"vision.pretrained_image_size is {vision.pretrained_image_size}, but {vision.family} does not interpolate "
            "its position embeddings here (only dinov2 does); remove it"
        )
    elif vision.patch_size > vision.position_image_size and vision.pretrained_image_size is not None:
        yield (
            f"vision.pretrained_image_size is {vision.pretrained_image_size}, smaller than vision.patch_size "
            f"{vision.patch_size}; an image must hold at least one patch"
        )
    if vision.family == "dinov2" and vision.ffn_hidden_size % vision.hidden_size:
        # Hugging Face's configuration has their ratio, a whole number.
        yield not_divisible("vision.ffn_hidden_size", vision.ffn_hidden_size, "vision.hidden_size", vision.hidden_size)
    if vision.hidden_size % vision.attention_heads:
        yield not_divisible("vision.hidden_size", vision.hidden_size, "vision.attention_heads", vision.attention_heads)


def check_vision_features(architecture: Architecture) -> Iterator[str]:
    """The features that are taken exist in this tower."""
    vision = architecture.vision
    # The hidden states of a tower of n layers are n + 1: the embeddings, then the output of each layer.
    if not -(vision.layers + 1) <= vision.feature_layer <= vision.layers:
        yield (
            f"vision.feature_layer is {vision.feature_layer}, but a tower of {vision.layers} layers has "
            f"hidden states 0 to {vision.layers} (or -{vision.layers + 1} to -1); choose one of them"
        )
    if not vision.has_class_token and vision.feature_select == "default":
        yield (
            f"vision.feature_select is 'default', which drops the class token, but {vision.family} has no class token; "
            "set vision.feature_select: full"
        )


def check_language_heads(architecture: Architecture) -> Iterator[str]:
    """Heads fit into the width, query groups into the heads, rotary pairs into a head."""
    language = architecture.language
    heads, groups = language.attention_heads, language.query_groups
    if language.attention_head_size is None and language.hidden_size % heads:
        yield not_divisible("language.hidden_size", language.hidden_size, "language.attention_heads", heads)
    elif language.head_size % 2:
        field = "language.hidden_size / language.attention_heads"
        if language.attention_head_size is not None:
            field = "language.attention_head_size"
        yield f"{field} is {language.head_size}, an odd head size; rotary embeddings turn pairs, so make it even"
    elif language.rotary_size % 2 or language.rotary_size < 2:
        yield (
            f"language.partial_rotary_factor is {language.partial_rotary_factor}, which is {language.rotary_size} of a "
            f"head's {language.head_size} dimensions; rotary embeddings turn pairs, so choose a share that is even"
        )
    if heads % groups:
        yield not_divisible("language.attention_heads", heads, "language.query_groups", groups)


def check_language_family(architecture: Architecture) -> Iterator[str]:
    """What only some families have."""
    language = architecture.language
    if language.sliding_window is not None and language.family not in _FAMILIES_WITH_WINDOW:
        yield (
            f"language.sliding_window is {language.sliding_window}, but {language.family} models have no attention "
            f"window here (only {', '.join(_FAMILIES_WITH_WINDOW)}); remove it"
        )
    if language.rotary_scaling is not None and language.family in _FAMILIES_WITHOUT_SCALING:
        yield (
            f"language.rotary_scaling is {language.rotary_scaling.kind}, which {language.family} models do not have "
            "here; remove it (the longrope scaling of phi3 is not in megatron-core)"
        )


def check_phi(architecture: Architecture) -> Iterator[str]:
    """What phi models alone have, and what they do not."""
    language = architecture.language
    if language.family == "phi":
        if language.tied_embeddings:
            yield "language.tied_embeddings is true, but the output layer of phi models is their own; set it to false"
    elif language.partial_rotary_factor != 1.0:
        yield (
            f"language.partial_rotary_factor is {language.partial_rotary_factor}, but the rotary embedding of "
            f"{language.family} models turns whole heads here (only that of phi does not); remove it"
        )


ARCHITECTURE_CHECKS: tuple[Callable[[Architecture], Iterator[str]], ...] = (
    check_vision_sizes,
    check_vision_features,
    check_language_heads,
    check_language_family,
    check_phi,
)


def architecture_problems(architecture: Architecture) -> list[str]:
    """What is wrong with the sizes, one message each."""
    return [problem for check in ARCHITECTURE_CHECKS for problem in check(architecture)]


def not_divisible(field: str, value: int, divisor_field: str, divisor: int) -> str:
    """The message for a size that does not divide."""
    return f"{field} is {value}, not divisible by {divisor_field} {divisor}; change one of the two"
