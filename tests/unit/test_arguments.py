"""Shows that a number of the command line is above 0, or the option is named."""

import argparse

import pytest

from megatron_sts.arguments import positive


def test_number_above_zero_is_taken():
    assert positive("7") == 7


@pytest.mark.parametrize(("text", "message"), [("0", "0 is not above 0"), ("-3", "-3 is not above 0"), ("x", "'x'")])
def test_other_text_ends_the_command_and_names_the_option(text, message, capsys):
    parser = argparse.ArgumentParser()
    parser.add_argument("--batch-size", type=positive)
    with pytest.raises(SystemExit) as ended:
        parser.parse_args([f"--batch-size={text}"])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "--batch-size" in said and message in said
