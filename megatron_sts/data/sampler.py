"""Which samples a training step takes: a pure function of the step, the seed and the data's size.

The samples form one endless line, a fresh permutation for every epoch; step t takes the stretch
[t B, (t + 1) B). The line does not know the layout, so a run that resumes on another one goes on with the
same samples.

Samples of like length may be grouped into the same steps, as LLaVA-1.5 trains: a step is padded to its longest sample.
"""

from dataclasses import dataclass

import numpy as np

from megatron_sts.errors import ConfigError, DataError

# Steps from whose samples, drawn at random, those of like length are put together: more save more padding, and make
# the steps of an epoch less alike.
_STEPS_SORTED_TOGETHER = 8


@dataclass(frozen=True)
class LengthGroups:
    """What samples are grouped by. lengths: int64 [n]. has_images: bool [n]."""

    lengths: np.ndarray
    has_images: np.ndarray


class StepSampler:
    """The order of `count` samples in steps of `global_batch`.

    Raises:
        DataError: there is no sample.
    """

    def __init__(self, count: int, global_batch: int, seed: int, groups: LengthGroups | None = None) -> None:
        if count < 1:
            raise DataError("data.train: holds no sample; give a file with at least one conversation")
        assert global_batch >= 1 and seed >= 0
        self.count = count
        self.global_batch = global_batch
        self.seed = seed
        self._groups = groups
        self._permutations: dict[int, np.ndarray] = {}

    def samples_of_step(self, step: int) -> list[int]:
        """The `global_batch` samples of a 0-based step; a step may reach over the end of an epoch."""
        assert step >= 0
        position = step * self.global_batch
        end = position + self.global_batch
        samples: list[int] = []
        while position < end:
            epoch, offset = divmod(position, self.count)
            taken = min(end - position, self.count - offset)
            samples.extend(self._permutation(epoch)[offset : offset + taken].tolist())
            position += taken
        return samples

    def last_of_first_epoch(self, count: int) -> list[int]:
        """At most `count` samples that the first epoch takes last, in its order."""
        return [int(sample) for sample in self._permutation(0)[-count:]]

    def _permutation(self, epoch: int) -> np.ndarray:
        # Read once: another thread may put others in their place.
        known_orders = self._permutations
        if epoch not in known_orders:
            # Only the current and the next epoch are ever needed together.
            known_orders = {known: order for known, order in known_orders.items() if known == epoch - 1}
            # numpy promises the raw stream of a bit generator for ever, that of Generator.permutation it does
            # not; a resumed run must find the same order under a newer numpy.
            stream = np.random.PCG64(np.random.SeedSequence([self.seed, epoch]))
            order = np.argsort(stream.random_raw(self.count), kind="stable")
            known_orders[epoch] = order if self._groups is None else self._grouped(order, epoch, stream)
            self._permutations = known_orders
        return known_orders[epoch]

    def _grouped(self, order: np.ndarray, epoch: int, stream: np.random.PCG64) -> np.ndarray:
        """The samples of `order`, in steps of like length with and without images, the steps in random order.

        What is left over is shared out over the steps that the epoch has in common with its neighbours.
        """
        assert self._groups is not None
        steps: list[np.ndarray] = []
        left: list[np.ndarray] = []
        for with_images in (True, False):
            of_kind = order[self._groups.has_images[order] == with_images]
            together = _STEPS_SORTED_TOGETHER * self.global_batch
            for start in range(0, len(of_kind), together):
                chunk = of_kind[start : start + together]
                # What does not fill a step is left out at random, before lengths have a say.
                whole = len(chunk) - len(chunk) % self.global_batch
                left.append(chunk[whole:])
                ranked = chunk[:whole][np.argsort(self._groups.lengths[chunk[:whole]], kind="stable")]
                steps.extend(ranked.reshape(-1, self.global_batch))
        steps = [steps[number] for number in np.argsort(stream.random_raw(len(steps)), kind="stable")]
        # Samples of this epoch that the last step of the one before still takes.
        taken = -epoch * self.count % self.global_batch
        rest = np.concatenate(left)
        while len(rest) < min(taken, self.count):
            rest = np.concatenate([rest, steps.pop()])
        return np.concatenate([rest[:taken], *steps, rest[taken:]])


def rank_slice(indices: list[int], data_rank: int, data_size: int, micro: int) -> list[list[int]]:
    """The micro-batches of a step's samples that one data-parallel rank takes.

    The step's samples are cut into micro-batches in order and dealt out to the ranks in turn, so neither the
    samples of a step nor those of a micro-batch depend on `data_size`.

    Raises:
        ConfigError: the step's samples do not come out even.
    """
    assert 0 <= data_rank < data_size
    if len(indices) % (micro * data_size):
        raise ConfigError(
            f"batch.global: found {len(indices)}, which is not a multiple of batch.micro {micro} x "
            f"{data_size} data-parallel ranks; change it to a multiple of {micro * data_size}"
        )
    starts = range(data_rank * micro, len(indices), data_size * micro)
    return [indices[start : start + micro] for start in starts]
