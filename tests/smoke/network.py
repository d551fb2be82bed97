"""Two nodes on one machine: network namespaces joined by a cable, each with its own processes."""

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import IO


@dataclass(frozen=True)
class Node:
    """One namespace: its name, and its interface and address on the cable."""

    namespace: str
    interface: str
    address: str

    def start(self, command: list[str], environment: dict[str, str], output: IO[str]) -> subprocess.Popen[str]:
        """A process of this node; both of its outputs go to `output`."""
        command = ["ip", "netns", "exec", self.namespace, *command]
        return subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT, text=True)

    def kill(self) -> None:
        """SIGKILL to every process of this node."""
        for pid in _ip("netns", "pids", self.namespace).split():
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)


@contextmanager
def two_nodes() -> Iterator[tuple[Node, Node]]:
    """The nodes; at the end whatever still runs on them is killed and they are removed."""
    nodes = [
        Node(f"megatron-sts-{os.getpid()}-{number}", f"cable{number}", f"10.77.0.{number + 1}") for number in (0, 1)
    ]
    with _namespace(nodes[0]), _namespace(nodes[1]):
        first, second = nodes
        near = ["name", first.interface, "netns", first.namespace]
        far = ["name", second.interface, "netns", second.namespace]
        _ip("link", "add", *near, "type", "veth", "peer", *far)
        for node in nodes:
            _ip("-n", node.namespace, "address", "add", f"{node.address}/24", "dev", node.interface)
            _ip("-n", node.namespace, "link", "set", "lo", "up")
            _ip("-n", node.namespace, "link", "set", node.interface, "up")
        yield first, second


@contextmanager
def _namespace(node: Node) -> Iterator[None]:
    _ip("netns", "add", node.namespace)
    try:
        yield
    finally:
        node.kill()
        _ip("netns", "delete", node.namespace)


def why_not_two_nodes() -> str | None:
    """Why this machine has no network namespaces for us; None where it has."""
    name = f"megatron-sts-{os.getpid()}-probe"
    try:
        _ip("netns", "add", name)
        _ip("-n", name, "link", "add", "cable0", "type", "veth", "peer", "name", "cable1")
    except FileNotFoundError:
        return "network namespaces need the command ip (iproute2)"
    except subprocess.CalledProcessError as error:
        return f"network namespaces need root and veth: {error.stderr.strip()}"
    finally:
        with suppress(FileNotFoundError, subprocess.CalledProcessError):
            _ip("netns", "delete", name)
    return None


def _ip(*arguments: str) -> str:
    return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True, timeout=20).stdout
