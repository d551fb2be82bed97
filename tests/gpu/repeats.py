"""Whether a run repeats bitwise, and a stopped one resumes bitwise, layers skipped, through the training loop."""

import os
import signal
import threading
import time

from megatron_sts.train.stages import train
from tests.gpu.losses import losses_of, only_tune
from tests.gpu.recipes import checked_recipe
from tests.gpu.slot import Slot

PART = "repeats"


def repeat(slot: Slot, name: str) -> None:
    """Train twice, and once more with a signal in the middle."""
    if name not in slot.size.repeated:
        return
    # Transformer Engine's attention then takes kernels that add up in one order alone.
    os.environ["NVTE_ALLOW_NONDETERMINISTIC_ALGO"] = "0"
    steps = min(200, 4 * slot.size.loss_steps)
    changes = {"tune__skip": {"alpha": 0.5}, **slot.size.precisions[name]}
    found = {}
    for run in ("whole", "again"):
        recipe = only_tune(checked_recipe(slot, f"{run}_{name}", steps, **changes))
        train(recipe)
        found[run] = losses_of(recipe)
    slot.check(PART, f"a run repeats, {name}", found["whole"] == found["again"] and len(found["whole"]) == steps)
    recipe = only_tune(checked_recipe(slot, f"stopped_{name}", steps, **changes))

    def stop() -> None:
        while len(losses_of(recipe)) < steps // 4:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop, daemon=True).start()
    reason = train(recipe)
    done = len(losses_of(recipe))
    train(recipe)
    passed = bool(reason) and 0 < done < steps and losses_of(recipe) == found["whole"]
    slot.check(PART, f"a stopped run resumes, {name}", passed, stopped_after=done)
