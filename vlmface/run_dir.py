"""The folder of a run: locked while a recipe works in it, resumed only by the run that was started
there, and replaced (`--overwrite`) only once the new run trains.

    settings.json            the settings that the run was started with
    run.json                 what else must be unchanged when it is resumed (`start_run`), whether
                             it has made its first step, and which entries of the folder existed
                             before the run
    checkpoints/*/complete   the files of a completely written checkpoint, with their sizes

While a new run replaces an old one, the old one is next to it, in `.NAME.replaced`.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vlmface import __version__
from vlmface.errors import UserError
from vlmface.utils import config, distributed, lock
from vlmface.utils.files import atomic_write

RUN_FILE = "run.json"
_FORMAT = "vlmface run"
COMPLETE_FILE = "complete"  # of a checkpoint
# What a run writes. A folder that has one of these without a run.json is not a run's.
_OUTPUTS = (
    config.SETTINGS,
    RUN_FILE,
    "vlmface.json",
    "checkpoints",
    "log.jsonl",
    "metrics.json",
    "predictions.jsonl",
    "predictions_before.jsonl",
    "report.html",
)
RESUMABLE_CHANGES = ("overwrite", "output_dir")  # settings that may differ when a run is resumed
LENGTHS = ("epochs", "max_steps")  # settings that may be raised when a run is resumed
# What is written after training, the mark of a complete run first.
_RESULTS = (
    "report.html",
    "metrics.json",
    "predictions.jsonl",
    "predictions.partial.jsonl",
    "vlmface.json",
)


# --- start and end of a run -----------------------------------------------------------------------


@contextlib.contextmanager
def open_run(
    settings: Any,
    last: str | None = "report.html",
    free: Sequence[str] = (),
    *,
    can_be_extended: bool = False,
) -> Iterator[bool]:
    """Lock `settings.output_dir` for a recipe, and check that it may write there.

    Nothing is written before `start_run`. All processes of a launch must call it; the main process
    holds the lock. If the block ends before the first optimizer step, a run that was to be replaced
    is restored.

    Args:
        settings: Has `output_dir` and `overwrite`.
        last: Name of the file that is written last; None if a run has no last file.
        free: Settings that may differ when the run is resumed, in addition to its folder.
        can_be_extended: Whether a run may be resumed with higher values of LENGTHS.

    Yields:
        Whether the run is incomplete, or to be extended.

    Raises:
        UserError: Another process works in the folder, or the folder holds other files than a run,
            a run with other settings, or one whose last checkpoint is damaged.
    """
    folder = Path(settings.output_dir)
    with contextlib.ExitStack() as stack:

        def enter() -> bool:
            stack.enter_context(lock.hold(folder))
            stack.callback(_finish_replacement, folder, last)
            _finish_replacement(folder, last)
            raised = raised_lengths(folder, settings) if can_be_extended else ()
            _check_folder(folder, settings, (*free, *raised))
            if settings.overwrite:
                return True
            if _is_complete(folder, last) and not raised:
                return False
            last_checkpoint(folder)
            return True

        is_open = distributed.on_main(enter)
        if not is_open and distributed.is_main():
            print(f"{folder} is complete: see its {last}, or start again with --overwrite")
        yield is_open


def start_run(
    settings: Any,
    identity: Callable[[], Mapping[str, Any]],
    free: Sequence[str] = (),
    *,
    can_be_extended: bool = False,
) -> dict[str, Any]:
    """Start the run in an opened folder, or check that it is the run that was started there.

    All processes must call it after all other checks, before the first file is written. With
    `settings.overwrite`, an existing run is moved aside.

    Args:
        settings: As in `open_run`.
        identity: Returns what must be unchanged in addition to the settings, such as the
            fingerprint of the data; ready for JSON. Called in the main process only. The number of
            processes, the global batch, sharding and precision are added.
        free: As in `open_run`.
        can_be_extended: As in `open_run`. Results of the shorter run are deleted, and the new
            settings are stored.

    Returns:
        The identity.

    Raises:
        UserError: A value differs from that of the run to be resumed.
    """

    def start() -> dict[str, Any]:
        folder = Path(settings.output_dir).resolve()
        now = {**identity(), **_launch_identity(settings)}
        if settings.overwrite and _read_record(folder) is not None:
            os.rename(folder, _replaced_path(folder))
        raised = raised_lengths(folder, settings) if can_be_extended else ()
        start_in_folder(folder, settings, now, (*RESUMABLE_CHANGES, *free, *raised))
        if raised:
            _extend(folder, settings, raised)
        return now

    return distributed.on_main(start)


def raised_lengths(folder: Path, settings: Any) -> list[str]:
    """Those of LENGTHS that are higher than when the run in the folder was started.

    Args:
        folder: Of a run, or of none.
        settings: A dataclass.
    """
    if _read_record(folder) is None:
        return []
    before = config.read_saved_config(folder)
    now = {name: getattr(settings, name, None) for name in LENGTHS}
    return [
        name
        for name, value in now.items()
        if isinstance(before.get(name), int | float) and value is not None and value > before[name]
    ]


def _extend(folder: Path, settings: Any, raised: Sequence[str]) -> None:
    """Make a run one with higher `raised` settings, which trains further from its last checkpoint.
    Its last file is deleted first and the settings are stored last: after a kill in between, the
    same call does the same."""
    before = config.read_saved_config(folder)
    for name in raised:
        print(f"{folder}: {name} is raised from {before[name]:g} to {getattr(settings, name):g}")
    if getattr(settings, "lr_scheduler", "constant") != "constant":
        print(
            f"note: lr_scheduler {settings.lr_scheduler} is that of the longer run from here on: "
            "the learning rate jumps, and the result is not that of a run which was started with "
            "this length (with constant it is)"
        )
    for name in _RESULTS:
        (folder / name).unlink(missing_ok=True)
    config.save_config(settings, folder)


def start_in_folder(
    folder: Path, settings: Any, identity: Mapping[str, Any], free: Sequence[str] = ()
) -> None:
    """Write settings.json and run.json into a folder, or compare them with existing ones.

    Files of an attempt that never trained are deleted if it had other settings or data.

    Args:
        folder: Of the run.
        settings: A dataclass.
        identity: As in `start_run`.
        free: Settings that may differ.

    Raises:
        UserError: The run in the folder has trained and differs; names the first difference.
    """
    record = _read_record(folder)
    identity = json.loads(json.dumps(identity))
    if record is not None:
        try:
            config.check_config(settings, folder, free)
            _check_identity(folder, record["identity"], identity)
        except UserError:
            if has_trained(folder):
                raise
            _delete_own_files(folder, record)
            record = None
    if record is None:
        others = sorted(os.listdir(folder)) if folder.exists() else []
        config.save_config(settings, folder)
        content = {
            "format": _FORMAT,
            "vlmface": __version__,
            "trained": False,
            "started": f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC",
            "identity": identity,
            "others": others,
        }
        _write_record(folder, content)


def mark_trained(folder: Path) -> None:
    """Record that the run has made its first step: from now on it is not deleted without
    --overwrite, and the run that it replaces is deleted."""
    record = _read_record(folder)
    if record is not None and not record["trained"]:
        _write_record(folder, {**record, "trained": True})
    if _replaced_path(folder).exists():
        shutil.rmtree(_replaced_path(folder))


def has_trained(folder: Path) -> bool:
    """Whether a run, or one of the runs of an ablation or a loop, has made its first step."""
    record = _read_record(folder)
    if record is None:
        return False
    nested = [path for depth in ("*", "*/*") for path in folder.glob(f"{depth}/{RUN_FILE}")]
    parts = [path for path in nested if path.relative_to(folder).parts[0] not in record["others"]]
    records = [record, *(_read_record(path.parent) for path in parts)]
    return any(entry is not None and entry["trained"] for entry in records)


def delete_run(folder: Path) -> None:
    """Delete the folder of a run, if it exists.

    Raises:
        UserError: The folder holds other files.
    """
    if folder.exists():
        _check_deletable(folder)
        shutil.rmtree(folder)


# --- the content of a folder ----------------------------------------------------------------------


def is_started(folder: Path) -> bool:
    """Whether a run, or a build, was started in the folder."""
    return _read_record(folder) is not None


def start_time(folder: Path) -> str:
    """When the run in the folder was started, UTC; "" if none was."""
    record = _read_record(folder)
    return "" if record is None else str(record.get("started", ""))


def _read_record(folder: Path) -> dict[str, Any] | None:
    """The content of run.json; None if there is none of a run."""
    try:
        content = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    is_ours = isinstance(content, dict) and content.get("format") == _FORMAT
    return content if is_ours and {"trained", "identity", "others"} <= set(content) else None


def _write_record(folder: Path, record: Mapping[str, Any]) -> None:
    atomic_write(folder / RUN_FILE, json.dumps(record, indent=2) + "\n")


def _replaced_path(folder: Path) -> Path:
    """The path of a run while another one replaces it."""
    target = folder.resolve()
    return target.with_name(f".{target.name}.replaced")


def _is_complete(folder: Path, last: str | None) -> bool:
    return last is not None and is_started(folder) and (folder / last).exists()


def _finish_replacement(folder: Path, last: str | None) -> None:
    """Finish an interrupted replacement: delete the old run if the new one has trained, otherwise
    restore it. Raises UserError if other files are in its place."""
    replaced = _replaced_path(folder)
    if not replaced.exists():
        return
    if has_trained(folder) or _is_complete(folder, last):
        shutil.rmtree(replaced)
        return
    try:
        delete_run(folder.resolve())
    except UserError as error:
        raise UserError(f"{error}; the run that was here before is in {replaced}") from error
    os.rename(replaced, folder.resolve())
    print(f"the earlier run is back in {folder}")


def _check_folder(folder: Path, settings: Any, free: Sequence[str]) -> None:
    """Refuse a folder that the recipe may not work in. Raises UserError."""
    record = _read_record(folder)
    if settings.overwrite:
        _check_deletable(folder)
    elif record is None:
        if clash := [name for name in _OUTPUTS if (folder / name).exists()]:
            raise UserError(
                f"{folder} holds {', '.join(clash)}, but was not started by this version of "
                "vlmface: use another --output_dir"
            )
    elif has_trained(folder):
        config.check_config(settings, folder, (*RESUMABLE_CHANGES, *free))


def _check_deletable(folder: Path) -> None:
    """Raise UserError if a folder holds files that were not written as part of a run."""
    if not folder.exists() or not any(folder.iterdir()):
        return
    record = _read_record(folder)
    if record is None:
        raise UserError(
            f"{folder} holds other files than a run (no {RUN_FILE} of one): it will not be "
            "deleted, use another --output_dir"
        )
    if others := [name for name in record["others"] if (folder / name).exists()]:
        raise UserError(
            f"{folder} holds files that were there before the run ({', '.join(others[:5])}): it "
            "will not be deleted, move them or use another --output_dir"
        )


def _delete_own_files(folder: Path, record: Mapping[str, Any]) -> None:
    """Delete what a run has written, its run.json last."""
    names = set(os.listdir(folder)) - set(record["others"])
    for name in sorted(names, key=lambda name: name == RUN_FILE):
        path = folder / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


# --- the identity of a run ------------------------------------------------------------------------


def _launch_identity(settings: Any) -> dict[str, Any]:
    """What depends on the launch: processes, rows in a step, sharding of the model, precision."""
    import torch

    world = int(os.environ.get("WORLD_SIZE", "1"))
    rows = world * getattr(settings, "batch_size", 1)
    rows *= getattr(settings, "gradient_accumulation", 1) * getattr(settings, "num_generations", 1)
    stage = os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "")
    kind = distributed.sharding()
    return {
        "processes": world,
        "global_batch": rows,
        "sharding": f"{kind} stage {stage}" if kind == "DeepSpeed" else kind,
        "precision": "bfloat16" if torch.cuda.is_available() else "float32",
    }


def _check_identity(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise UserError that names the first value in which two identities differ."""
    for name in {**before, **now}:
        if before.get(name) != now.get(name):
            words = name.replace("_", " ") + (" (fingerprint)" if name.endswith("data") else "")
            raise UserError(
                f"{folder} was started with {words} {before.get(name)!r}, but now it is "
                f"{now.get(name)!r}: restore what has changed, use another --output_dir, or start "
                "again with --overwrite"
            )


# --- checkpoints ----------------------------------------------------------------------------------


def complete_checkpoint(folder: Path, trainable_sha: str) -> None:
    """Mark a checkpoint as completely written.

    Args:
        folder: Of the checkpoint; its files are recorded with their sizes.
        trainable_sha: Of the names and sizes of the trained weights.
    """
    files = {
        path.relative_to(folder).as_posix(): path.stat().st_size
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path != folder / COMPLETE_FILE
    }
    content = {"trainable_sha": trainable_sha, "files": files}
    atomic_write(folder / COMPLETE_FILE, json.dumps(content, indent=2) + "\n")


def checkpoint_to_resume(folder: Path, trainable_sha: str) -> Path | None:
    """The last complete checkpoint of a run. Incomplete checkpoints are deleted. All processes must
    call it.

    Args:
        folder: Of the run.
        trainable_sha: Of the weights that will be trained.

    Returns:
        The checkpoint's folder, None if there is none.

    Raises:
        UserError: The checkpoint is damaged, or other weights were trained when it was written:
            another version of peft, for example, may name or select them differently.
    """

    def choose() -> Path | None:
        checkpoint = last_checkpoint(folder)
        if checkpoint is not None:
            before = _completion_note(checkpoint)["trainable_sha"]
            if before != trainable_sha:
                raise UserError(
                    f"{checkpoint} was written while other weights were trained (trainable_sha "
                    f"{before}, now {trainable_sha}): resume with the versions of peft, "
                    "transformers and vlmface that started the run, or start again with --overwrite"
                )
        for unfinished in _checkpoints(folder):
            if not (unfinished / COMPLETE_FILE).exists():
                shutil.rmtree(unfinished)
        return checkpoint

    return distributed.on_main(choose)


def _is_checkpoint(name: str) -> bool:
    """Whether a folder of this name is a checkpoint, and not a user's copy of one."""
    return re.fullmatch(r"checkpoint-\d+", name) is not None


def step_of(checkpoint: Path) -> int:
    """The optimizer step after which a checkpoint was written."""
    return int(checkpoint.name.rpartition("-")[2])


def _checkpoints(folder: Path) -> list[Path]:
    """All checkpoints of a run, by step."""
    paths = (folder / "checkpoints").glob("checkpoint-*")
    return sorted((path for path in paths if _is_checkpoint(path.name)), key=step_of)


def last_checkpoint(folder: Path) -> Path | None:
    """The last complete checkpoint, None if there is none.

    Raises:
        UserError: A file of it is missing, or has another size than when it was written.
    """
    complete = [path for path in _checkpoints(folder) if (path / COMPLETE_FILE).exists()]
    if not complete:
        return None
    check_checkpoint(complete[-1])
    return complete[-1]


def check_checkpoint(checkpoint: Path, remedy: str | None = None) -> None:
    """Check that a checkpoint has all its files.

    Args:
        checkpoint: Its folder.
        remedy: What to do otherwise; by default how to do without the last checkpoint.

    Raises:
        UserError: A file is missing, or has another size than when it was written.
    """
    remedy = remedy or (
        f"restore it, delete {checkpoint} to resume from the checkpoint before it, or start again "
        "with --overwrite"
    )
    try:
        note = _completion_note(checkpoint)
    except (OSError, ValueError) as error:
        raise UserError(f"{checkpoint / COMPLETE_FILE} is damaged ({error}): {remedy}") from error
    for name, size in note["files"].items():
        path = checkpoint / name
        actual = path.stat().st_size if path.is_file() else None
        if actual != size:
            state = "is missing" if actual is None else f"has {actual} bytes of {size}"
            raise UserError(f"{path} {state}: {remedy}")


def prune_checkpoints(folder: Path, n: int, best: Callable[[int], int | None]) -> None:
    """Delete the checkpoints of a run, except the last `n` and the best one at each of these.

    Args:
        folder: Of the run.
        n: How many are kept.
        best: Returns the step of the best checkpoint up to a step, None if none is selected.
    """
    checkpoints = _checkpoints(folder)
    steps = {step_of(path) for path in checkpoints[-n:]}
    steps |= {step for last in steps if (step := best(last)) is not None}
    for path in checkpoints:
        if step_of(path) not in steps:
            (path / COMPLETE_FILE).unlink(missing_ok=True)
            shutil.rmtree(path)


def checkpoint_history(checkpoint: Path) -> list[dict[str, Any]]:
    """What the trainer had logged when it wrote a complete checkpoint: {"step", ...} of each time.

    Raises:
        UserError: Its trainer_state.json cannot be read.
    """
    path = checkpoint / "trainer_state.json"
    try:
        return list(json.loads(path.read_text(encoding="utf-8"))["log_history"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"cannot read {path} ({error}): restore it, or delete {checkpoint} to resume from the "
            "checkpoint before it"
        ) from error


def _completion_note(checkpoint: Path) -> dict[str, Any]:
    """The content of a checkpoint's `complete` file. Raises OSError and ValueError."""
    note = json.loads((checkpoint / COMPLETE_FILE).read_text(encoding="utf-8"))
    if not isinstance(note, dict) or not isinstance(note.get("files"), dict):
        raise ValueError("it lists no files")
    if not isinstance(note.get("trainable_sha"), str):
        raise ValueError("it has no trainable_sha")
    return note


def read_log(run_dir: Path) -> list[dict[str, Any]]:
    """The lines of log.jsonl, without an incomplete last line."""
    path = run_dir / "log.jsonl"
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(text))
        except ValueError:
            break
    return lines


def truncate_log(run_dir: Path, last_step: int) -> float:
    """Delete the log's lines after a step, which will be written again.

    Args:
        run_dir: Of the run.
        last_step: The last step to keep.

    Returns:
        Seconds of training up to that step.
    """
    lines = [line for line in read_log(run_dir) if line["step"] <= last_step]
    atomic_write(run_dir / "log.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    return float(lines[-1]["elapsed_s"]) if lines else 0.0
