"""Which language layers live on which virtual pipeline stage."""

from megatron.core.transformer.enums import LayerType

from megatron_sts.config import ParallelConfig


def layers_of_stages(layers: int, parallel: ParallelConfig) -> list[range]:
    """Layers (0-based) of each virtual stage, in order of depth.

    Virtual stage i lives on pipeline rank i % pipeline as its chunk i // pipeline, as in megatron-core.
    """
    stages = parallel.pipeline * parallel.virtual_pipeline
    counts = parallel.layers_per_stage or (layers // stages,) * stages
    assert len(counts) == stages and sum(counts) == layers
    result, start = [], 0
    for count in counts:
        result.append(range(start, start + count))
        start += count
    return result


def pipeline_layout(layers: int, parallel: ParallelConfig) -> list[list[LayerType]] | None:
    """The layout of an uneven split as megatron-core's `pipeline_model_parallel_layout`; None for an even one.

    One list per virtual stage in order of depth; the embedding opens the first, the loss closes the last.
    """
    if parallel.layers_per_stage is None or parallel.pipeline == 1:
        return None
    stages = [[LayerType.decoder] * len(stage) for stage in layers_of_stages(layers, parallel)]
    stages[0].insert(0, LayerType.embedding)
    stages[-1].append(LayerType.loss)
    return stages
