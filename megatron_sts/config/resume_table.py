"""What happens where a key of the recipe differs from the checkpoint that a run resumes from: one line for every key.

A new key of the recipe gets its name into one of these lines, or a line of its own. docs/faults.md shows the table.
"""

from dataclasses import dataclass
from enum import IntEnum


class OnResume(IntEnum):
    """What a resume does with a key that differs, the strictest last."""

    ALLOWED = 0
    """The new value holds from the resumed step on, and is reported."""
    KEPT = 1
    """The checkpoint decides."""
    ACCEPT = 2
    """Refused, unless `--accept KEY` is given on the command line."""
    REFUSED = 3
    """Refused: it would be another training."""


@dataclass(frozen=True)
class ResumeRule:
    """One line of the table: keys, what a resume does with them, and why, or what it means for the steps to come.

    keys: as in the recipe, `stages.NAME.` for those of a stage; the name of a block stands for all keys in it.
    """

    keys: tuple[str, ...]
    does: OnResume
    why: str


_STAGE = "stages.NAME"


def _of_stage(*keys: str) -> tuple[str, ...]:
    return tuple(f"{_STAGE}.{key}" for key in keys)


RESUME_TABLE: tuple[ResumeRule, ...] = (
    # ---------------------------------------------------------------------------------------------- the run
    ResumeRule(("output_dir",), OnResume.ALLOWED, "a run is moved by moving its directory"),
    ResumeRule(("seed",), OnResume.REFUSED, "it seeds the order of the data and every draw"),
    ResumeRule(
        ("precision",), OnResume.REFUSED, "weights and optimiser state of the checkpoint are of the other precision"
    ),
    ResumeRule(
        ("fp8_recipe", "fp8_bf16_layers"), OnResume.REFUSED, "the checkpoint holds the scaling state of the other one"
    ),
    ResumeRule(
        (
            "parallel.tensor",
            "parallel.pipeline",
            "parallel.virtual_pipeline",
            "parallel.context",
            "parallel.sequence_parallel",
            "parallel.layers_per_stage",
            "parallel.overlap_grad_reduce",
            "parallel.overlap_param_gather",
            "parallel.grad_reduce_dtype",
            "parallel.bucket_parameters",
            "parallel.timeout_minutes",
        ),
        OnResume.ALLOWED,
        "a checkpoint loads into any layout whose virtual pipeline stages are made of whole skip_groups",
    ),
    ResumeRule(("model.architecture",), OnResume.REFUSED, "it is another model"),
    ResumeRule(("model.vision", "model.tokenizer"), OnResume.ALLOWED, "the directories may have moved"),
    ResumeRule(("model.init",), OnResume.KEPT, "the weights are those of the checkpoint"),
    ResumeRule(
        ("optimizer.kind",),
        OnResume.REFUSED,
        "the checkpoint holds the state of the other optimiser",
    ),
    ResumeRule(
        (
            "optimizer.beta1",
            "optimizer.beta2",
            "optimizer.epsilon",
            "optimizer.momentum",
            "optimizer.weight_decay",
            "optimizer.clip_grad",
        ),
        OnResume.ACCEPT,
        "it holds from the next step on",
    ),
    ResumeRule(("optimizer.distributed",), OnResume.ALLOWED, "the optimiser's state is brought into the other form"),
    ResumeRule(
        (
            "checkpoint.every_steps",
            "checkpoint.keep_last",
            "checkpoint.keep_every",
            "checkpoint.asynchronous",
            "checkpoint.max_unfinished",
            "checkpoint.allow_older",
            "on_save_error",
            "keep_best",
            "validation.every_steps",
            "validation.samples",
            "logging.every_steps",
            "logging.tensorboard",
            "logging.wandb_project",
            "stop_after.hours",
            "stop_after.minutes",
            "bad_steps.stop_after_in_a_row",
            "loss_spike.sigma",
            "loss_spike.window",
            "loss_spike.action",
        ),
        OnResume.ALLOWED,
        "it is how a run is watched and saved",
    ),
    ResumeRule(("length_rounding",), OnResume.ALLOWED, "the step has the same samples and the same loss"),
    ResumeRule(("recompute",), OnResume.ALLOWED, "it trades memory for time"),
    # ---------------------------------------------------------------------------------------------- the stage
    ResumeRule(_of_stage("name"), OnResume.REFUSED, "a stage is known by its name; under another one it is another"),
    ResumeRule(
        _of_stage("data.train", "data.validation"),
        OnResume.ALLOWED,
        "the file may have moved; where the number of samples trained on differs, `--accept` has to name it, and the "
        "order of the samples to come is that of the new data",
    ),
    ResumeRule(
        _of_stage("data.images", "data.samples", "data.text_tokens", "data.workers", "data.max_bad_records"),
        OnResume.ALLOWED,
        "it is where the data lies, what is known of it and how it is read",
    ),
    ResumeRule(
        _of_stage("data.packing", "batch.micro"), OnResume.ALLOWED, "the step has the same samples and the same loss"
    ),
    ResumeRule(
        _of_stage(
            "data.image_aspect_ratio",
            "data.template",
            "data.system_prompt",
            "data.max_tokens",
            "data.too_long",
            "data.group_by_length",
            "batch.global",
        ),
        OnResume.REFUSED,
        "the steps done had other samples or saw them otherwise",
    ),
    ResumeRule(_of_stage("trains"), OnResume.REFUSED, "the optimiser's state of the checkpoint is of the other parts"),
    ResumeRule(
        _of_stage("epochs", "steps"),
        OnResume.ACCEPT,
        "from the next step on the learning rate is the one that the new length has at that step, and sparsity goes "
        "on from where it stood to the new end",
    ),
    ResumeRule(
        _of_stage(
            "learning_rate.projector",
            "learning_rate.language",
            "learning_rate.vision",
            "learning_rate_schedule.decay",
            "learning_rate_schedule.warmup_ratio",
            "learning_rate_schedule.warmup_steps",
            "learning_rate_schedule.minimum_ratio",
        ),
        OnResume.ACCEPT,
        "the rate is from the next step on the one that the new values have at that step",
    ),
    ResumeRule(
        _of_stage(
            "lengths.from_step",
            "lengths.steps",
            "lengths.samples",
            "skip.earlier_groups.before_step",
            "skip.earlier_groups.sizes",
        ),
        OnResume.KEPT,
        "training writes it: what the steps done were planned with",
    ),
    ResumeRule(
        _of_stage("skip.distill", "compress.distill"),
        OnResume.ACCEPT,
        "the full steps to come have a term of another weight",
    ),
    ResumeRule(
        _of_stage("skip.max_loss_rise", "skip.accept_loss_rise"),
        OnResume.ALLOWED,
        "it guards the stage's start, which is over",
    ),
    ResumeRule(
        _of_stage("skip.rises.step", "skip.rises.rises"),
        OnResume.KEPT,
        "what the checkpoint knows of the layers' worth goes on to hold",
    ),
    ResumeRule(
        _of_stage("skip.skip_groups"),
        OnResume.ACCEPT,
        "from the next step on the new groups skip the same number each; left out of the recipe they are those of the "
        "checkpoint, or, where the layout cannot have these, its virtual pipeline stages",
    ),
    ResumeRule(
        _of_stage(
            "skip.tokens",
            "skip.alpha",
            "skip.by",
            "skip.protect_above",
            "skip.measure_every",
            "skip.epsilon",
            "skip.progress",
            "skip.schedule",
            "skip.selection",
            "skip.never_skip",
            "skip.min_layers_run",
            "skip.parameters",
            "skip.ramp_ratio",
            "skip.full_share",
        ),
        OnResume.REFUSED,
        "the layers skipped so far count on it",
    ),
    ResumeRule(
        _of_stage(
            "compress.strategy",
            "compress.keep_ratio",
            "compress.keep_tokens",
            "compress.window",
            "compress.full_share",
            "compress.schedule.kind",
            "compress.schedule.start",
            "compress.schedule.end",
            "compress.schedule.values",
        ),
        OnResume.REFUSED,
        "the steps done kept other visual tokens",
    ),
)


def resume_rule(field: str) -> ResumeRule:
    """The line for a dotted field, in which a stage has its own name: for a block the strictest line of its keys."""
    key = in_table(field)
    rules = [rule for rule in RESUME_TABLE if any(_covers(known, key) for known in rule.keys)]
    return max(rules, key=lambda rule: rule.does)


def in_table(field: str) -> str:
    """The name that a dotted field has in the table."""
    parts = field.split(".")
    if parts[0] != "stages":
        return field
    # One of several skips goes by its tokens.
    kept = parts[2:] if parts[2:3] != ["skip"] or parts[3:4] not in (["all"], ["visual"]) else ["skip", *parts[4:]]
    return ".".join([_STAGE, *kept])


def _covers(known: str, key: str) -> bool:
    """Whether a line's key is this one, or a block of it, or in it."""
    return key == known or key.startswith(f"{known}.") or known.startswith(f"{key}.")
