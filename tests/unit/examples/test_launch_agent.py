"""The launch agent's explanation of a failed rank: the end of its log, and whose address stands in it."""

import pytest

from examples.launch.agent import explain

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
