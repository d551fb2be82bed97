"""The outermost part of every command: what it says and which exit code it has, however it ends."""

import contextlib
import functools
import os
import select
import sys
from collections.abc import Callable
from typing import ParamSpec

from megatron_sts.errors import LostRankError, MegatronStsError
from megatron_sts.exit_codes import FAULT, INTERRUPTED, LOST_RANK, READER_GONE, USER_ERROR
from megatron_sts.fault import fault_message
from megatron_sts.machine_errors import machine_message
from megatron_sts.rank_errors import rank_of_environment, tell, tell_error

Parameters = ParamSpec("Parameters")


def command(main: Callable[Parameters, int]) -> Callable[Parameters, int]:
    """Decorate a command's `main`, which returns an exit code, so that no exception leaves it with a traceback.

    A typed error is printed, once for all ranks. Ctrl-C and a reader that is gone (`| head`) end quietly. Whatever else
    is raised is a fault of megatron_sts: the trace goes to a log file. SystemExit, argparse's end, passes.
    """

    @functools.wraps(main)
    def guarded(*arguments: Parameters.args, **options: Parameters.kwargs) -> int:
        try:
            code = main(*arguments, **options)
            # Here, and not while Python ends, where nobody could take the error.
            sys.stdout.flush()
            return code
        except SystemExit as end:
            if isinstance(end.__context__, BrokenPipeError):
                # rich ends a command so.
                return READER_GONE
            raise
        except BaseException as error:
            return _end(error)

    return guarded


def _end(error: BaseException) -> int:
    """Say why the command ends; returns its exit code."""
    if isinstance(error, MegatronStsError):
        tell_error(error)
        return LOST_RANK if isinstance(error, LostRankError) else USER_ERROR
    if isinstance(error, KeyboardInterrupt):
        if rank_of_environment() == 0:
            print("interrupted", file=sys.stderr)
        return INTERRUPTED
    if isinstance(error, BrokenPipeError) and _close_where_nobody_reads():
        return READER_GONE
    if message := machine_message(error):
        tell(message)
        return USER_ERROR
    tell(fault_message(error))
    return FAULT


def _close_where_nobody_reads() -> bool:
    """Whether the reader of the output has ended; what is still to be written there is dropped.

    A pipe to a process of our own can break too, and that is no end to be quiet about.
    """
    gone = False
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            watch = select.poll()
            watch.register(stream.fileno(), 0)
            if any(event & select.POLLERR for _, event in watch.poll(0)):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
                gone = True
    return gone
