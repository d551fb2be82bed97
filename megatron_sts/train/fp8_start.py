"""Before the first step of a stage with delayed scaling: one pass without gradients, through every layer."""

from megatron_sts.config import Recipe, StageConfig
from megatron_sts.data import IGNORED_LABEL, Encoded, RawItem, collate
from megatron_sts.model.fp8_state import register_fp8_layers
from megatron_sts.model.mllm import MultimodalModel
from megatron_sts.parallel.groups import Place
from megatron_sts.parallel.sequence import padded_length
from megatron_sts.sts import StagePlanner
from megatron_sts.train.step import TrainStep
from megatron_sts.train.step_input import StepInput


def register_layers(
    recipe: Recipe, stage: StageConfig, chunks: list[MultimodalModel], step: TrainStep, place: Place
) -> None:
    """Run a micro-batch of a few made-up words, no picture, with every layer; weights and FP8 state stay."""
    plan = StagePlanner(recipe, stage, 1, 1.0).dense_plan(0)
    micro, length = stage.batch.micro, padded_length(1, recipe)
    words = [0] * length
    items = [RawItem(Encoded(words, [IGNORED_LABEL] * length), [], number, []) for number in range(micro)]
    batch = None
    if place.first_stage or place.last_stage:
        image_token = recipe.architecture.language.vocabulary_size - 1
        batch = collate(items, plan.visual_tokens, length, image_token, pad_token_id=0)
    # The interleaved schedule takes a multiple of the pipeline stages.
    count = place.pipeline_size
    given = StepInput(plan, None if batch is None else [batch] * count, count, micro, length)
    register_fp8_layers(chunks, lambda: step.run_without_gradients(given))
