"""Exit codes of the commands; docs/faults.md says what each asks of the user."""

USER_ERROR = 2
"""A mistake in the command line, the recipe, the data or a checkpoint; starting again ends in the same way."""
FAULT = 70
"""A fault of megatron_sts itself (EX_SOFTWARE)."""
STOPPED = 75
"""The run stopped before its end and saved (EX_TEMPFAIL: try again)."""
LOST_RANK = 76
"""This rank gave up because another one did not answer."""
INTERRUPTED = 130
"""Ctrl-C: 128 + SIGINT, as a shell has it."""
READER_GONE = 141
"""The reader of the output has ended, such as `head`: 128 + SIGPIPE."""
