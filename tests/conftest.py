"""Settings of the whole suite. Ranks are forked from this process, so it must stay free of threads."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
# megatron-core's small fusions would each be compiled once a process.
os.environ.setdefault("TORCH_COMPILE_DISABLE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all-faults", action="store_true", help="meet every fault, not the share the suite has time for")
    parser.addoption("--fault-table", metavar="FILE.md", help="write the table of the faults that were met")


# On a busy machine an example may take any time.
settings.register_profile("suite", deadline=None)
settings.load_profile("suite")
