"""The training loop of one stage."""

import time
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from megatron_sts.config import Recipe, StageConfig, recompute_warning
from megatron_sts.data.unread_keys import unread_text
from megatron_sts.model.build import build_chunks, freeze, wrap
from megatron_sts.model.mllm import MultimodalModel
from megatron_sts.model.precision import what_runs
from megatron_sts.parallel.groups import Place, group_collection
from megatron_sts.parallel.together import rank_zero_does
from megatron_sts.parallel.watchdog import Watchdog
from megatron_sts.sts import StepPlan
from megatron_sts.sts.rises import resumed_rises
from megatron_sts.train.bad_steps import BadSteps, step_judge
from megatron_sts.train.checkpoint import load_checkpoint, sharded_state
from megatron_sts.train.collections_by_step import CollectionsByStep
from megatron_sts.train.evaluation_step import EvaluationStep
from megatron_sts.train.figures import StepFigures
from megatron_sts.train.fp8_start import register_layers
from megatron_sts.train.layer_rises import LayerRises
from megatron_sts.train.loss_guard import check_loss_rise
from megatron_sts.train.optimizer import StageOptimizer
from megatron_sts.train.output_directory import open_output_directory
from megatron_sts.train.passes import keeps_fp8_state
from megatron_sts.train.progress import Progress
from megatron_sts.train.resume import Start
from megatron_sts.train.saver import Saver
from megatron_sts.train.stage_data import StageData
from megatron_sts.train.step import RankReport, StepResult, TrainStep
from megatron_sts.train.step_shape import StepShape
from megatron_sts.train.stopping import StopReason, StopRequests
from megatron_sts.train.validation import Validation


@dataclass(frozen=True)
class Running:
    """What goes on beside all stages of a run: what this rank was asked, and the watch over the other ranks."""

    requests: StopRequests
    watchdog: Watchdog


@dataclass(frozen=True)
class StageParts:
    """What trains on this rank: the model chunks, their optimiser, and the step over both."""

    chunks: list[MultimodalModel]
    optimizer: StageOptimizer
    step: TrainStep

    def state(self) -> dict[str, Any]:
        """What a checkpoint of now holds; all ranks together."""
        self.step.gather_weights()
        return sharded_state(self.chunks, self.optimizer)


def prepare_stage(
    recipe: Recipe, stage: StageConfig, total_steps: int, start: Start, place: Place, draws_weights: bool = True
) -> StageParts:
    """Build the model, freeze and wrap it, load what the stage starts from.

    draws_weights: whether fresh weights are those of the recipe's seed, alike in every layout. They are drawn on the
    CPU, 150 million a second; without them the weights are the ones that the modules were built with.
    """
    groups = group_collection()
    chunks = build_chunks(recipe, groups, draw_weights=draws_weights and start.checkpoint is None)
    freeze(chunks, stage.trains)
    if start.checkpoint is not None and not start.resumes:
        load_checkpoint(start.checkpoint, chunks)
    wrapped = wrap(chunks, recipe, groups)
    optimizer = StageOptimizer(recipe, stage, total_steps, chunks, wrapped)
    if start.checkpoint is not None and start.resumes:
        load_checkpoint(start.checkpoint, chunks, optimizer, start.step)
    judge = step_judge(recipe, stage.name, start.step)
    step = TrainStep(chunks, wrapped, optimizer, place, judge, keeps_fp8_state(recipe), stage.distill)
    if keeps_fp8_state(recipe):
        register_layers(recipe, stage, chunks, step, place)
    return StageParts(chunks, optimizer, step)


def train_stage(
    recipe: Recipe, stage: StageConfig, data: StageData, start: Start, place: Place, running: Running
) -> StopReason:
    """Train one stage from its start to its end or to where some rank wishes to stop, on all ranks together.

    Leaves a checkpoint of where it ends; returns why that was before the stage's end, if it was.
    """
    if start.step == data.total_steps:
        _say(place, f"{stage.name}: all {data.total_steps:,} steps are done, in {start.checkpoint}")
        return StopReason.NONE
    if start.run is not None:
        # An older checkpoint than the newest knows fewer measurements.
        stage = resumed_rises(stage, start.run.recipe.stage(stage.name))
    parts = prepare_stage(recipe, stage, data.total_steps, start, place)
    _say_opening(recipe, stage, data, start, place)
    evaluation = EvaluationStep(recipe, parts.chunks, parts.step.modules, place)
    rises = LayerRises(recipe, data, evaluation, place, partial(_say, place), running.watchdog.reached)
    stage = rises.measured(stage, start.step)
    recipe, data = recipe.with_stage(stage), data.with_skip(stage.skip)
    if not start.resumes:
        check_loss_rise(recipe, stage, data, evaluation, rises, place, partial(_say, place))
    # Up to here a start may be refused, and nothing has been written.
    rank_zero_does(lambda: open_output_directory(recipe))
    layers = recipe.architecture.language.layers
    # The last stage knows the loss and rank 0 is told it; metrics have one writer.
    with (
        Progress(recipe, stage.name, start.step, data.total_steps, layers, speaks=place.rank == 0) as progress,
        Saver(recipe, stage.name, parts.state, progress.say) as saver,
        CollectionsByStep(start.step) as collections,
        data.inputs(place, start.step) as inputs,
    ):
        validation = Validation(recipe, stage, data, evaluation, place)
        bad_steps = BadSteps(recipe, stage.name, place)

        def report() -> RankReport:
            # The device is at work now, and the host has time.
            collections.collect()
            bad_ahead = inputs.bad_ahead()
            return RankReport(running.requests.reason(), saver.is_at_work(), bad_ahead, inputs.take_wait())

        began = time.perf_counter()
        for step in range(start.step, data.total_steps):
            measured = rises.measured(stage, step)
            if measured is not stage:
                stage, recipe = measured, recipe.with_stage(measured)
                data = data.with_skip(stage.skip)
                saver.take_up(recipe)
                inputs.take_up(data)
            running.watchdog.reached(f"{stage.name} step {step + 1}")
            given = next(inputs)
            plan = given.plan
            rate = parts.optimizer.learning_rate
            result = parts.step.run(given, report)
            inputs.told(result.bad_ahead)
            seconds = time.perf_counter() - began
            figures = _figures(stage, data, plan, data.shape(plan), result, rate, seconds, saver.take_stall())
            if validation.is_due(step + 1, data.total_steps):
                found = validation.measure(plan)
                figures = replace(figures, validation_loss=found.dense, validation_loss_sparse=found.sparse)
            progress.record(figures, result.judgement)
            began = time.perf_counter()

            bad_samples = {number: data.sample_ids(step, number) for number in result.bad_micro_batches}
            bad_steps.note(step + 1, result.judgement, bad_samples, parts.chunks)
            if not result.saves:
                saver.advance()
            done, every = step + 1, recipe.checkpoint.every_steps
            is_needed = done == data.total_steps or bool(result.stop)
            if is_needed or (every is not None and done % every == 0):
                saver.save(done, is_needed, figures.validation_loss)
            if result.stop:
                progress.say(
                    f"{stage.name} {done}/{data.total_steps} | stops here: {result.stop.text}; the same command goes on"
                )
                return result.stop
    return StopReason.NONE


def _say(place: Place, text: str) -> None:
    if place.rank == 0:
        print(text, flush=True)


def _say_opening(recipe: Recipe, stage: StageConfig, data: StageData, start: Start, place: Place) -> None:
    _say(place, _opening(stage, data, start, place))
    _say(place, f"{stage.name}: {what_is_sparse(stage)}")
    if unread := unread_text(data.prepared.unread):
        _say(place, f"{stage.name}: {unread}")
    if unguided := data.without_guide():
        _say(
            place,
            f"{stage.name}: {unguided:,} samples have a picture, but no human words for text_guided; uniform there",
        )
    _say(place, what_runs(recipe))
    if warning := recompute_warning(recipe):
        _say(place, f"WARNING: {warning}")
    for note in start.notes:
        _say(place, f"{stage.name}: {note}")


def _opening(stage: StageConfig, data: StageData, start: Start, place: Place) -> str:
    origin = f"from {start.checkpoint}" if start.checkpoint is not None else "from fresh weights"
    samples = f"{len(data.samples):,} samples{data.prepared.text(stage.data.max_tokens)}"
    return (
        f"{stage.name}: {samples}, {data.total_steps:,} steps of {stage.batch.global_size}, "
        f"trains {', '.join(stage.trains)}; tensor {place.tensor_size} x pipeline {place.pipeline_size} x "
        f"context {place.context_size} x data {place.data_size}; {origin}"
        + (f", after step {start.step}" if start.resumes else "")
    )


def what_is_sparse(stage: StageConfig) -> str:
    """What a stage leaves out, in one line."""
    parts = []
    for skip in stage.skip:
        what = "layers" if skip.tokens == "all" else "the MLP of visual tokens"
        rate = {"sts": "fading from", "constant": "at", "pld": "rising to"}[skip.schedule]
        parts.append(f"skips {what}, {rate} a rate of {skip.alpha:g}")
    compress = stage.compress
    if compress is not None and compress.strategy != "none":
        amounts = {
            "keep_ratio": compress.keep_ratio,
            "keep_tokens": compress.keep_tokens,
            "window": compress.window,
            "schedule": compress.schedule and compress.schedule.kind,
        }
        amount = ", ".join(f"{name} {value}" for name, value in amounts.items() if value is not None)
        parts.append(f"keeps visual tokens by {compress.strategy}, {amount}")
    if parts and (share := max(block.full_share for block in stage.sparse_blocks.values())):
        distilled = f", distilled from the sparse ones with weight {stage.distill:g}" if stage.distill else ""
        parts.append(f"{share:.0%} of the steps full{distilled}")
    return f"sparse: {'; '.join(parts)}" if parts else "dense: all layers and all visual tokens in every step"


def _figures(
    stage: StageConfig,
    data: StageData,
    plan: StepPlan,
    shape: StepShape,
    result: StepResult,
    rate: float,
    seconds: float,
    stalled: float,
) -> StepFigures:
    executed, dense = data.flops(plan, shape)
    return StepFigures(
        stage=stage.name,
        step=plan.step + 1,
        loss=result.loss,
        grad_norm=result.grad_norm,
        learning_rate=rate,
        step_time_s=seconds,
        data_wait_s=result.data_wait_s,
        save_stall_s=stalled,
        tokens_per_second=shape.tokens / seconds,
        sequence_length=shape.length,
        visual_tokens_kept=shape.images * plan.visual_tokens,
        visual_tokens_total=shape.images * plan.total_visual_tokens,
        layers_skipped=sorted(plan.skipped_layers),
        layers_skipped_for_visual=sorted(plan.layers_skipped_for_visual),
        flops_dense=dense.total,
        flops_executed=executed.total,
        dropped_step=result.dropped,
        distill_loss=result.distill_loss,
    )
