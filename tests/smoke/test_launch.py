"""The launch scripts: two nodes train as one does, one of them is lost, the run is launched again and goes on."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from megatron_sts.config import Recipe, resolved_yaml
from megatron_sts.exit_codes import FAULT, LOST_RANK, USER_ERROR
from megatron_sts.train.stages import train
from tests.ranks import run_ranks
from tests.smoke.network import Node, two_nodes, why_not_two_nodes
from tests.tiny import tiny_recipe

ROOT = Path(__file__).resolve().parents[2]
LAUNCH = ROOT / "examples" / "launch"
LAUNCHER = [sys.executable, str(ROOT / "tools" / "launch.py")]
ENVIRONMENT = os.environ | {
    "OMP_NUM_THREADS": "1",
    "TORCH_COMPILE_DISABLE": "1",
    "PYTHON": sys.executable,
}
# A checkpoint after every step: slow enough to lose a node in the middle.
STEPS = 8


class Launch:
    """One run of torchrun.sh on both nodes, over a common directory."""

    def __init__(self, nodes: tuple[Node, Node], directory: Path):
        self._outputs = [directory / f"node_{number}.txt" for number in (0, 1)]
        self._processes = []
        for number, node in enumerate(nodes):
            command = ["bash", str(LAUNCH / "torchrun.sh"), "--nodes", "2", "--node-rank", str(number)]
            command += ["--address", nodes[0].address, "--logs", str(directory / "logs")]
            command += ["--", "--config", str(directory / "recipe.yaml")]
            with self._outputs[number].open("w") as output:
                self._processes.append(node.start(command, ENVIRONMENT, output))

    def wait(self, number: int, seconds: float) -> tuple[int, str]:
        """(exit code, what it wrote) of a node's agent, once it has ended."""
        code = self._processes[number].wait(seconds)
        return code, self._outputs[number].read_text()

    def wait_for(self, path: Path, seconds: float) -> None:
        """Until a file or directory is there; an agent that ends before fails the test."""
        deadline = time.monotonic() + seconds
        while not path.exists():
            ended = [output.read_text() for output, p in zip(self._outputs, self._processes, strict=True) if p.poll()]
            assert not ended and time.monotonic() < deadline, ended
            time.sleep(0.01)


def _losses(recipe: Recipe) -> list[float]:
    return [json.loads(line)["loss"] for line in (recipe.output_dir / "metrics.jsonl").read_text().splitlines()]


def test_two_nodes_train_as_one_and_a_lost_node_is_named_and_made_good(tmp_path):
    if reason := why_not_two_nodes():
        pytest.skip(reason)
    changes = {"parallel": {"pipeline": 2}, "checkpoint": {"every_steps": 1}, "align__steps": STEPS, "tune__steps": 1}
    one_node = tiny_recipe(tmp_path, **changes, output_dir=str(tmp_path / "one_node"))
    run_ranks(2, train, one_node)

    recipe = tiny_recipe(tmp_path, **changes)
    (tmp_path / "recipe.yaml").write_text(resolved_yaml(recipe))
    with two_nodes() as nodes:
        first = Launch(nodes, tmp_path)
        first.wait_for(recipe.output_dir / "checkpoints" / "align-00000002", seconds=90)
        nodes[1].kill()
        code, said = first.wait(0, seconds=60)
        assert code == LOST_RANK
        assert f"error: rank 0 ended with exit code {LOST_RANK}" in said
        assert "error: rank 1 (tensor 0, pipeline 1, data 0) has not answered for" in said
        assert f"error: {nodes[1].address} is node 1" in said and "ranks 1 to 1: look there first" in said
        assert 2 <= len(_losses(recipe)) < STEPS

        again = Launch(nodes, tmp_path)
        for number in (0, 1):
            code, said = again.wait(number, seconds=120)
            assert code == 0, said
            if number == 0:
                assert "align-000000" in said and "after step" in said
    assert _losses(recipe) == _losses(one_node)


def test_the_first_failing_ranks_exit_code_is_the_scripts(tmp_path):
    command = ["bash", str(LAUNCH / "torchrun.sh"), "--ranks-per-node", "2", "--logs", "logs", "--port", "0"]
    done = subprocess.run(
        [*command, "--", "--config", "missing.yaml"],
        cwd=tmp_path,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    logs = {log.parent.name: log.read_text() for log in tmp_path.glob("logs/node_0/*/attempt_0/*/stderr.log")}
    assert set(logs) == {"0", "1"}
    # Both ranks fail; rank 0 speaks for them, whichever is the first.
    assert "missing.yaml" in logs["0"] and logs["0"].strip() in done.stderr
    assert "missing.yaml" not in logs["1"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "recipe.yaml"], "unknown option '--config'"),
        (["--nodes", "2"], "nothing to train"),
        (["--nodes", "2", "--node-rank", "2", "--", "--config", "recipe.yaml"], "node rank 2 of 2 nodes"),
        (["--port", "high", "--", "--config", "recipe.yaml"], "--port is 'high'"),
    ],
)
def test_mistakes_on_the_command_line_are_named(arguments, message):
    command = ["bash", str(LAUNCH / "torchrun.sh"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and message in done.stderr


def test_a_port_that_is_in_use_is_named_in_one_line(tmp_path):
    with socket.socket() as other:
        other.bind(("0.0.0.0", 0))
        other.listen()
        port = other.getsockname()[1]
        command = ["bash", str(LAUNCH / "torchrun.sh"), "--port", str(port), "--", "--config", "recipe.yaml"]
        done = subprocess.run(
            command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=60, check=False
        )
    assert done.returncode == LOST_RANK
    assert f"error: the nodes did not meet at 127.0.0.1:{port} (" in done.stderr
    assert "EADDRINUSE" in done.stderr.splitlines()[-1] and "--port" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


FAULTY = """
import sys
from megatron_sts.command import command

@command
def main():
    raise KeyError("step")

sys.exit(main())
"""


def test_without_a_log_directory_the_ranks_own_message_is_all_there_is_on_the_screen(tmp_path):
    (tmp_path / "faulty.py").write_text(FAULTY)
    train_nothing = [str(ROOT / "tools" / "train.py"), "--config", "missing.yaml"]
    missing = "error: recipe 'missing.yaml' does not exist; give the path of a YAML file"
    for ranks_command, code, first in (
        (train_nothing, USER_ERROR, missing),
        (["faulty.py"], FAULT, "error: KeyError: 'step' (in faulty.py:7 main)"),
    ):
        done = _run([*LAUNCHER, "--nproc-per-node", "2", *ranks_command], tmp_path)
        assert done.returncode == code, done.stderr
        assert done.stderr.splitlines()[0] == first and done.stderr.count("error: ") == 1
        assert len(done.stderr.splitlines()) == (1 if code == USER_ERROR else 3), done.stderr
    logs = sorted(tmp_path.glob("fault-faulty-*.log"))
    # The first rank that ends takes the others with it, which may be before they have written theirs.
    assert logs and all(f"rank: {log.name.split('-')[4].removeprefix('rank')} of 2" in log.read_text() for log in logs)
    assert "Traceback" not in done.stderr and any(str(log) in done.stderr for log in logs)


def test_plain_torchrun_ends_with_the_ranks_own_message_in_its_report(tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    done = _run([*torchrun, str(ROOT / "tools" / "train.py"), "--config", "missing.yaml"], tmp_path)
    # Its exit code is its own, always.
    assert done.returncode == 1
    *_, last, border = done.stderr.splitlines()
    assert last.endswith("error: recipe 'missing.yaml' does not exist; give the path of a YAML file")
    assert set(border) == {"="}


def _run(command: list[str], directory: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=directory, env=ENVIRONMENT, capture_output=True, text=True, timeout=120, check=False
    )


STOPPING = """
import pathlib, signal, sys, time
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda *_: (time.sleep(1), sys.exit(75)))
pathlib.Path("ready").touch()
time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_agent_lets_its_ranks_save_and_ends_with_their_code(tmp_path, number):
    (tmp_path / "rank.py").write_text(STOPPING)
    command = [*LAUNCHER, "--master-port", "0", "--log-dir", "logs", "--redirects", "3"]
    agent = subprocess.Popen([*command, "rank.py"], cwd=tmp_path, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not (tmp_path / "ready").exists():
        assert agent.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    agent.send_signal(number)
    _, said = agent.communicate(timeout=60)
    assert agent.returncode == 75
    assert said == "stopped before the end, and saved; the same command goes on\n"


STAND_INS = {
    "scontrol": 'if [ "$1" = show ]; then printf "near\\nfar\\n"; else echo "$@" >>scontrol.txt; fi',
    # Two tasks, as srun would start them on two nodes; a signal goes to both.
    "srun": """
        while [ "$1" != bash ]; do shift; done
        SLURM_NODEID=0 "$@" & first=$!
        SLURM_NODEID=1 "$@" & second=$!
        trap 'kill -TERM $first $second; trap - TERM; wait $first; code=$?; wait $second; exit $code' TERM
        wait $first; code=$?
        wait $second
        exit $code""",
    # Training: it ends with the code it is given, at once or at a signal.
    "python": """
        echo "$@" >>"started-$SLURM_NODEID"
        [ -n "$ENDLESS" ] || exit "$CODE"
        trap 'exit "$CODE"' TERM
        for second in $(seq 60); do sleep 1 & wait $!; done""",
}


def _batch(directory: Path, endless: bool, code: int = 0, restarts: int = 0) -> subprocess.Popen[str]:
    """slurm.sbatch with stand-ins for Slurm's commands and for Python."""
    for name, body in STAND_INS.items():
        (directory / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (directory / name).chmod(0o755)
    (directory / "examples").symlink_to(LAUNCH.parent)
    environment = os.environ | {
        "PATH": f"{directory}:{os.environ['PATH']}",
        "PYTHON": str(directory / "python"),
        "ENDLESS": "yes" if endless else "",
        "CODE": str(code),
        "SLURM_RESTART_COUNT": str(restarts),
        "SLURM_JOB_ID": "70123",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_JOB_NODELIST": "near,far",
    }
    command = ["bash", str(LAUNCH / "slurm.sbatch"), "--config", "recipe.yaml", "seed=1"]
    return subprocess.Popen(command, cwd=directory, env=environment)


def test_a_batch_job_starts_one_agent_a_node(tmp_path):
    assert _batch(tmp_path, endless=False).wait(20) == 0
    for node in (0, 1):
        (started,) = (tmp_path / f"started-{node}").read_text().splitlines()
        assert f"--nnodes 2 --node-rank {node} " in started
        assert "--master-addr near --master-port 20123 --rdzv-id 70123 " in started
        assert started.endswith("tools/train.py --config recipe.yaml seed=1")
    assert not (tmp_path / "scontrol.txt").exists()


def test_a_batch_job_whose_time_is_over_lets_its_ranks_save_and_asks_for_another_turn(tmp_path):
    job = _batch(tmp_path, endless=True, code=75)
    deadline = time.monotonic() + 20
    while not all((tmp_path / f"started-{node}").exists() for node in (0, 1)):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    # The stand-in's trap stands a moment after its file.
    time.sleep(0.2)
    job.send_signal(signal.SIGTERM)
    assert job.wait(20) == 75
    assert (tmp_path / "scontrol.txt").read_text() == "requeue 70123\n"


@pytest.mark.parametrize(("code", "restarts", "again"), [(2, 0, False), (76, 4, True), (76, 5, False), (134, 4, True)])
def test_a_batch_job_is_queued_again_after_a_lost_rank_but_not_for_ever_nor_after_a_mistake(
    tmp_path, code, restarts, again
):
    assert _batch(tmp_path, endless=False, code=code, restarts=restarts).wait(20) == code
    assert (tmp_path / "scontrol.txt").exists() == again
