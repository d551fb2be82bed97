"""The directory of a checkpoint while it is written: aside at first, then visible at once and whole."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from megatron_sts.config import (
    CheckpointConfig,
    FileEntry,
    Recipe,
    checkpoint_path,
    checkpoints_of_stage,
    entries_of,
    files_of,
    outdated,
    write_latest,
    write_manifest,
    write_run,
    write_through,
)
from megatron_sts.errors import CheckpointError
from megatron_sts.parallel.together import from_all_ranks, own_part, rank_zero_does

_PARTIAL = ".partial"
_REPLACED = ".replaced"


class CheckpointDirectory:
    """One checkpoint of `step` steps of `stage`; all ranks call its methods, in their order.

    Each raises CheckpointError, on all ranks, where the disk cannot take what is written; no earlier checkpoint has
    been touched then.
    """

    def __init__(self, recipe: Recipe, stage: str, step: int):
        self._recipe, self._stage, self._step = recipe, stage, step
        self.final = checkpoint_path(recipe, stage, step)
        self.partial = self.final.with_name(self.final.name + _PARTIAL)

    def begin(self) -> None:
        """Make the empty directory to write to; what a killed run has left half written is removed."""
        rank_zero_does(self._begin)

    def finish(self) -> None:
        """When every rank has written its files: seal them, show the checkpoint, remove those not kept any longer."""
        rank_zero_does(self._write_run)
        # Each rank reads back and hashes its share of the files, whoever wrote them.
        rank, ranks = own_part()
        with _naming(self.partial):
            entries = entries_of(self.partial, files_of(self.partial)[rank::ranks])
        shares = from_all_ranks(entries)
        all_entries = {name: entry for share in shares for name, entry in share.items()}
        rank_zero_does(lambda: self._show(all_entries))

    def _begin(self) -> None:
        with _naming(self.partial):
            for left in self.final.parent.glob(f"*{_PARTIAL}"):
                shutil.rmtree(left)
            self.partial.mkdir(parents=True)

    def _write_run(self) -> None:
        with _naming(self.partial):
            write_run(self.partial, self._stage, self._step, self._recipe)

    def _show(self, entries: dict[str, FileEntry]) -> None:
        with _naming(self.final):
            write_manifest(self.partial, entries)
            replaced = self.final.with_name(self.final.name + _REPLACED)
            if self.final.exists():
                # A damaged one of the same step: from a whole one the run would have gone on.
                os.replace(self.final, replaced)
            os.replace(self.partial, self.final)
            write_through(self.final.parent)
            write_latest(self.final)
            shutil.rmtree(replaced, ignore_errors=True)
            keep: CheckpointConfig = self._recipe.checkpoint
            for old in outdated(checkpoints_of_stage(self._recipe, self._stage), keep.keep_last, keep.keep_every):
                shutil.rmtree(old)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turns the system's errors into CheckpointError with the path."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            f"{error.filename or path}: the checkpoint cannot be written ({error.strerror}); the earlier checkpoints "
            "are as they were; make room or give the rights, and run the same command again"
        ) from error
