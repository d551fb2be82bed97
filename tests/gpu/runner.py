"""Runs parts of what needs a GPU: python -m tests.gpu.runner [--rehearse] [PART ... | slot] [-- key=value ...]

tests/gpu/run.sh calls it, and says more.
"""

import argparse
import itertools
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType

from tests.gpu.slot import Slot, read_results


def main(arguments: list[str] | None = None) -> int:
    """Run what is asked for; 1 where a check or a job failed, 2 where nothing can run."""
    options, overrides = _parse(sys.argv[1:] if arguments is None else arguments)
    if options.rehearse:
        from tests.reference_kernels.install import install

        install()
    try:
        from tests.gpu.parts import PARTS, SLOT, SLOT_SECONDS
    except ImportError as error:
        print(f"error: {sys.executable} cannot import what is needed ({error}); nothing was run", file=sys.stderr)
        return 2
    asked = options.parts or list(PARTS)
    if unknown := [part for part in asked if part not in (*PARTS, "slot")]:
        print(f"error: {unknown[0]} is no part; give some of slot, {', '.join(PARTS)}", file=sys.stderr)
        return 2
    groups = [group for part in asked for group in (SLOT if part == "slot" else ((part,),))]
    options.output.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix="gpu_"))
    size = "rehearsal" if options.rehearse else "gpu"
    slot = Slot(options.output.resolve(), scratch, size, tuple(overrides), options.began or time.time())
    seconds = SLOT_SECONDS if asked == ["slot"] else float("inf")
    try:
        return run(groups, slot, seconds)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def run(groups: list[tuple[str, ...]], slot: Slot, seconds: float) -> int:
    """Run groups of parts one after another, as long as there are seconds left, and sum up after each."""
    from tests.gpu.parts import PARTS
    from tests.gpu.processes import Workers
    from tests.gpu.summary import failures, write_summary

    # What an earlier run found of the same parts.
    kept = [record for record in read_results(slot.results) if record["part"] not in itertools.chain(*groups)]
    slot.results.write_text("".join(json.dumps(record) + "\n" for record in kept))
    workers = Workers(slot)

    def stop(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, stop)
    try:
        for group in groups:
            limit = max(PARTS[part].limit for part in group)
            left = min(limit, seconds - slot.seconds())
            if left <= 0:
                for part in group:
                    slot.record(part, "ended", how="not run: no time is left")
                continue
            print(f"== {', '.join(group)}: {'; '.join(PARTS[part].about for part in group)}", flush=True)
            began = time.monotonic()
            ended = workers.run(group, left)
            for part in group:
                keep = PARTS[part].keep
                if keep is not None:
                    with slot.attempt(part, "kept"):
                        keep(slot)
                jobs = {name: how for (of, name), how in ended.items() if of == part}
                how = "done" if set(jobs.values()) == {"done"} else ", ".join(f"{n} {how}" for n, how in jobs.items())
                slot.record(part, "ended", how=how, seconds=round(time.monotonic() - began, 1), limit=round(left, 1))
            write_summary(slot)
    finally:
        workers.end()
        print(write_summary(slot), flush=True)
    return int(bool(failures(slot)))


def _parse(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rehearse", action="store_true", help="on a CPU, over reference kernels, at tiny sizes")
    parser.add_argument("--output", type=Path, default=Path(os.environ.get("OUT") or "runs/gpu"), metavar="DIR")
    parser.add_argument("--began", type=float, help="seconds of the epoch at which the time began that a slot has")
    parser.add_argument("parts", nargs="*", metavar="PART")
    overrides: list[str] = []
    if "--" in arguments:
        at = arguments.index("--")
        arguments, overrides = arguments[:at], arguments[at + 1 :]
    return parser.parse_args(arguments), overrides


if __name__ == "__main__":
    sys.exit(main())
