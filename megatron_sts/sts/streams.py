"""Random streams that depend on what they are for alone."""

import hashlib
import random


def stream(*purpose: int | str) -> random.Random:
    """A random stream of its own for each purpose, such as (seed, stage, step, "skip"), the same on every machine.

    Contract: only `random()` is drawn from it, the one method whose sequence Python keeps from version to version.
    """
    text = "/".join(map(str, purpose)).encode()
    return random.Random(int.from_bytes(hashlib.sha256(text).digest()[:8], "big"))
