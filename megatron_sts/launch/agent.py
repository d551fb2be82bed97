"""torchrun's agent for the ranks of one node, run so that a failure ends with the ranks' own words and exit code."""

import argparse
import logging
import os
import select
import shutil
import signal
import sys
import threading
from functools import partial
from pathlib import Path
from types import FrameType

import psutil
from torch.distributed import DistError
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous import RendezvousError
from torch.distributed.run import determine_local_world_size, run

from megatron_sts.errors import ConfigError
from megatron_sts.exit_codes import FAULT, INTERRUPTED, LOST_RANK, READER_GONE, STOPPED, USER_ERROR
from megatron_sts.launch.nodes import choose_interface, explain, note_node
from megatron_sts.stop_signals import STOP_SIGNALS

# A rank that ends with one of these has said why, or was asked to.
_SAID_WHY = (USER_ERROR, FAULT, LOST_RANK, INTERRUPTED, READER_GONE)
_SECONDS_TO_HEED = 1.0


def launch(arguments: argparse.Namespace) -> int:
    """Run the ranks; returns the exit code of the one that failed first, 128 + N where signal N ended it.

    arguments: torchrun's own. torchrun would end with 1 and a traceback whatever happened, and kill its ranks 30 s
    after Ctrl-C; here Ctrl-C, SIGTERM and SIGUSR1 are handed to the ranks, which save and stop for as long as it takes.
    With a log directory the end of what the failed rank wrote is shown, and where it has the address of another node,
    which node that is.
    """
    ranks = _ranks_of_node(arguments)
    directory = Path(arguments.log_dir) if arguments.log_dir else None
    if directory is not None:
        note_node(directory, arguments, ranks)
    choose_interface(arguments)
    _set_environment_of_ranks(ranks)
    # torchrun would end the ranks at those below. It goes by its arguments, older releases by the variable.
    arguments.signals_to_handle = os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = "SIGHUP,SIGQUIT"
    # That it ends the other ranks once one has failed, and which one failed, stands below our own last line.
    logging.getLogger("torch.distributed.elastic.multiprocessing.api").setLevel(logging.CRITICAL)
    heeded = threading.Event()
    for number in STOP_SIGNALS:
        signal.signal(number, partial(_hand_on, heeded))
    _end_if_deaf(heeded)
    try:
        run(arguments)
    except ChildFailedError as error:
        return _end_of_failed_rank(error, directory)
    except SignalException as error:
        print(f"error: ended by {error.sigval.name}", file=sys.stderr)
        return 128 + error.sigval
    except (DistError, RendezvousError) as error:
        print(f"error: {_why_nodes_do_not_meet(arguments, error)}", file=sys.stderr)
        return LOST_RANK
    return 0


def _ranks_of_node(arguments: argparse.Namespace) -> int:
    try:
        return int(determine_local_world_size(arguments.nproc_per_node))
    except (ValueError, RuntimeError) as error:
        raise ConfigError(f"--nproc-per-node is {arguments.nproc_per_node!r} ({error}); give a number") from error


def _set_environment_of_ranks(ranks: int) -> None:
    """Set what a rank is slow without, where the user has not."""
    if shutil.which("nvidia-smi") is not None:
        # The CPU only feeds the GPU. torchrun sets the same, with a warning.
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        return
    # The ranks share the machine's cores, and megatron-core's small fused functions take longer to compile than they
    # save.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // ranks)))
    os.environ.setdefault("TORCH_COMPILE_DISABLE", "1")


def _end_of_failed_rank(error: ChildFailedError, directory: Path | None) -> int:
    """Say which rank failed, unless its own words are on the screen; returns its exit code."""
    # Those that torchrun ended after the first had failed may have failed in the same second.
    own = {rank: one for rank, one in error.failures.items() if one.exitcode != -signal.SIGTERM} or error.failures
    rank, failure = min(own.items(), key=lambda item: item[1].timestamp)
    code = failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode
    if code == STOPPED:
        print("stopped before the end, and saved; the same command goes on", file=sys.stderr)
    elif directory is not None or code not in _SAID_WHY:
        by_signal = f" ({failure.signal_name()})" if failure.exitcode < 0 else ""
        lines = explain(directory, failure.local_rank) if directory is not None else []
        print(f"error: rank {rank} ended with exit code {code}{by_signal}", *lines, sep="\n", file=sys.stderr)
    return code


def _why_nodes_do_not_meet(arguments: argparse.Namespace, error: Exception) -> str:
    """One line of what torch says of its store, whose message has a stack of C++ below it, and what to do."""
    place, why = f"{arguments.master_addr}:{arguments.master_port}", str(error).partition("\n")[0]
    remedy = (
        "give a port that no other program uses by --port, the same on every node, and start all nodes"
        if arguments.node_rank == 0
        else "see that node 0 runs and that --address and --port are its own and reached from here"
    )
    return f"the nodes did not meet at {arguments.rdzv_endpoint or place} ({why}); {remedy}"


def _hand_on(heeded: threading.Event, number: int, frame: FrameType | None) -> None:
    """Hand a first signal on to this node's ranks; a second one, or one before they run, ends them and this agent."""
    heeded.set()
    for other in STOP_SIGNALS:
        signal.signal(other, _end)
    ranks = psutil.Process().children()
    if not ranks:
        _end(number, frame)
    for rank in ranks:
        rank.send_signal(number)


def _end(number: int, frame: FrameType | None) -> None:
    """What torchrun does on a signal: its exception ends the ranks."""
    raise SignalException(f"ended by signal {number}", sigval=signal.Signals(number))


def _end_if_deaf(heeded: threading.Event) -> None:
    """Have these signals end this process also while torch waits for the other nodes: no handler runs then.

    No rank is lost by that: Python would run `_hand_on` first, before it starts one. Over once there is one.
    """
    written, woken = os.pipe()
    os.set_blocking(woken, False)
    signal.set_wakeup_fd(woken, warn_on_full_buffer=False)

    def watch() -> None:
        agent = psutil.Process()
        while not agent.children():
            if not select.select([written], [], [], _SECONDS_TO_HEED)[0]:
                continue
            number = os.read(written, 1)[0]
            if number in STOP_SIGNALS and not heeded.wait(_SECONDS_TO_HEED):
                said = f"error: ended by {signal.Signals(number).name} before the nodes met"
                print(said, file=sys.stderr, flush=True)
                os._exit(128 + number)

    threading.Thread(target=watch, daemon=True).start()
