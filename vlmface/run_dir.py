"""The folder of a run: locked while a recipe works in it, resumed by the run that started there
only, and replaced (`--overwrite`) only once the new run trains.

    settings.json            the settings that the run was started with
    run.json                 what else must be the same when it is resumed (`begin`), whether it has
                             made its first step, and which entries of the folder are not its own
    checkpoints/*/complete   the files of a checkpoint that was written to its end, with their sizes

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

RECORD = "run.json"
_FORMAT = "vlmface run"
COMPLETE = "complete"  # of a checkpoint
# What a run writes: a folder that has some of it without a run.json belongs to something else.
_OUTPUTS = (
    config.SETTINGS,
    RECORD,
    "vlmface.json",
    "checkpoints",
    "log.jsonl",
    "metrics.json",
    "predictions.jsonl",
    "predictions_before.jsonl",
    "report.html",
)
FREE = ("overwrite", "output_dir")  # settings that may differ when a run is resumed


# --- a recipe's time in its folder ----------------------------------------------------------------


@contextlib.contextmanager
def open_run(
    settings: Any, last: str | None = "report.html", free: Sequence[str] = ()
) -> Iterator[bool]:
    """Hold `settings.output_dir` for a recipe, and check that it may work there.

    Nothing is written before `begin`. All processes of a launch must call it; the main one holds
    the lock. When the block ends before the first optimizer step, a run that was to be replaced
    is put back.

    Args:
        settings: has `output_dir` and `overwrite`.
        last: name of the file that is written when all is done; None if a run has no end.
        free: settings that may differ when the run is resumed, besides where it is.

    Yields:
        Whether something is left to do.

    Raises:
        UserError: another process works in the folder, it holds something else than a run, a run
            with other settings, or one whose last checkpoint is damaged.
    """
    folder = Path(settings.output_dir)
    with contextlib.ExitStack() as stack:

        def enter() -> bool:
            stack.enter_context(lock.hold(folder))
            stack.callback(_settle, folder, last)
            _settle(folder, last)
            _check_folder(folder, settings, free)
            if settings.overwrite:
                return True
            if _is_complete(folder, last):
                return False
            last_checkpoint(folder)
            return True

        is_open = distributed.on_main(enter)
        if not is_open and distributed.is_main():
            print(f"{folder} is complete: look at its {last}, or start with --overwrite")
        yield is_open


def begin(
    settings: Any, identity: Callable[[], Mapping[str, Any]], free: Sequence[str] = ()
) -> dict[str, Any]:
    """Start the run in an opened folder, or check that it is the run that was started there.

    To be called by all processes when everything else is checked, before the first file is
    written. With `settings.overwrite`, the run that is there is moved aside.

    Args:
        settings: as `open_run` takes them.
        identity: returns what besides the settings makes the run the same, such as the fingerprint
            of its data; ready for JSON. Called in the main process only. The number of processes,
            the global batch, sharding and precision are added.
        free: as `open_run` takes it.

    Returns:
        The identity.

    Raises:
        UserError: a value differs from that of the run that is to be resumed.
    """

    def start() -> dict[str, Any]:
        folder = Path(settings.output_dir).resolve()
        now = {**identity(), **_launch(settings)}
        if settings.overwrite and _record(folder) is not None:
            os.rename(folder, _aside(folder))
        start_in(folder, settings, now, (*FREE, *free))
        return now

    return distributed.on_main(start)


def start_in(
    folder: Path, settings: Any, identity: Mapping[str, Any], free: Sequence[str] = ()
) -> None:
    """Write settings.json and run.json into a folder, or compare them with those there.

    What an attempt that never trained has left is removed if it was made with other settings or on
    other data. Raises UserError that names the first difference.
    """
    record = _record(folder)
    identity = json.loads(json.dumps(identity))
    if record is not None:
        try:
            config.compare(settings, folder, free)
            _compare(folder, record["identity"], identity)
        except UserError:
            if has_trained(folder):
                raise
            _clear(folder, record)
            record = None
    if record is None:
        others = sorted(os.listdir(folder)) if folder.exists() else []
        config.save(settings, folder)
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
    """Note that the run in a folder has made its first step; from here on it is not discarded
    without --overwrite, and the run that it replaces is deleted."""
    record = _record(folder)
    if record is not None and not record["trained"]:
        _write_record(folder, {**record, "trained": True})
    if _aside(folder).exists():
        shutil.rmtree(_aside(folder))


def has_trained(folder: Path) -> bool:
    """Whether a run, or one of the runs of an ablation or a loop, has made its first step."""
    own = _record(folder)
    if own is None:
        return False
    nested = [path for depth in ("*", "*/*") for path in folder.glob(f"{depth}/{RECORD}")]
    parts = [path for path in nested if path.relative_to(folder).parts[0] not in own["others"]]
    records = [own, *(_record(path.parent) for path in parts)]
    return any(record is not None and record["trained"] for record in records)


def discard(folder: Path) -> None:
    """Delete the folder of a run, if it exists. Raises UserError if it holds other files."""
    if folder.exists():
        _check_deletable(folder)
        shutil.rmtree(folder)


# --- what is in a folder --------------------------------------------------------------------------


def is_started(folder: Path) -> bool:
    """Whether a run, or a build, was started in the folder."""
    return _record(folder) is not None


def _record(folder: Path) -> dict[str, Any] | None:
    """The content of run.json; None if there is none that a run has written."""
    try:
        content = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    is_ours = isinstance(content, dict) and content.get("format") == _FORMAT
    return content if is_ours and {"trained", "identity", "others"} <= set(content) else None


def _write_record(folder: Path, record: Mapping[str, Any]) -> None:
    atomic_write(folder / RECORD, json.dumps(record, indent=2) + "\n")


def _aside(folder: Path) -> Path:
    """Where a run is while another one replaces it."""
    target = folder.resolve()
    return target.with_name(f".{target.name}.replaced")


def _is_complete(folder: Path, last: str | None) -> bool:
    return last is not None and is_started(folder) and (folder / last).exists()


def _settle(folder: Path, last: str | None) -> None:
    """End a replacement that was under way: delete the old run if the new one has trained, else
    put it back. Raises UserError if something else has taken its place."""
    aside = _aside(folder)
    if not aside.exists():
        return
    if has_trained(folder) or _is_complete(folder, last):
        shutil.rmtree(aside)
        return
    try:
        discard(folder.resolve())
    except UserError as error:
        raise UserError(f"{error}; the run that was here before is in {aside}") from error
    os.rename(aside, folder.resolve())
    print(f"the earlier run is back in {folder}")


def _check_folder(folder: Path, settings: Any, free: Sequence[str]) -> None:
    """Refuse a folder that the recipe may not work in. Raises UserError."""
    record = _record(folder)
    if settings.overwrite:
        _check_deletable(folder)
    elif record is None:
        if clash := [name for name in _OUTPUTS if (folder / name).exists()]:
            raise UserError(
                f"{folder} holds {', '.join(clash)}, but was not started by this version of "
                "vlmface: use another --output_dir"
            )
    elif has_trained(folder):
        config.compare(settings, folder, (*FREE, *free))


def _check_deletable(folder: Path) -> None:
    """Raise UserError if a folder holds anything that was not written there as part of a run."""
    if not folder.exists() or not any(folder.iterdir()):
        return
    record = _record(folder)
    if record is None:
        raise UserError(
            f"{folder} holds other files than a run (no {RECORD} of one): it will not be deleted, "
            "use another --output_dir"
        )
    if others := [name for name in record["others"] if (folder / name).exists()]:
        raise UserError(
            f"{folder} holds files that were there before the run ({', '.join(others[:5])}): it "
            "will not be deleted, move them or use another --output_dir"
        )


def _clear(folder: Path, record: Mapping[str, Any]) -> None:
    """Remove what a run has written, its run.json last."""
    own = set(os.listdir(folder)) - set(record["others"])
    for name in sorted(own, key=lambda name: name == RECORD):
        path = folder / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


# --- whether it is the same run -------------------------------------------------------------------


def _launch(settings: Any) -> dict[str, Any]:
    """What the launch decides: processes, rows in a step, sharding of the model, precision."""
    import torch

    world = int(os.environ.get("WORLD_SIZE", "1"))
    rows = world * getattr(settings, "batch_size", 1)
    rows *= getattr(settings, "gradient_accumulation", 1) * getattr(settings, "group_size", 1)
    stage = os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "")
    kind = distributed.sharding()
    return {
        "processes": world,
        "global_batch": rows,
        "sharding": f"{kind} stage {stage}" if kind == "DeepSpeed" else kind,
        "precision": "bfloat16" if torch.cuda.is_available() else "float32",
    }


def _compare(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
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
    """Mark a checkpoint as written to its end: note its files with their sizes, and over which
    weights it was trained."""
    files = {
        path.relative_to(folder).as_posix(): path.stat().st_size
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path != folder / COMPLETE
    }
    content = {"trainable_sha": trainable_sha, "files": files}
    atomic_write(folder / COMPLETE, json.dumps(content, indent=2) + "\n")


def checkpoint_to_resume(folder: Path, trainable_sha: str) -> Path | None:
    """The last checkpoint of a run that was written to its end; those after it are deleted.

    All processes must call it. Raises UserError if it is damaged, or if other weights were trained
    when it was written: another version of peft, say, may name or choose them differently.
    """

    def choose() -> Path | None:
        checkpoint = last_checkpoint(folder)
        if checkpoint is not None:
            before = _note(checkpoint)["trainable_sha"]
            if before != trainable_sha:
                raise UserError(
                    f"{checkpoint} was written while other weights were trained (trainable_sha "
                    f"{before}, now {trainable_sha}): resume with the versions of peft, "
                    "transformers and vlmface that started the run, or start again with --overwrite"
                )
        for unfinished in _checkpoints(folder):
            if not (unfinished / COMPLETE).exists():
                shutil.rmtree(unfinished)
        return checkpoint

    return distributed.on_main(choose)


def _is_checkpoint(name: str) -> bool:
    """Whether a folder of this name is a checkpoint: not a copy that somebody has put aside."""
    return re.fullmatch(r"checkpoint-\d+", name) is not None


def step_of(checkpoint: Path) -> int:
    """After which optimizer step a checkpoint was written."""
    return int(checkpoint.name.rpartition("-")[2])


def _checkpoints(folder: Path) -> list[Path]:
    """All checkpoints of a run, by step."""
    found = (folder / "checkpoints").glob("checkpoint-*")
    return sorted((path for path in found if _is_checkpoint(path.name)), key=step_of)


def last_checkpoint(folder: Path) -> Path | None:
    """The last complete checkpoint, None if there is none. Raises UserError if a file of it is
    missing or has another size than when it was written."""
    complete = [one for one in _checkpoints(folder) if (one / COMPLETE).exists()]
    if not complete:
        return None
    checkpoint = complete[-1]
    remedy = (
        f"restore it, delete {checkpoint} to resume from the checkpoint before it, or start again "
        "with --overwrite"
    )
    try:
        note = _note(checkpoint)
    except (OSError, ValueError) as error:
        raise UserError(f"{checkpoint / COMPLETE} is damaged ({error}): {remedy}") from error
    for name, size in note["files"].items():
        path = checkpoint / name
        now = path.stat().st_size if path.is_file() else None
        if now != size:
            state = "is missing" if now is None else f"has {now} bytes of {size}"
            raise UserError(f"{path} {state}: {remedy}")
    return checkpoint


def _note(checkpoint: Path) -> dict[str, Any]:
    """What `complete_checkpoint` has written. Raises OSError and ValueError."""
    note = json.loads((checkpoint / COMPLETE).read_text(encoding="utf-8"))
    if not isinstance(note, dict) or not isinstance(note.get("files"), dict):
        raise ValueError("it lists no files")
    if not isinstance(note.get("trainable_sha"), str):
        raise ValueError("it has no trainable_sha")
    return note


def read_log(run_dir: Path) -> list[dict[str, Any]]:
    """The lines of log.jsonl. A last line cut off by a kill is left out."""
    path = run_dir / "log.jsonl"
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(text))
        except ValueError:
            break
    return lines


def truncate_log(run_dir: Path, last_step: int) -> float:
    """Drop the log's lines after `last_step`, which will be written again; returns the seconds of
    training up to there."""
    lines = [line for line in read_log(run_dir) if line["step"] <= last_step]
    atomic_write(run_dir / "log.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    return float(lines[-1]["elapsed_s"]) if lines else 0.0
