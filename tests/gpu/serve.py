"""A process that runs jobs and was started anew: python -m tests.gpu.serve COMMANDS ANSWERS SLOT (processes.py)."""

import os
import sys

import torch

from tests.gpu.processes import serve
from tests.gpu.slot import Slot

if __name__ == "__main__":
    commands, answers, text = sys.argv[1:]
    if not torch.cuda.is_available():
        sys.exit("error: torch finds no CUDA device here")
    with os.fdopen(int(commands)) as lines:
        serve(Slot.loads(text), lines, int(answers))
    os._exit(0)
