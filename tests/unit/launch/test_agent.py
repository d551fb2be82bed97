"""The launch agent: its explanation of a failed rank, the network that it chooses between the nodes, and a signal that
comes while it waits for them.
"""

import os
import signal
import socket
import threading
from argparse import Namespace

import psutil
import pytest

from megatron_sts.launch.nodes import choose_interface, explain
from tests.ranks import run_until_ended
from tools import launch

OWN, OTHER, THIRD = "10.0.0.1", "10.0.0.2", "10.0.0.22"


@pytest.mark.parametrize(
    "message",
    [
        f"RuntimeError: [pair.cc:537] Read error [{OTHER}]:16563: Connection reset by peer",
        f"NCCL WARN socketProgress: Connection closed by remote peer {OTHER}<43011>",
        f"DistNetworkError: The client socket has failed to connect to {OTHER}:29500",
        "Connection closed by peer [fd00::2]:16563",
    ],
)
def test_the_node_whose_address_an_error_names_is_named(tmp_path, message):
    nodes = [("node 0 (near), ranks 0 to 7", OWN), ("node 1 (far), ranks 8 to 15", f"{OTHER}\nfd00::2")]
    nodes.append(("node 2 (farther), ranks 16 to 23", THIRD))
    for number, (who, addresses) in enumerate(nodes):
        (tmp_path / f"node_{number}").mkdir()
        (tmp_path / f"node_{number}" / "addresses").write_text(f"{who}\n{addresses}\n")
    log = tmp_path / "node_0" / "run_x" / "attempt_0" / "3" / "stderr.log"
    log.parent.mkdir(parents=True)
    log.write_text(f"listening on {OWN}\n" + "earlier\n" * 30 + f"from {OWN}: {message}\n")

    lines = explain(tmp_path / "node_0", local_rank=3)
    assert lines[0] == f"the end of {log}:"
    assert lines[1:-1] == ["  earlier"] * 19 + [f"  from {OWN}: {message}"]
    assert "is node 1 (far), ranks 8 to 15: look there first" in lines[-1]


def test_without_a_log_there_is_nothing_to_explain(tmp_path):
    assert explain(tmp_path / "node_0", local_rank=0) == []


# The way to an address, as the routing table and the addresses of the interfaces would have it.
NETWORKS = {"lo": "127.0.0.1", "cable0": OWN, "outside": "198.51.100.7"}
WAYS = {"node-0": OWN, "own-name": "127.0.0.1", "192.0.2.1": "198.51.100.7"}


class Way:
    """A datagram socket of a machine with NETWORKS."""

    def __init__(self, *kind):
        self.own = ""

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def connect(self, place):
        self.own = WAYS[place[0]]

    def getsockname(self):
        return self.own, 40000


def resolve(name, port, type):
    if name not in WAYS:
        raise socket.gaierror(f"{name} is not known")
    return [(socket.AF_INET, type, 0, "", (name, port))]


@pytest.mark.parametrize(
    ("nodes", "address", "set_before", "chosen"),
    [
        ("2", "node-0", None, "cable0"),
        # Debian has a machine resolve its own name to a loopback address.
        ("2", "own-name", None, "outside"),
        ("2", "unknown", None, "outside"),
        ("2", "node-0", "ib0", "ib0"),
        ("1", "node-0", None, None),
    ],
)
def test_gloo_uses_the_network_towards_the_first_node(monkeypatch, nodes, address, set_before, chosen):
    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setattr(socket, "socket", Way)
    found = {name: [Namespace(address=own)] for name, own in NETWORKS.items()}
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: found)
    monkeypatch.setattr(os, "environ", {} if set_before is None else {"GLOO_SOCKET_IFNAME": set_before})
    choose_interface(Namespace(nnodes=nodes, master_addr=address, rdzv_endpoint=""))
    assert os.environ.get("GLOO_SOCKET_IFNAME") == chosen


def _waits_for_a_silent_node(directory):
    """The agent of node 1, signalled once it has reached a node 0 that does not answer."""
    node_0 = socket.create_server(("127.0.0.1", 0))

    def signal_it():
        connection, _ = node_0.accept()
        os.kill(os.getpid(), signal.SIGTERM)
        # Held open.
        connection.recv(1 << 20)
        threading.Event().wait(60)

    threading.Thread(target=signal_it, daemon=True).start()
    place = ["--nnodes", "2", "--node-rank", "1", "--master-port", str(node_0.getsockname()[1])]
    return launch.main([*place, "--log-dir", str(directory), "rank.py"])


def test_a_signal_is_heeded_while_the_nodes_have_not_met(tmp_path):
    (ended,) = run_until_ended(1, _waits_for_a_silent_node, tmp_path)
    assert ended.code == 128 + signal.SIGTERM, ended
    assert ended.output.splitlines()[-1] == "error: ended by SIGTERM before the nodes met"
    assert ended.seconds < 30
