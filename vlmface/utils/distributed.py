"""The processes that a launcher starts for one run: which of them this is, what works in one
process only, and how all of them end."""

from __future__ import annotations

import atexit
import gc
import os
import sys
import time
import traceback
from collections.abc import Callable
from typing import NoReturn

from vlmface.errors import UserError
from vlmface.utils.terminal import one_line

HEAD_START = 10.0  # seconds that rank 0 has to print an error which every process raised


def world_size() -> int:
    """The number of processes of this run."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """The number of this process among those of the run, from 0."""
    return int(os.environ.get("RANK", "0"))


def is_main() -> bool:
    """Whether this process writes files and prints."""
    return rank() == 0


def check_alone(command: str) -> None:
    """Refuse to run `command` in several processes, each of which would do all of the work and
    write the same files.

    Raises:
        UserError: If a launcher started more than one process.
    """
    if (world := world_size()) > 1:
        raise UserError(
            f"{command} works in one process, but WORLD_SIZE is {world}: start it by itself, not "
            "with `accelerate launch` or `torchrun`"
        )


def run_command(main: Callable[[], int], interrupted: str) -> NoReturn:
    """Run `main` and exit: with its code, with 2 and one line on stderr after a UserError, with
    130 and the line `interrupted` after an interruption.

    Of several processes, all leave together when `main` has returned in each of them. A process
    that fails leaves at once, without waiting for the others: the launcher ends them.
    """
    try:
        code = main()
        _close_process_group()
    except UserError as error:
        let_main_report()
        print(f"error: {one_line(error)}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        code = 130
    except Exception:
        if world_size() == 1:
            raise
        traceback.print_exc()
        code = 1
    if world_size() > 1:
        _leave(code)
    sys.exit(code)


def _leave(code: int) -> NoReturn:
    """Exit without finalising the interpreter, which waits for nobody and cannot abort.

    Gloo's threads may still hold the tensors of the last collective, and those of a group that DDP
    used outlive the group. To release a tensor they take the interpreter's lock; while Python 3.11
    finalises, that ends the thread, and so the process ("terminate called without an active
    exception"). After a failure another process may wait for this one inside a collective: to let
    the interpreter destroy the group would be to wait for that process in turn.
    """
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def let_main_report() -> None:
    """Wait on all ranks but 0: an error that all of them raised is printed once, by rank 0, whose
    end makes the launcher end the others. One that rank 0 did not raise is printed after all."""
    if not is_main():
        time.sleep(HEAD_START)


def _close_process_group() -> None:
    """Wait until every process is here, then close the process group, if there is one."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return
    from accelerate import PartialState

    PartialState().wait_for_everyone()  # rank 0 may still be writing the report
    gc.collect()  # trainers are cycles, and hold the group
    PartialState().destroy_process_group()
