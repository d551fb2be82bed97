"""The architecture of an import, from what its sources say and what a recipe adds to it."""

from megatron_sts.config import Architecture, LanguageArchitecture, Recipe, VisionArchitecture
from megatron_sts.errors import ConversionError

# What no source says, or what a recipe may say otherwise without its being another model.
_FROM_RECIPE = (
    "vision.feature_layer",
    "vision.feature_select",
    "language.vocabulary_padding",
    "language.maximum_positions",
)
# DINOv2 takes images of any size, by interpolating the same position embeddings.
_INPUT_SIZE = ("vision.image_size", "vision.pretrained_image_size")


def reconcile(vision: VisionArchitecture, language: LanguageArchitecture, recipe: Recipe | None) -> Architecture:
    """The sources' sizes, with the recipe's where they leave a choice. A larger vocabulary gets fresh rows.

    Raises ConversionError, with every field, where the recipe's architecture is another model.
    """
    if recipe is None:
        return Architecture(vision=vision, language=language)
    asked = recipe.architecture
    free: tuple[str, ...] = _FROM_RECIPE
    if vision.family == "dinov2" and vision.position_image_size == asked.vision.position_image_size:
        free += _INPUT_SIZE
    differing = []
    for part, found, wanted in (("vision", vision, asked.vision), ("language", language, asked.language)):
        for name in type(found).model_fields:
            field, here, there = f"{part}.{name}", getattr(found, name), getattr(wanted, name)
            if field in free or here == there or _is_allowed(field, here, there):
                continue
            differing.append(f"{field} is {there} in the recipe, {here} in the weights")
    if differing:
        raise ConversionError(
            f"the recipe's model.architecture is not that of the weights: {'; '.join(differing)}; correct it, or "
            "import without --recipe and take the architecture.yaml that is written"
        )
    return asked


def _is_allowed(field: str, found: object, wanted: object) -> bool:
    if field == "vision.family":
        return {found, wanted} <= {"siglip", "siglip2"}
    return field == "language.vocabulary_size" and wanted > found  # type: ignore[operator]
