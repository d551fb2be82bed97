"""Shows and records a run: a line on the terminal, metrics.jsonl, TensorBoard and Weights & Biases."""

import json
import sys
import time
from collections import deque
from collections.abc import Sequence
from io import FileIO
from pathlib import Path
from statistics import fmean
from types import TracebackType
from typing import Any, Self

from rich.console import Console

from megatron_sts.config import METRICS_FILE, Recipe
from megatron_sts.errors import ConfigError
from megatron_sts.parallel.device import peak_memory_bytes
from megatron_sts.train.bad_steps import Judgement
from megatron_sts.train.figures import StepFigures

_SMOOTHED_STEPS = 20
# Less of a step's time than this, spent waiting for data, is not worth a word.
_WAIT_SHOWN = 0.05


class Progress:
    """The figures of one stage; made on the rank that speaks for the run, silent elsewhere."""

    def __init__(self, recipe: Recipe, stage: str, first_step: int, total_steps: int, layers: int, speaks: bool):
        self._speaks = speaks
        self._every = recipe.logging.every_steps
        self._total_steps = total_steps
        self._layers = layers
        self._step_times: deque[float] = deque(maxlen=_SMOOTHED_STEPS)
        self._since_line: list[StepFigures] = []
        self._console = Console(file=sys.stdout, soft_wrap=True, highlight=False)
        self._is_short_of_disk = False
        self._unwritten = b""
        self._metrics: FileIO | None = None
        self._tensorboard: Any = None
        self._wandb: Any = None
        if speaks:
            recipe.output_dir.mkdir(parents=True, exist_ok=True)
            metrics = recipe.output_dir / METRICS_FILE
            forget_steps_after(metrics, stage, first_step)
            # Without a buffer it is known what a full disk has taken; the rest waits for the next step.
            self._metrics = metrics.open("ab", buffering=0)
            self._tensorboard = _tensorboard(recipe, stage, first_step)
            self._wandb = _wandb(recipe)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for sink in (self._metrics, self._tensorboard):
            if sink is not None:
                sink.close()

    def say(self, text: str) -> None:
        """A line of plain talk."""
        if self._speaks:
            self._console.print(text, markup=False)

    def record(self, figures: StepFigures, judgement: Judgement | None = None) -> None:
        """Take in one step's figures, and what is wrong with it: such a step is always shown."""
        self._step_times.append(figures.step_time_s)
        if self._metrics is None:
            return
        try:
            self._write(figures)
        except OSError as error:
            if not self._is_short_of_disk:
                self.say(f"{figures.stage} {figures.step} | figures cannot be written for now: {error}")
            self._is_short_of_disk = True
        else:
            self._is_short_of_disk = False
        if self._wandb is not None:
            self._wandb.log({f"{figures.stage}/{name}": value for name, value in figures.scalars().items()})
        self._since_line.append(figures)
        if figures.step % self._every == 0 or figures.step == self._total_steps or judgement is not None:
            self.say(self._line(self._since_line, judgement))
            self._since_line = []
        if figures.validation_loss is not None:
            sparse = figures.validation_loss_sparse
            beside = "" if sparse is None else f" | {sparse:.4f} under the step's own plan"
            self.say(f"{figures.stage} {figures.step} | validation loss {figures.validation_loss:.4f}{beside}")

    def _write(self, figures: StepFigures) -> None:
        assert self._metrics is not None
        self._unwritten += (json.dumps(figures.record()) + "\n").encode()
        while self._unwritten:
            self._unwritten = self._unwritten[self._metrics.write(self._unwritten) :]
        if self._tensorboard is not None:
            for name, value in figures.scalars().items():
                self._tensorboard.add_scalar(f"{figures.stage}/{name}", value, figures.step)

    def _line(self, steps: Sequence[StepFigures], judgement: Judgement | None) -> str:
        """Means over the steps since the last line; learning rate and gradient norm are those of the last step."""
        last, seconds = steps[-1], sum(step.step_time_s for step in steps)
        per_step = sum(self._step_times) / len(self._step_times)
        left = per_step * (self._total_steps - last.step)
        # What a dropped step's loss was, its own text says.
        losses = [step.loss for step in steps if not step.dropped_step] or [last.loss]
        saved = 1.0 - sum(step.flops_executed for step in steps) / sum(step.flops_dense for step in steps)
        run = self._layers - fmean(len(step.layers_skipped) for step in steps)
        of_text = fmean(len(step.layers_skipped_for_visual) for step in steps)
        text_alone = f" ({of_text:.4g} with the MLP for text alone)" if of_text else ""
        total_visual = sum(step.visual_tokens_total for step in steps)
        kept = sum(step.visual_tokens_kept for step in steps) / total_visual if total_visual else 1.0
        parts = [
            f"{last.stage} {last.step}/{self._total_steps}",
            f"loss {fmean(losses):.4f}",
            f"lr {last.learning_rate:.2e}",
            f"grad norm {last.grad_norm:.3f}",
            f"{sum(step.tokens_per_second * step.step_time_s for step in steps) / seconds:,.0f} tokens/s",
            f"layers {run:.4g}/{self._layers}{text_alone}",
            f"visual tokens {kept:.0%}",
            f"FLOPs saved {saved:.0%}",
            f"{peak_memory_bytes() / 2**30:.1f} GiB",
            f"ETA {time.strftime('%H:%M:%S', time.gmtime(left)) if left < 86400 else f'{left / 86400:.1f} days'}",
        ]
        waited = sum(step.data_wait_s for step in steps) / seconds
        if waited > _WAIT_SHOWN:
            parts.append(f"waited for data {waited:.0%}")
        if judgement is not None:
            parts.append(judgement.text)
        return " | ".join(parts)


def check_figure_sinks(recipe: Recipe) -> None:
    """Raise ConfigError where what `logging` sends figures to is not installed."""
    if recipe.logging.wandb_project is None:
        return
    try:
        import wandb  # noqa: F401
    except ImportError:
        raise ConfigError(
            "logging.wandb_project is set but wandb is not installed; "
            "install it with `pip install wandb` or remove the key"
        ) from None


def forget_steps_after(metrics: Path, stage: str, step: int) -> None:
    """Drop a stage's lines after `step`: what was done after the last checkpoint is done again."""
    if not metrics.is_file():
        return
    lines = metrics.read_text().splitlines()
    kept = [line for line in lines if not _is_after(line, stage, step)]
    if len(kept) < len(lines):
        metrics.write_text("".join(f"{line}\n" for line in kept))


def _is_after(line: str, stage: str, step: int) -> bool:
    try:
        record = json.loads(line)
    except json.JSONDecodeError:
        # The line that a killed run was writing.
        return True
    return record["stage"] == stage and record["step"] > step


def _tensorboard(recipe: Recipe, stage: str, first_step: int) -> Any:
    if not recipe.logging.tensorboard:
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(recipe.output_dir / "tensorboard"), purge_step=first_step + 1 if first_step else None)


def _wandb(recipe: Recipe) -> Any:
    if recipe.logging.wandb_project is None:
        return None
    import wandb

    return wandb.init(
        project=recipe.logging.wandb_project, dir=str(recipe.output_dir), config=recipe.resolved(), resume="allow"
    )
