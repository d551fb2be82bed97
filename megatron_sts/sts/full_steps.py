"""Full steps: a share of a stage's steps that runs all layers and keeps all visual tokens, as DualSpeed does
(arXiv 2602.03815).
"""

from megatron_sts.sts.streams import stream

# Counted in whole units, so that no rounding shifts a full step.
_UNIT = 1 << 48


def is_full_step(seed: int, stage: str, full_share: float, step: int) -> bool:
    """Whether a 0-based step is full: full_share of any run of steps, to within one, evenly spread.

    One start is drawn for a stage, so that equal shares of skipping and compression name the same steps, and the full
    steps of a share are among those of a multiple of it.
    """
    assert 0.0 <= full_share <= 1.0
    if full_share == 0.0:
        return False
    share, start = round(full_share * _UNIT), int(stream(seed, stage, "full steps").random() * _UNIT)
    return (start + step * share) // _UNIT < (start + (step + 1) * share) // _UNIT
