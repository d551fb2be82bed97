"""The directory of a checkpoint while it is written: aside at first, then visible at once and whole. For one rank."""

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from megatron_sts.config import (
    OUTDATED,
    PARTIAL,
    CheckpointConfig,
    FileEntry,
    Recipe,
    best_of,
    checkpoint_path,
    checkpoint_root,
    checkpoints_of_stage,
    entries_of,
    files_of,
    outdated,
    problems_of,
    remove_checkpoint,
    step_of,
    write_latest,
    write_manifest,
    write_run,
    write_through,
)
from megatron_sts.errors import CheckpointError

_REPLACED = ".replaced"
# For what stands beside the ranks' files: metadata, recipe, manifest.
_ROOM_BESIDE = 2**20


class CheckpointDirectory:
    """One checkpoint of `step` steps of `stage`. Rank 0 calls its methods, in their order."""

    def __init__(self, recipe: Recipe, stage: str, step: int, validation_loss: float | None = None):
        self._recipe, self._stage, self._step = recipe, stage, step
        self._validation_loss = validation_loss
        self.final = checkpoint_path(recipe, stage, step)
        self.partial = self.final.with_name(self.final.name + PARTIAL)

    def make(self, needed: int) -> None:
        """Make the empty directory to write to.

        Raises CheckpointError where that cannot be, or where the disk has less room than the `needed` bytes.
        """
        with naming(self.partial):
            shutil.rmtree(self.partial, ignore_errors=True)
            self.partial.mkdir(parents=True)
            free = shutil.disk_usage(self.partial).free
        if free < needed + _ROOM_BESIDE:
            self.discard()
            raise CheckpointError(f"the disk has {free:,} bytes left")

    def show(self, entries: Mapping[str, FileEntry]) -> None:
        """Seal the files and show the checkpoint.

        entries: of the files that the ranks have written; the others are read here.
        """
        write_run(self.partial, self._stage, self._step, self._recipe, self._validation_loss)
        others = [name for name in files_of(self.partial) if name not in entries]
        write_manifest(self.partial, {**entries, **entries_of(self.partial, others)})
        replaced = self.final.with_name(self.final.name + _REPLACED)
        if self.final.exists():
            # A damaged one of the same step: from a whole one the run would have gone on.
            os.replace(self.final, replaced)
        os.replace(self.partial, self.final)
        write_through(self.final.parent)
        write_latest(self.final)
        shutil.rmtree(replaced, ignore_errors=True)

    def remove_outdated(self) -> str | None:
        """Remove the checkpoints of the stage that are not kept any longer; what went wrong, if it did.

        A damaged one, or one of a course that the run has left, takes no place of those that are kept.
        """
        keep: CheckpointConfig = self._recipe.checkpoint
        counted = [
            path
            for path in checkpoints_of_stage(self._recipe, self._stage)
            if step_of(path) <= self._step and not problems_of(path, hashes=False)
        ]
        try:
            best = best_of(counted) if self._recipe.keep_best else None
            for old in outdated(counted, keep.keep_last, keep.keep_every, best):
                remove_checkpoint(old)
        except OSError as error:
            return f"{error.filename}: cannot be removed ({error.strerror})"
        return None

    def discard(self) -> None:
        """Remove what was written of a checkpoint that will not be; what cannot be removed stays."""
        shutil.rmtree(self.partial, ignore_errors=True)


def remove_left_over(recipe: Recipe) -> None:
    """Remove what a killed run has left half written or half removed; on rank 0, before anything is written."""
    root = checkpoint_root(recipe)
    with naming(root):
        for ending in (PARTIAL, _REPLACED, OUTDATED):
            for left in root.glob(f"*{ending}"):
                if left.is_dir():
                    shutil.rmtree(left)
                else:
                    left.unlink()


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Turns the system's errors into CheckpointError with the path."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"{error.filename or path}: {error.strerror}") from error
