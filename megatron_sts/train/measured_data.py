"""The samples of a stage, read, checked and measured once for all ranks."""

import sys
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

import torch.distributed as dist
from rich.console import Console
from transformers import PreTrainedTokenizerBase

from megatron_sts.config import Recipe, StageConfig
from megatron_sts.data import PreparedSamples, prepare_samples
from megatron_sts.data.templates import Template
from megatron_sts.data.workers import Progress, StartProgress, untold
from megatron_sts.errors import DataError
from megatron_sts.evaluation.progress import shown_if_long
from megatron_sts.parallel.together import from_all_ranks, rank_zero_works
from megatron_sts.sts import StagePlanner, check_sample_count
from megatron_sts.train.output_directory import index_file


def measure_together(
    recipe: Recipe, stage: StageConfig, template: Template, tokenizer: PreTrainedTokenizerBase
) -> PreparedSamples:
    """On rank 0, which shows its progress, then on the others, which find its index.

    Raises DataError on all ranks where some have other samples, for which they would wait for each other for ever.
    """

    def measure(progress: StartProgress = untold) -> PreparedSamples:
        return prepare_samples(
            index_file(recipe, stage),
            stage.data.train,
            template,
            tokenizer,
            stage.data.system_prompt,
            stage.data.images,
            StagePlanner(recipe, stage, 1, 1.0).most_visual_tokens(),
            stage.data.max_tokens,
            stage.data.too_long,
            stage.data.max_bad_records,
            partial(check_sample_count, stage),
            progress,
        )

    if not dist.is_initialized():
        return measure()
    found: list[PreparedSamples] = []

    def measure_first(gets_on: Callable[[], None]) -> None:
        console = Console(file=sys.stdout, soft_wrap=True, highlight=False)
        with ExitStack() as stack:

            def start(what: str) -> Progress:
                show = stack.enter_context(shown_if_long(f"{what} for stage {stage.name}", console))

                def progress(done: int, total: int) -> None:
                    show(done, total)
                    gets_on()

                return progress

            found.append(measure(start))

    rank_zero_works(measure_first, recipe.parallel.timeout_minutes * 60)
    prepared = found[0] if found else measure()
    counts, digests = zip(*from_all_ranks((len(prepared.samples), prepared.digest())), strict=True)
    other = next((rank for rank, digest in enumerate(digests) if digest != digests[0]), None)
    if other is not None:
        raise DataError(
            f"stages.{stage.name}.data: rank 0 finds {counts[0]:,} samples to train on and rank {other} "
            f"{counts[other]:,}, or of other lengths; give all nodes the same data, images and tokenizer, and an "
            "output_dir that they share"
        )
    return prepared
