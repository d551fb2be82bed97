"""The quickstart's whole chain at its smallest size: every command, every file, no learning."""

import json
import subprocess
import sys
from pathlib import Path

from megatron_sts.config import read_run

ROOT = Path(__file__).resolve().parents[2]


def test_quickstart_runs_end_to_end_and_reports(tmp_path):
    command = [sys.executable, str(ROOT / "examples" / "quickstart" / "run.py"), "--tiny", "--directory", str(tmp_path)]
    run = tmp_path / "runs" / "quickstart"
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    report = json.loads((run / "report.json").read_text())
    assert (run / "report.png").stat().st_size > 10_000
    for name in ("dense", "sts"):
        assert 0 <= report[name]["accuracy"] <= 1
        assert set(report[name]["train_seconds"]) == {"align", "tune"}
        assert (tmp_path / report[name]["export"] / "config.json").is_file()
    assert report["dense"]["flops_executed"] == report["dense"]["flops_dense"]
    assert report["sts"]["flops_executed"] < report["sts"]["flops_dense"]
    # Both saw the same samples; what differs is what was run of them.
    assert report["sts"]["visual_tokens_total"] == report["dense"]["visual_tokens_total"]
    assert report["export_max_logit_difference"] <= 1e-4
    # What was skipped follows what the probe measured, of the weights that tuning began from.
    probe = json.loads((run / "probe.json").read_text())
    assert probe["stage"] == "tune" and (run / "probe.png").stat().st_size > 10_000
    rises = [layer["loss_rise_visual"] for layer in probe["layers"]]
    checkpoint = max((run / "sts" / "checkpoints").glob("tune-*"))
    assert [list(one.rises) for one in read_run(checkpoint).recipe.stage("tune").skip[0].rises] == [rises]
    for said in ("question only", "STS kept", "questions", "tools/generate.py"):
        assert said in done.stdout + done.stderr
