"""Bytes of activations that a rank keeps for the backward pass.

As Korthikanti et al. count them (arXiv 2205.05198, section 4), for the layers trained here: no dropout, RMSNorm, a
gated MLP, grouped queries, and attention whose kernels keep no scores. With hidden size h, a query heads and g
key/value groups of size d, feed-forward size f, w bytes a number (2 in bf16, 4 in fp32) and s bytes in what a matrix
product keeps for the gradient of its weights (1 in FP8, else w), a row of a layer keeps

    w h                        its input
    s h + 4                    output and factor of the first norm
    w d (a + 2 g) + 4 a        query, key and value; what softmax was divided by
    w d a                      output of attention; in FP8 with delayed scaling s d a more
    w h                        input of the second norm
    s h + 4                    output and factor of the second norm
    w 2 f + s f                both halves of the first product; input of the second
    (w d + 4) (a + g)          where queries and keys have norms, their inputs and factors

Where the language model is frozen no product keeps its input: without both s h, and s f. Tensor parallelism t divides
attention and MLP, sequence parallelism the rest; context parallelism divides the rows. In a layer that is skipped for
visual tokens only text has what comes after attention, and w h of its result. A parallel block (Phi) has one norm,
whose output every tensor-parallel rank has whole, and an MLP of w f + s f. megatron-core's plain layers, which train in
fp32, keep more: w h of each norm's own steps, w d (a + g) because the values are a view of the whole product, and
w 2 f because SwiGLU is two products there. tests/parallel/test_activations.py holds a layer against what torch saves
for its backward pass, tests/reference_kernels one of Transformer Engine's.

The first stage also keeps w (v + 2 h) a visual token in the projector, v the tower's width, and of a trained tower
w (8 v + 3 u) a token and layer, u its feed-forward size. The last stage keeps the last norm's, and the
logits: softmax in fp32 and the logits or their gradient, (4 + w) / t for each entry of the vocabulary, 4 / t in fp32.
While they run, a frozen tower takes one of its layers, and recomputation one of the language model's.
Left out: rotary tables, what kernels and collectives use for the moment, the allocator's fragments.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from megatron_sts.config import Recipe, StageConfig
from megatron_sts.planning.costs import images_per_sample, planned_length
from megatron_sts.sts import StepPlan
from megatron_sts.sts.simulation import rank_order


@dataclass(frozen=True)
class LayerActivations:
    """Bytes that one row of the sequence takes on a rank in one layer, by what keeps them.

    text_copy: what else a row of text takes where the MLP has text alone.
    """

    layer_input: float
    attention_norm: float
    attention: float
    mlp_input: float
    mlp_norm: float
    mlp: float
    text_copy: float

    def kept(self, mlp_share: float = 1.0) -> float:
        """Of a row in the mean, where a share of the rows goes through the MLP."""
        before = self.layer_input + self.attention_norm + self.attention
        copied = self.text_copy if mlp_share < 1 else 0.0
        return before + mlp_share * (self.mlp_input + self.mlp_norm + self.mlp + copied)


def layer_activations(recipe: Recipe, stage: StageConfig, fp8: bool = False) -> LayerActivations:
    """Of a layer in which nothing is recomputed. fp8: whether its products are in FP8."""
    language, parallel = recipe.architecture.language, recipe.parallel
    width, tensor = number_bytes(recipe), parallel.tensor
    plain = recipe.precision == "fp32"
    product = (1 if fp8 else width) if "language" in stage.trains else 0
    whole = 1 / tensor if parallel.sequence_parallel else 1.0
    queries, keys = (language.head_size * count for count in (language.attention_heads, language.query_groups))
    attention = width * 2 * (queries + keys) + 4 * language.attention_heads
    if language.query_key_norm:
        attention += width * (queries + keys) + 4 * (language.attention_heads + language.query_groups)
    if plain:
        attention += width * (queries + keys)
    if fp8 and recipe.fp8_recipe == "delayed":
        attention += product * queries
    if language.parallel_block:
        rows = product * language.hidden_size
        return LayerActivations(
            layer_input=width * language.hidden_size * whole,
            attention_norm=rows + 8 * whole,
            attention=attention / tensor,
            mlp_input=0.0,
            mlp_norm=0.0,
            mlp=(width + product) * language.ffn_hidden_size / tensor,
            text_copy=rows + width * language.hidden_size,
        )
    norm = product * language.hidden_size * (2 if plain else 1) + 4
    mlp = (width * 2 * (2 if plain else 1) + product) * language.ffn_hidden_size
    return LayerActivations(
        layer_input=width * language.hidden_size * whole,
        attention_norm=norm * whole,
        attention=attention / tensor,
        mlp_input=width * language.hidden_size * whole,
        mlp_norm=norm * whole,
        mlp=mlp / tensor,
        text_copy=width * language.hidden_size * whole,
    )


def with_recompute(recipe: Recipe, stage: StageConfig, found: LayerActivations) -> LayerActivations:
    """What the recipe's `recompute` leaves of `layer_activations`."""
    if recipe.recompute == "full":
        return LayerActivations(found.layer_input, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    if "layernorm" in recipe.recompute:
        found = replace(found, attention_norm=0.0, mlp_norm=0.0)
    if "mlp" in recipe.recompute:
        # A plain norm is no part of the MLP, which is computed again from its output; Transformer Engine's is.
        plain = recipe.precision == "fp32" and "layernorm" not in recipe.recompute
        output = 0.0 if "language" in stage.trains else found.mlp_input
        found = replace(found, mlp=0.0, mlp_norm=found.mlp_norm + output if plain else 0.0)
    return found


@dataclass(frozen=True)
class RankActivations:
    """Most bytes of activations that a rank of a pipeline stage holds at once.

    kept: by the micro-batches that are under way. logits: of the last stage; passing: of what runs at the moment
    (a layer that is recomputed, the frozen tower). in_flight: passes of a chunk that wait for their backward pass.
    """

    kept: float
    logits: float
    passing: float
    in_flight: int

    @property
    def total(self) -> float:
        """All together: logits and what passes are not there at the same time."""
        return self.kept + max(self.logits, self.passing)


def largest_activations(
    recipe: Recipe, stage: StageConfig, rank: int, micro_batches: int, plans: Iterable[StepPlan]
) -> RankActivations:
    """Of a rank of a 0-based pipeline stage, with mean samples, in that of some steps which keeps most."""
    by_plan = {
        (plan.skipped_layers, plan.layers_skipped_for_visual, plan.visual_tokens): plan for plan in plans
    }.values()
    kept = [_kept_by_chunk(recipe, stage, rank, plan) for plan in by_plan]
    largest, plan = max(zip(kept, by_plan, strict=True), key=lambda found: sum(found[0]))
    most, in_flight = _most_at_once(recipe, rank, micro_batches, largest)
    rows, passing, logits = _rows(recipe, stage, plan.visual_tokens), 0.0, 0.0
    if recipe.recompute != "none":
        passing = rows * layer_activations(recipe, stage, recipe.precision == "fp8").kept()
    if rank == 0 and "vision" not in stage.trains:
        passing = max(passing, _tower_layer(recipe, stage))
    if rank == recipe.parallel.pipeline - 1:
        logits = rows * logit_bytes(recipe)
    return RankActivations(most, logits, passing, in_flight)


def _rows(recipe: Recipe, stage: StageConfig, visual_tokens: int) -> float:
    """Rows of a micro-batch of mean samples on a rank, before tensor parallelism divides them."""
    return stage.batch.micro * planned_length(recipe, stage, visual_tokens) / recipe.parallel.context


def _kept_by_chunk(recipe: Recipe, stage: StageConfig, rank: int, plan: StepPlan) -> list[float]:
    """Bytes that a micro-batch leaves in each chunk of a rank until its backward pass."""
    parallel, text_tokens = recipe.parallel, stage.data.text_tokens
    assert text_tokens is not None
    rows, layers = _rows(recipe, stage, plan.visual_tokens), recipe.architecture.language.layers
    text = stage.batch.micro * text_tokens / parallel.context
    ends = recipe.fp8_bf16_layers if recipe.precision == "fp8" else 0

    def layer_bytes(fp8: bool) -> tuple[float, float]:
        found = with_recompute(recipe, stage, layer_activations(recipe, stage, fp8))
        return rows * found.kept(), rows * found.kept(min(1.0, text / rows))

    inner, outer = layer_bytes(recipe.precision == "fp8"), layer_bytes(fp8=False)
    kept = []
    for chunk in parallel.layers_of_stages(layers)[rank :: parallel.pipeline]:
        run = [layer for layer in chunk if layer not in plan.skipped_layers]
        by_layer = {layer: inner if ends <= layer < layers - ends else outer for layer in run}
        kept.append(sum(found[layer in plan.layers_skipped_for_visual] for layer, found in by_layer.items()))
    if rank == 0:
        kept[0] += _projector(recipe, stage, plan.visual_tokens)
        if "vision" in stage.trains:
            kept[0] += recipe.architecture.vision.used_layers * _tower_layer(recipe, stage)
    if rank == parallel.pipeline - 1:
        last = layer_activations(recipe, stage)
        kept[-1] += rows * (last.layer_input + last.attention_norm)
    return kept


def _most_at_once(recipe: Recipe, rank: int, micro_batches: int, kept: Sequence[float]) -> tuple[float, int]:
    """The most that is kept at once, going through the passes of the rank, and how many passes keep it."""
    parallel = recipe.parallel
    held = most = 0.0
    waiting = in_flight = 0
    for forward, chunk, _ in rank_order(rank, parallel.pipeline, parallel.virtual_pipeline, micro_batches):
        held += kept[chunk] if forward else -kept[chunk]
        waiting += 1 if forward else -1
        most, in_flight = max(most, held), max(in_flight, waiting)
    return most, in_flight


def _projector(recipe: Recipe, stage: StageConfig, visual_tokens: int) -> float:
    """Bytes that a micro-batch leaves in the projector."""
    parallel, vision = recipe.parallel, recipe.architecture.vision
    ranks = parallel.context * (parallel.tensor if parallel.sequence_parallel else 1)
    tokens = stage.batch.micro * images_per_sample(stage) * visual_tokens / ranks
    return number_bytes(recipe) * tokens * (vision.hidden_size + 2 * recipe.architecture.language.hidden_size)


def _tower_layer(recipe: Recipe, stage: StageConfig) -> float:
    """Bytes of one layer of the tower, for the images of the rank that has most of a micro-batch."""
    parallel, vision = recipe.parallel, recipe.architecture.vision
    images = -(-stage.batch.micro * images_per_sample(stage) // (parallel.tensor * parallel.context))
    rows = images * (vision.patches + int(vision.has_class_token))
    return number_bytes(recipe) * rows * (8 * vision.hidden_size + 3 * vision.ffn_hidden_size)


def logit_bytes(recipe: Recipe) -> float:
    """Of one row of the sequence, on a rank of the last stage."""
    width = 4 if recipe.precision == "fp32" else 4 + number_bytes(recipe)
    return width * recipe.architecture.language.padded_vocabulary_size / recipe.parallel.tensor


def number_bytes(recipe: Recipe) -> int:
    """Bytes of an activation."""
    return 4 if recipe.precision == "fp32" else 2
