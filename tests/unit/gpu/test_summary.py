"""Shows that the summary of a GPU run has what failed, what did not run to its end, and the figures of each part."""

from tests.gpu.slot import Slot, read_results
from tests.gpu.summary import failures, summary, write_summary


def test_the_summary_names_what_failed_and_what_was_ended(tmp_path):
    slot = Slot(tmp_path, tmp_path)
    slot.check("first", "bf16", True, loss=1.0)
    with slot.attempt("first", "FP8 delayed"):
        raise ValueError("no such kernel")
    slot.record("first", "ended", how="done", seconds=3.0)
    slot.record("waits", "waits of a step", number=3, places={"train/step.py:9": 3})
    slot.record("losses", "ended", how="bf16 limit", seconds=90.0)
    text = write_summary(slot)
    assert (tmp_path / "summary.md").read_text() == text + "\n"
    assert "| first | done | 3.0 | 1 of 2 |" in text and "| waits | not ended |  |  |" in text
    assert "FAILED first, FP8 delayed" in text and "ValueError: no such kernel" in text
    assert "waits of the host in a step: 3 ({'train/step.py:9': 3})" in text
    assert failures(slot) == ["first: FP8 delayed", "losses: bf16 limit"]


def test_a_line_that_was_being_written_is_left_out(tmp_path):
    slot = Slot(tmp_path, tmp_path)
    slot.record("host", "host time", precision="bf16", cuda_graphs="none", layer_ms=1.25)
    with slot.results.open("a") as file:
        file.write('{"at": 1.0, "part": "ho')
    (record,) = read_results(slot.results)
    assert "host time of a layer, bf16, CUDA graphs none: 1.25 ms" in summary([record])
    assert read_results(tmp_path / "nothing.jsonl") == []


def test_a_slot_is_handed_on_whole(tmp_path):
    slot = Slot(tmp_path / "out", tmp_path / "scratch", "rehearsal", ("a=1",), 5.0)
    assert Slot.loads(slot.dumps()) == slot
