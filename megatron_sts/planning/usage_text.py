"""What a recipe takes of real machines, in words."""

from collections.abc import Iterator

from megatron_sts.config import Recipe, recompute_warning
from megatron_sts.planning.fit import LONGEST_TEXT, RESERVE
from megatron_sts.planning.forecast import RecipeForecast, StageForecast
from megatron_sts.planning.usage import Usage


def usage_lines(found: RecipeForecast, stage: StageForecast) -> Iterator[str]:
    """Of a stage of training: its longest samples, a step in seconds, what is sent, and what would be waited for."""
    usage, recipe = stage.usage, found.recipe
    if usage is None or stage.work is None:
        return
    yield (
        f"  activations: {_gib(max(one.total for one in usage.activations))} of mean samples, "
        f"{_gib(max(one.total for one in usage.dense_activations))} dense; with the longest samples a rank holds "
        f"{_gib(usage.fullest)} in all"
    )
    parallel, seconds = recipe.parallel, usage.seconds
    ranks = parallel.tensor * parallel.pipeline * parallel.context * found.data_parallel
    peak = ranks * found.hardware.peak(recipe.precision)
    flops = stage.work.flops_executed / stage.planned.steps
    yield (
        f"  a step, at least: {seconds.total:.3g} s ({usage.dense_seconds.total:.3g} s dense), of which products "
        f"{seconds.products:.3g} s; MFU at most {flops / (seconds.total * peak):.0%}"
    )
    if seconds.transfers:
        parts = [
            f"{kind} {sent.bytes / 1e9:.3g} GB in {sent.seconds:.2g} s ({sent.exposed:.2g} s waited for)"
            for kind, sent in seconds.transfers.items()
        ]
        yield f"  sent by a rank in a step: {', '.join(parts)}"
    yield from _launch_warning(found, stage, usage)


def _launch_warning(found: RecipeForecast, stage: StageForecast, usage: Usage) -> Iterator[str]:
    launches, config = usage.seconds.launches, stage.planned.stage
    if launches.host <= launches.device:
        return
    share = config.batch.global_size // found.data_parallel
    fitting = [size for size in range(launches.least_micro, share + 1) if share % size == 0]
    remedy = (
        f"stages.{config.name}.batch.micro={fitting[0]} would hide it, where it fits"
        if fitting
        else f"it takes {launches.least_micro} samples to hide it: fewer ranks, or a larger batch.global"
    )
    yield (
        f"  WARNING: the layers of a micro-batch of {config.batch.micro} give a GPU {launches.device * 1e3:.2g} ms of "
        f"work, but take the host {launches.host * 1e3:.2g} ms to launch (assumed); {remedy}"
    )


def machine_lines(found: RecipeForecast) -> Iterator[str]:
    """What the times were taken from, and the warning about the recipe as a whole."""
    machines, precision = found.hardware, found.recipe.precision
    yield (
        f"times: assumed H100 nodes of {machines.gpus_per_node}, {machines.rate(precision) / 1e12:.0f} TFLOP/s in "
        f"{precision}, {machines.intra_node / 1e9:.0f} GB/s a GPU in a node and {machines.inter_node / 1e9:.0f} GB/s "
        f"between nodes, {machines.launch_seconds(precision) * 1e3:.0f} ms of host time a layer; none of it measured"
    )
    if warning := recompute_warning(found.recipe):
        yield f"WARNING: {warning}"


def fit_lines(found: RecipeForecast) -> Iterator[str]:
    """The cheapest setting that fits a GPU, as overrides to paste."""
    memory = found.hardware.memory
    if memory is None or any(stage.usage is None for stage in found.stages):
        return
    asked = (
        f"{_gib(memory)} a GPU, {_gib(RESERVE)} kept free, the longest samples taken to have {LONGEST_TEXT} times the "
        "mean text, max_tokens at most"
    )
    if found.fit is None:
        yield f"no setting fits {asked}: more pipeline stages, or a larger GPU"
        return
    fit = found.fit
    usages = [stage.usage for stage in found.stages if stage.usage is not None]
    own = sum(usage.fit.steps * usage.seconds.total for usage in usages)
    full = max(usage.fullest for usage in usages)
    fits = "fits" if full + RESERVE <= memory else "does not fit"
    yield f"cheapest setting that fits ({asked}):"
    for stage in fit.stages:
        yield f"  {stage.name}: {_gib(stage.bytes)}, {stage.seconds:.3g} s a step"
    yield (
        f"  all steps {_hours(fit.seconds([usage.fit for usage in usages]))}, the recipe's own {_hours(own)}, which "
        f"{fits} ({_gib(full)}). To append to the command, with --data-parallel {fit.data_parallel} here:"
    )
    yield "  " + " ".join(_overrides(fit.recipe))


def _overrides(recipe: Recipe) -> Iterator[str]:
    modules = recipe.recompute
    yield f"parallel.tensor={recipe.parallel.tensor}"
    yield f"parallel.sequence_parallel={str(recipe.parallel.sequence_parallel).lower()}"
    yield f"optimizer.distributed={str(recipe.optimizer.distributed).lower()}"
    yield f"recompute={modules if isinstance(modules, str) else '[' + ','.join(modules) + ']'}"
    for stage in recipe.stages:
        yield f"stages.{stage.name}.batch.micro={stage.batch.micro}"


def _gib(count: float) -> str:
    return f"{count / 2**30:,.1f} GiB"


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:,.2f} h"
