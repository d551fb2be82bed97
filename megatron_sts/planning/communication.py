"""What a rank sends in a step, and how long that takes.

With b rows of a micro-batch on a rank, t tensor-, c context- and d data-parallel ranks, h wide, w bytes a number:

    tensor     in each direction of a layer two all-gathers and two reduce-scatters of w h b, of which a rank sends
               (t - 1) / t; without sequence parallelism all-reduces, which are as much. Those of the MLP have text
               alone where the layer is skipped for visual tokens; what is recomputed is sent again; a parallel block
               has one of each
    context    keys and values to every other rank, twice that on the way back; hidden behind attention's products
    pipeline   w h b from stage to stage, over t under sequence parallelism; hidden by the interleaved schedule
    gradients  their bytes, (cd - 1) / cd of them reduced to shards by the distributed optimiser, twice that without;
               `overlap_grad_reduce` hides them behind the backward pass of the last micro-batch
    weights    what the distributed optimiser gathers; `overlap_param_gather` hides it behind the first forward pass
"""

from dataclasses import dataclass

from megatron_sts.config import Recipe, StageConfig
from megatron_sts.planning.activations import number_bytes
from megatron_sts.planning.costs import planned_length
from megatron_sts.planning.hardware import Hardware
from megatron_sts.planning.memory import rank_bytes, trained_parameters
from megatron_sts.sts import ModelSizes


@dataclass(frozen=True)
class Transfer:
    """What one kind of parallelism sends: bytes of a rank, their seconds, and the seconds that nothing hides."""

    bytes: float = 0.0
    seconds: float = 0.0
    exposed: float = 0.0

    def __add__(self, other: "Transfer") -> "Transfer":
        return Transfer(self.bytes + other.bytes, self.seconds + other.seconds, self.exposed + other.exposed)

    def times(self, count: float) -> "Transfer":
        """So many of them."""
        return Transfer(self.bytes * count, self.seconds * count, self.exposed * count)


class Traffic:
    """What the ranks of one stage of training send to each other."""

    def __init__(
        self, recipe: Recipe, stage: StageConfig, data_parallel: int, hardware: Hardware, visual_tokens: int
    ) -> None:
        parallel, text = recipe.parallel, stage.data.text_tokens
        assert text is not None
        length = planned_length(recipe, stage, visual_tokens)
        self._recipe, self._stage, self._hardware = recipe, stage, hardware
        self._data_parallel = data_parallel
        self._rows = stage.batch.micro * length / parallel.context
        self._text_share = text / length
        self._row = number_bytes(recipe) * recipe.architecture.language.hidden_size
        attention = ModelSizes(recipe.architecture).layer_attention(length) * stage.batch.micro
        ranks = parallel.tensor * parallel.context
        self._attention_seconds = attention / ranks / hardware.rate(recipe.precision)

    def tensor(self, run: float, for_text: float, backward: bool) -> Transfer:
        """Of a micro-batch's pass through layers, some with their MLP for text alone."""
        size = self._recipe.parallel.tensor
        if size == 1:
            return Transfer()
        mlp = run - for_text * (1 - self._text_share)
        if self._recipe.architecture.language.parallel_block:
            mlp, parts, calls = 0.0, run, run
        else:
            parts, calls = run + mlp, 2 * run
        if backward and self._recipe.recompute == "full":
            parts, calls = 2 * parts, 2 * calls
        elif backward and "mlp" in self._recipe.recompute and mlp:
            parts, calls = parts + mlp, calls + run
        sent = 2 * parts * self._row * self._rows * (size - 1) / size
        seconds = sent / self._hardware.bandwidth(size, 1) + 2 * calls * self._hardware.latency
        return Transfer(sent, seconds, seconds)

    def context(self, run: float, backward: bool) -> Transfer:
        """Of a micro-batch's pass through layers."""
        language, parallel = self._recipe.architecture.language, self._recipe.parallel
        size, ways = parallel.context, 2 if backward else 1
        keys = number_bytes(self._recipe) * 2 * language.query_groups * language.head_size / parallel.tensor
        sent = ways * run * (size - 1) * keys * self._rows
        seconds = sent / self._hardware.bandwidth(size, parallel.tensor)
        return Transfer(sent, seconds, max(0.0, seconds - ways * run * self._attention_seconds))

    def pipeline(self) -> Transfer:
        """Of a micro-batch's pass through a virtual stage: what is handed on."""
        parallel = self._recipe.parallel
        if parallel.pipeline == 1:
            return Transfer()
        distance = parallel.tensor * parallel.context * self._data_parallel
        sent = self._row * self._rows / (parallel.tensor if parallel.sequence_parallel else 1)
        seconds = sent / self._hardware.bandwidth(2, distance) + self._hardware.latency
        return Transfer(sent, seconds, 0.0 if parallel.virtual_pipeline > 1 else seconds)

    def gradients(self, rank: int, backward_seconds: float) -> Transfer:
        """Of a step, on a pipeline rank; backward_seconds: of one micro-batch on it."""
        held = rank_bytes(self._recipe, self._stage, rank, self._data_parallel).gradients
        ways = 1 if self._recipe.optimizer.distributed else 2
        hidden = backward_seconds if self._recipe.parallel.overlap_grad_reduce else 0.0
        return self._over_replicas(ways * held, hidden)

    def weights(self, rank: int, forward_seconds: float) -> Transfer:
        """Of a step, on a pipeline rank; forward_seconds: of one micro-batch on it."""
        if not self._recipe.optimizer.distributed:
            return Transfer()
        held = number_bytes(self._recipe) * trained_parameters(self._recipe, self._stage, rank)
        return self._over_replicas(held, forward_seconds if self._recipe.parallel.overlap_param_gather else 0.0)

    def _over_replicas(self, held: float, hidden: float) -> Transfer:
        parallel = self._recipe.parallel
        size = self._data_parallel * parallel.context
        sent = held * (size - 1) / size
        seconds = sent / self._hardware.bandwidth(size, parallel.tensor)
        return Transfer(sent, seconds, max(0.0, seconds - hidden))
