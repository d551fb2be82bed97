"""Which samples a training step takes: a pure function of the step, the seed and the data's size.

The samples form one endless line, a fresh permutation for every epoch; step t takes the stretch
[t B, (t + 1) B). The line does not know the layout, so a run that resumes on another one goes on with the
same samples.
"""

import numpy as np

from megatron_sts.errors import ConfigError, DataError


class StepSampler:
    """The order of `count` samples in steps of `global_batch`.

    Raises:
        DataError: there is no sample.
    """

    def __init__(self, count: int, global_batch: int, seed: int) -> None:
        if count < 1:
            raise DataError("data.train: holds no sample; give a file with at least one conversation")
        assert global_batch >= 1 and seed >= 0
        self.count = count
        self.global_batch = global_batch
        self.seed = seed
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

    def _permutation(self, epoch: int) -> np.ndarray:
        if epoch not in self._permutations:
            # Only the current and the next epoch are ever needed together.
            self._permutations = {known: order for known, order in self._permutations.items() if known == epoch - 1}
            # numpy promises the raw stream of a bit generator for ever, that of Generator.permutation it does
            # not; a resumed run must find the same order under a newer numpy.
            keys = np.random.PCG64(np.random.SeedSequence([self.seed, epoch])).random_raw(self.count)
            self._permutations[epoch] = np.argsort(keys, kind="stable")
        return self._permutations[epoch]


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
