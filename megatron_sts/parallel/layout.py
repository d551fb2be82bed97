"""An uneven pipeline split in megatron-core's own form."""

from megatron.core.transformer.enums import LayerType

from megatron_sts.config import ParallelConfig


def pipeline_layout(layers: int, parallel: ParallelConfig) -> list[list[LayerType]] | None:
    """The layout of an uneven split as megatron-core's `pipeline_model_parallel_layout`; None for an even one.

    One list per virtual stage in order of depth; the embedding opens the first, the loss closes the last.
    """
    if parallel.layers_per_stage is None or parallel.pipeline == 1:
        return None
    stages = [[LayerType.decoder] * len(stage) for stage in parallel.layers_of_stages(layers)]
    stages[0].insert(0, LayerType.embedding)
    stages[-1].append(LayerType.loss)
    return stages
