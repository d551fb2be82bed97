"""Which node is which: its addresses for the other nodes to look up, the network between them, whose log says what."""

import contextlib
import os
import re
import socket
from argparse import Namespace
from pathlib import Path

import psutil

NODE_FILE = "addresses"
LAST_LINES = 20
# Of a range kept for documentation (RFC 5737): nothing is sent there, the way to it is the default route.
ANYWHERE = "192.0.2.1"
ADDRESS = re.compile(r"\d+(?:\.\d+){3}|[0-9a-fA-F]*:[0-9a-fA-F:]+")


def note_node(directory: Path, arguments: Namespace, ranks: int) -> None:
    """Write who this node is, then its addresses one a line, for the other nodes to look up. ranks: on each node."""
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


def choose_interface(arguments: Namespace) -> None:
    """Have gloo use the interface towards node 0, where nothing else was said.

    It would take the address of this machine's own name, which many systems resolve to 127.0.1.1: no other node
    reaches that. NCCL chooses among the real interfaces by itself; gloo runs beside it, for checkpoints.
    """
    first = arguments.rdzv_endpoint.rpartition(":")[0] or arguments.master_addr
    if arguments.nnodes not in ("1", "1:1") and (found := interface_towards(first)):
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
