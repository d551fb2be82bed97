"""torchrun for one node of several, with what is needed to find out why a run ended.

It ends with the exit code of the rank that failed first (torchrun's own is 1 whatever happened), shows the end of what
that rank wrote, and where an error names the address of another node, says which node and ranks that is. Ctrl-C,
SIGTERM and SIGUSR1 are handed to the ranks, which save and stop, for as long as that takes (torchrun would kill them
after 30 s).
"""

import argparse
import contextlib
import os
import re
import select
import signal
import socket
import sys
import threading
from functools import partial
from pathlib import Path
from types import FrameType

import psutil
from torch.distributed import DistError
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import parse_args, run

# Contract: megatron_sts/train/stopping.py ends ranks that stopped early and saved with this code.
STOPPED = 75
# Contract: that of megatron_sts/parallel/watchdog.py, after which slurm.sbatch asks for another turn.
LOST_NODE = 76
# Contract: those of megatron_sts/stop_signals.py.
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
NODE_FILE = "addresses"
LAST_LINES = 20
SECONDS_TO_HEED = 1.0
# Of a range kept for documentation (RFC 5737): nothing is sent there, the way to it is the default route.
ANYWHERE = "192.0.2.1"
ADDRESS = re.compile(r"\d+(?:\.\d+){3}|[0-9a-fA-F]*:[0-9a-fA-F:]+")


def main() -> int:
    """Run torchrun's command line; a rank or an agent that a signal ended has 128 + its number, as in a shell."""
    arguments = parse_args(sys.argv[1:])
    # Contract: examples/launch/torchrun.sh gives every node the directory node_RANK beside the others'.
    directory = Path(arguments.log_dir)
    note_node(directory, arguments)
    choose_interface(arguments)
    # torchrun would end the ranks at those below. It goes by its arguments, older releases by the variable.
    arguments.signals_to_handle = os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = "SIGHUP,SIGQUIT"
    heeded = threading.Event()
    for number in STOP_SIGNALS:
        signal.signal(number, partial(hand_on, heeded))
    end_if_deaf(heeded)
    try:
        run(arguments)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        code = failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode
        if code == STOPPED:
            print("stopped before the end, and saved; the same command goes on", file=sys.stderr)
            return code
        lines = [f"error: rank {rank} ended with exit code {code}", *explain(directory, failure.local_rank)]
        print(*lines, sep="\n", file=sys.stderr)
        return code
    except SignalException as error:
        print(f"error: ended by {error.sigval.name}", file=sys.stderr)
        return 128 + error.sigval
    except DistError as error:
        print(f"error: {why_nodes_do_not_meet(arguments, error)}", file=sys.stderr)
        return LOST_NODE
    return 0


def why_nodes_do_not_meet(arguments: argparse.Namespace, error: DistError) -> str:
    """One line of what torch says of its store, whose message has a stack of C++ below it, and what to do."""
    place, why = f"{arguments.master_addr}:{arguments.master_port}", str(error).partition("\n")[0]
    remedy = (
        "give a port that no other program uses by --port, the same on every node, and start all nodes"
        if arguments.node_rank == 0
        else "see that node 0 runs and that --address and --port are its own and reached from here"
    )
    return f"the nodes did not meet at {place} ({why}); {remedy}"


def hand_on(heeded: threading.Event, number: int, frame: FrameType | None) -> None:
    """Hand a first signal on to this node's ranks; a second one, or one before they run, ends them and this agent."""
    heeded.set()
    for other in STOP_SIGNALS:
        signal.signal(other, end)
    ranks = psutil.Process().children()
    if not ranks:
        end(number, frame)
    for rank in ranks:
        rank.send_signal(number)


def end(number: int, frame: FrameType | None) -> None:
    """What torchrun does on a signal: its exception ends the ranks."""
    raise SignalException(f"ended by signal {number}", sigval=signal.Signals(number))


def end_if_deaf(heeded: threading.Event) -> None:
    """Have these signals end this process also while torch waits for the other nodes: no handler runs then.

    No rank is lost by that: Python would run `hand_on` first, before it starts one. Over once there is one.
    """
    written, woken = os.pipe()
    os.set_blocking(woken, False)
    signal.set_wakeup_fd(woken, warn_on_full_buffer=False)

    def watch() -> None:
        agent = psutil.Process()
        while not agent.children():
            if not select.select([written], [], [], SECONDS_TO_HEED)[0]:
                continue
            number = os.read(written, 1)[0]
            if number in STOP_SIGNALS and not heeded.wait(SECONDS_TO_HEED):
                said = f"error: ended by {signal.Signals(number).name} before the nodes met"
                print(said, file=sys.stderr, flush=True)
                os._exit(128 + number)

    threading.Thread(target=watch, daemon=True).start()


def note_node(directory: Path, arguments: argparse.Namespace) -> None:
    """Write who this node is, then its addresses one a line, for the other nodes to look up."""
    ranks = int(arguments.nproc_per_node)
    first, last = arguments.node_rank * ranks, (arguments.node_rank + 1) * ranks - 1
    who = f"node {arguments.node_rank} ({socket.gethostname()}), ranks {first} to {last}"
    found = {
        address.address.partition("%")[0]
        for addresses in psutil.net_if_addrs().values()
        for address in addresses
        if address.family in (socket.AF_INET, socket.AF_INET6)
    }
    directory.mkdir(parents=True, exist_ok=True)
    (directory / NODE_FILE).write_text("\n".join([who, *sorted(found - {"127.0.0.1", "::1"})]) + "\n")


def choose_interface(arguments: argparse.Namespace) -> None:
    """Have gloo use the interface towards node 0, where nothing else was said.

    It would take the address of this machine's own name, which many systems resolve to 127.0.1.1: no other node
    reaches that. NCCL chooses among the real interfaces by itself; gloo runs beside it, for checkpoints.
    """
    if arguments.nnodes != "1" and (found := interface_towards(arguments.master_addr)):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", found)


def interface_towards(address: str) -> str | None:
    """The interface by which this machine reaches `address`; that of the default route where it is this machine's own
    name for itself; None where neither leads out of it."""
    for target in (address, ANYWHERE):
        with contextlib.suppress(OSError):
            family, kind, _, _, place = socket.getaddrinfo(target, 9, type=socket.SOCK_DGRAM)[0]
            with socket.socket(family, kind) as sender:
                # Of a datagram socket: chooses the way, sends nothing.
                sender.connect(place)
                own = sender.getsockname()[0]
            for name, addresses in psutil.net_if_addrs().items():
                if name != "lo" and any(known.address.partition("%")[0] == own for known in addresses):
                    return name
    return None


def explain(directory: Path, local_rank: int) -> list[str]:
    """The end of the failed rank's standard error, and the other nodes whose addresses stand in it."""
    logs = sorted(directory.glob(f"*/attempt_*/{local_rank}/stderr.log"), key=lambda log: log.stat().st_mtime)
    if not logs:
        return []
    end = logs[-1].read_text(errors="replace").splitlines()[-LAST_LINES:]
    addresses = set(ADDRESS.findall("\n".join(end)))
    lines = [f"the end of {logs[-1]}:", *(f"  {line}" for line in end)]
    for node in sorted(directory.parent.glob(f"node_*/{NODE_FILE}")):
        who, *own = node.read_text().splitlines()
        named = addresses.intersection(own)
        if node.parent != directory and named:
            lines.append(f"error: {', '.join(sorted(named))} is {who}: look there first ({node.parent})")
    return lines


if __name__ == "__main__":
    sys.exit(main())
