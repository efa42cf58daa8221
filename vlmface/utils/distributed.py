"""The processes of one run: rank and world size, checks of the launch, and a common exit."""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

from vlmface.errors import UserError
from vlmface.utils.extras import missing_extra
from vlmface.utils.terminal import one_line

HEAD_START = 10.0  # seconds for rank 0 to print an error that every process raised


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

    Args:
        command: Its name, for the message.

    Raises:
        UserError: If a launcher started more than one process.
    """
    if (world := world_size()) > 1:
        raise UserError(
            f"{command} works in one process, but WORLD_SIZE is {world}: start it by itself, not "
            "with `accelerate launch` or `torchrun`"
        )


def run_command(main: Callable[[], int], interrupted: str) -> NoReturn:
    """Run `main` and exit with the code of `exit_code`.

    Of several processes, all leave together when `main` has returned in each of them. A process
    that fails leaves at once, without waiting for the others: the launcher ends them.

    Args:
        main: Returns an exit code.
        interrupted: Line to print after an interruption.
    """

    def main_to_end() -> int:
        code = main()
        _close_process_group()
        return code

    try:
        code = exit_code(main_to_end, interrupted)
    except Exception:
        if world_size() == 1:
            raise
        traceback.print_exc()
        code = 1
    if world_size() > 1:
        _leave(code)
    sys.exit(code)


def exit_code(main: Callable[[], int], interrupted: str) -> int:
    """Run `main`.

    Args:
        main: Returns an exit code.
        interrupted: Line to print after an interruption.

    Returns:
        The code of `main`; 2 and one line on stderr after a UserError, or if an optional package
        is missing; 130 and the line `interrupted` after an interruption.
    """
    try:
        return main()
    except UserError as error:
        return _print_error(error)
    except ImportError as error:
        explanation = missing_extra(error)
        if explanation is None:
            raise
        return _print_error(explanation)
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        return 130


def _print_error(error: UserError) -> int:
    let_main_report()
    print(f"error: {one_line(error)}", file=sys.stderr)
    return 2


def _leave(code: int) -> NoReturn:
    """Exit without finalising the interpreter, so without waiting for threads, and without aborts.

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


T = TypeVar("T")


# For one process to render, crop or evaluate while the others wait; the default is 10 minutes.
PROCESS_TIMEOUT = timedelta(hours=6)


def check_processes(required: int | None) -> None:
    """Refuse to train with another number of processes than the settings require.

    `accelerate launch --cpu --num_processes 2` silently starts one process; the batch would be half
    of that in the settings.

    Args:
        required: `num_processes` of the settings.

    Raises:
        UserError: The number differs.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if required is not None and world != required:
        raise UserError(
            f"{world} process(es) run, but num_processes is {required}: start with `accelerate "
            f"launch --config_file recipes/accelerate/ddp.yaml --num_processes {required}`, or set "
            f"--num_processes {world}, which makes the batch smaller"
        )
    # accelerate's single-process launcher sets MASTER_ADDR only if several were requested.
    launched = "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_ADDR" in os.environ
    if launched and "WORLD_SIZE" not in os.environ:
        raise UserError(
            "accelerate started one process instead of several: on a CPU, launch with "
            "`--config_file recipes/accelerate/ddp.yaml`"
        )


def set_cpu_threads() -> None:
    """Share the CPU's cores among the processes: `accelerate launch` leaves each of them one."""
    import joblib
    import torch

    if not torch.cuda.is_available() and "ACCELERATE_MIXED_PRECISION" in os.environ:
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        torch.set_num_threads(max(1, joblib.cpu_count() // processes))


def sharding() -> str | None:
    """The sharding of `accelerate launch`: "DeepSpeed", "FSDP" or None."""
    for name in ("DeepSpeed", "FSDP"):
        if os.environ.get(f"ACCELERATE_USE_{name.upper()}", "false").lower() == "true":
            return name
    return None


def check_sharding(trainer: Any) -> None:
    """Refuse to train without the requested sharding: accelerate silently falls back to data
    parallelism, for FSDP on every CPU, for DeepSpeed if ACCELERATE_USE_CPU is set.

    Args:
        trainer: A transformers Trainer.

    Raises:
        UserError: The trainer does not shard the model.
    """
    enabled = {"DeepSpeed": trainer.is_deepspeed_enabled, "FSDP": trainer.is_fsdp_enabled}
    if (requested := sharding()) and not enabled[requested]:
        raise UserError(
            f"accelerate was launched with {requested}, but would train without it here: "
            "FSDP needs GPUs (on a CPU take ddp.yaml or zero3.yaml), DeepSpeed on a CPU needs "
            "ACCELERATE_USE_CPU unset"
        )


def disable_deepspeed_shm() -> None:
    """Prevent DeepSpeed from compiling its shared-memory all-reduce. Call before the first process
    group is created.

    On a CPU it would do so at the first start, which takes minutes and requires a compiler; gloo
    computes the same sums.
    """
    import torch

    if sharding() == "DeepSpeed" and not torch.cuda.is_available():
        import deepspeed.ops

        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def device() -> Any:
    """The accelerator of this process, as the trainers choose it, or the CPU: a torch.device."""
    import torch
    from accelerate import PartialState

    if not torch.cuda.is_available():
        return torch.device("cpu")
    if world_size() == 1:
        return torch.device("cuda")
    wait_for_everyone()  # makes the process group
    return PartialState().device


def wait_for_everyone() -> None:
    """A barrier between the processes of a distributed run; nothing in a single one."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        import torch
        from accelerate import PartialState

        disable_deepspeed_shm()
        PartialState(cpu=not torch.cuda.is_available(), timeout=PROCESS_TIMEOUT).wait_for_everyone()


def on_main(work: Callable[[], T]) -> T:
    """The result of `work`, which only the main process calls, in all processes.

    A UserError of it is raised in all of them.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return work()
    from accelerate.utils import broadcast_object_list

    result: list[Any] = [None, None]
    if is_main():
        try:
            result[0] = work()
        except UserError as error:
            result[1] = str(error)
    wait_for_everyone()
    broadcast_object_list(result)
    if result[1] is not None:
        raise UserError(result[1])
    return result[0]


@contextlib.contextmanager
def main_first() -> Iterator[None]:
    """The main process runs the block before the others, which can then read the files that it
    wrote."""
    if not is_main():
        wait_for_everyone()
    yield
    if is_main():
        wait_for_everyone()


def mixed_precision() -> bool:
    """Whether this machine trains in bfloat16, the trained weights being float32: GPUs do. CPUs
    train in float32, also where a launch configuration that was written for GPUs says bf16."""
    import torch

    gpu = torch.cuda.is_available()
    if not gpu and "ACCELERATE_MIXED_PRECISION" in os.environ:
        os.environ["ACCELERATE_MIXED_PRECISION"] = "no"
    return gpu
