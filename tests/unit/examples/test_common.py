"""Shows that the examples' shared pieces do no step twice, lose no former run, and count what is not looked at."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[3] / "examples"))
from common.questions import Question, question_only_accuracy, question_rows, read_rows, record, write_rows
from common.report import arm_figures, closing_line, text_table
from common.steps import make, resume_or_set_aside, run_script


def test_a_step_is_done_once_and_again_where_it_was_interrupted(tmp_path: Path) -> None:
    output, done = tmp_path / "folder" / "file", []

    def write(at: Path) -> None:
        assert not at.exists()
        at.write_text("half")
        done.append(at)
        if len(done) == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make("a step", output, write)
    assert not output.exists()
    make("a step", output, write)
    make("a step", output, write)
    assert len(done) == 2 and output.read_text() == "half"
    assert [file.name for file in output.parent.iterdir()] == ["file"]


def test_a_run_of_other_settings_is_set_aside_and_one_of_the_same_is_resumed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    resume_or_set_aside(run, "small")
    (run / "weights").write_text("first")
    resume_or_set_aside(run, "small")
    assert (run / "weights").read_text() == "first"
    assert f"Resuming what is in {run}" in capsys.readouterr().out
    for number, settings in ((1, "large"), (2, "small")):
        resume_or_set_aside(run, settings)
        assert [file.name for file in run.iterdir()] == ["settings.txt"]
        assert f"it is now {run}.{number}" in capsys.readouterr().out
    assert (tmp_path / "run.1" / "weights").read_text() == "first"


def test_a_program_that_fails_ends_this_one_with_its_exit_code(tmp_path: Path) -> None:
    (tmp_path / "failing.py").write_text("import sys; sys.exit(int(sys.argv[1]))")
    with pytest.raises(SystemExit) as ended:
        run_script(tmp_path / "failing.py", ["75"])
    assert ended.value.code == 75


def test_records_and_rows_are_what_training_and_evaluation_read(tmp_path: Path) -> None:
    assert record("a-1", "images/1.png", [("Which?", "two"), ("And?", "six")]) == {
        "id": "a-1",
        "image": "images/1.png",
        "conversations": [
            {"from": "human", "value": "<image>\nWhich?"},
            {"from": "gpt", "value": "two"},
            {"from": "human", "value": "And?"},
            {"from": "gpt", "value": "six"},
        ],
    }
    write_rows(tmp_path / "rows.jsonl", question_rows("t", "i.png", [Question("Which?", "two", "read")]))
    assert read_rows(tmp_path / "rows.jsonl") == [
        {"question_id": "t-0", "image": "i.png", "text": "Which?", "answer": "two", "category": "read"}
    ]


def test_answering_without_looking_gives_the_most_frequent_training_answer() -> None:
    train = [record("r", "i.png", [(text, answer)]) for text, answer in (
        ("Is there a two?", "yes"), ("Is there a two?", "yes"), ("Is there a two?", "no"), ("How many?", "nine")
    )]  # fmt: skip
    test = [
        {"text": "Is there a two?", "answer": "yes", "category": "exist"},
        {"text": "Is there a two?", "answer": "no", "category": "exist"},
        {"text": "How many?", "answer": "six", "category": "total"},
        {"text": "Never asked?", "answer": "yes", "category": "other"},
    ]
    assert question_only_accuracy(train, test) == {"overall": 1 / 4, "exist": 1 / 2, "total": 0.0, "other": 0.0}


def test_figures_are_by_stage_and_say_what_was_kept() -> None:
    line = {"visual_tokens_kept": 2, "visual_tokens_total": 4, "loss": 1.0, "flops_dense": 10.0}
    lines = [
        {**line, "stage": "align", "step_time_s": 1.0, "flops_executed": 5.0},
        {**line, "stage": "tune", "step_time_s": 2.0, "flops_executed": 10.0},
        {**line, "stage": "tune", "step_time_s": 4.0, "flops_executed": 6.0},
    ]
    evaluation = {"accuracy": 0.8, "interval_95": [0.7, 0.9], "by_category": {"read": {"accuracy": 0.8}}}
    found = arm_figures(evaluation, lines)
    assert found["steps"] == {"align": 1, "tune": 2} and found["train_seconds"] == {"align": 1.0, "tune": 6.0}
    assert found["flops_saved"] == {"align": 0.5, "tune": pytest.approx(0.2)}
    assert (found["flops_executed"], found["flops_dense"]) == (21.0, 30.0)
    json.dumps(found)
    sparse = {**found, "accuracy": 0.76, "train_seconds": {"tune": 5.4}}
    assert closing_line({"dense": found, "sts": sparse}, "tune") == (
        "STS kept 95.0% of dense's accuracy; tune took 0.90 of dense's time"
    )


def test_cells_stand_under_their_columns() -> None:
    assert text_table(["dense", "STS"], [("seconds", ["10", "9"])]) == (
        "         dense  STS\n-------------------\nseconds     10    9"
    )
