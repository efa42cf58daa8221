"""`vlmface merge`: fold a run's LoRA adapter into its base, as one complete checkpoint.

The checkpoint gets its name only after the stored weights have been read back and their outputs for
images agree with those of base plus adapter. Nothing leaves the machine unless `push` is called.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmface import adapter, encode, families, manifest
from vlmface.errors import UserError
from vlmface.evidence import NOT_MEASURED
from vlmface.families.base import Family
from vlmface.tools import model_card
from vlmface.utils import lock, rounding
from vlmface.utils.files import atomic_write
from vlmface.utils.terminal import printable

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from vlmface.manifest import Manifest
    from vlmface.prompts import Prompt

DTYPES = ("float32", "bfloat16", "float16")
_FACES, _NOISE = 3, 2


@dataclasses.dataclass(frozen=True)
class MergeOptions:
    """How a run is merged.

    Attributes:
        dtype: Of the stored weights, one of DTYPES.
        license: The licence id of the model card; by default what base and data allow.
        repo: The hub id in the card's examples.
    """

    dtype: str = "float32"
    license: str | None = None
    repo: str | None = None


def merge(
    run: str | Path,
    out: str | Path,
    *,
    dtype: str = "float32",
    license: str | None = None,
    repo: str | None = None,
) -> dict[str, Any]:
    """Write the merged checkpoint of a LoRA run.

    The checkpoint has the weights, configuration, processor, prompts, vlmface.json (its `adapter`
    is false) and a model card.

    Args:
        run: The folder of the run.
        out: A new folder.
        dtype: See `MergeOptions`.
        license: See `MergeOptions`.
        repo: See `MergeOptions`.

    Returns:
        {"merged", "base": how far its log-probabilities are from those of base plus adapter, and
        from the base, root mean square in nats; "rounding": how much another order of summation
        changes them, "allowed": the tolerance for "merged" as a multiple of that; "rounded": how
        much storing in `dtype` changed them; "faces", "noise": numbers of compared images}.

    Raises:
        UserError: `out` exists or is being written, the run has no adapter, its base is missing,
            changed or quantised, or the log-probabilities do not agree. Nothing is written then.
    """
    with lock.hold(out):
        return _merge(Path(run), Path(out), MergeOptions(dtype, license, repo))


def _merge(run: Path, out: Path, options: MergeOptions) -> dict[str, Any]:
    """`merge` into a locked folder."""
    import torch

    if options.dtype not in DTYPES:
        raise UserError(f"dtype {options.dtype!r}: use one of {', '.join(DTYPES)}")
    if out.exists():
        raise UserError(f"{out} exists: give the name of a new folder")
    run_manifest, prompts = manifest.load(run)
    if not run_manifest.adapter:
        raise UserError(f"{run} has no adapter: its weights are a complete checkpoint already")
    manifest.check_weights(run_manifest, run)
    scores = model_card.read_scores(run)
    base = _unquantized_base(run_manifest, run)

    family = families.of_run(run_manifest.family, base)
    processor = families.load_processor(family, run)
    model = families.load_model(family, base, dtype=torch.float32)
    inputs = _conversations(processor, family, prompts)
    base_logits = _logits(model, inputs)
    rounding.check_finite(base_logits, f"the base {run_manifest.base_model['id']}")
    model, merged, level, check = _fold_adapter(_with_adapter(model, run), run, inputs, base_logits)
    check["dtype"] = options.dtype
    with _temporary_folder(out) as folder:
        stored = _store(model, (family, processor), folder, options.dtype, inputs)
        del model
        gc.collect()
        reloaded = _logits(families.load_model(family, folder, dtype=torch.float32), inputs)
        _check_equal(reloaded, stored, level, "the checkpoint read back and the merged model")
        check["rounded"] = rounding.difference(reloaded, merged).rms
        _add_run_files(folder, run, run_manifest, prompts)
        subject = model_card.Subject(manifest.load(folder)[0], prompts, base, scores)
        card = model_card.render(
            subject,
            repo=options.repo or out.name,
            license=options.license,
            values={
                "check": check,
                "hashes": _hashes(folder),
                "adapter_sha": run_manifest.weights[adapter.WEIGHTS],
                "quantization": run_manifest.quantization,
            },
        )
        atomic_write(folder / "README.md", card)
    return check


def _fold_adapter(
    model: Any, run: Path, inputs: Sequence[Any], base_logits: Sequence[torch.Tensor]
) -> tuple[Any, list[torch.Tensor], rounding.Difference, dict[str, Any]]:
    """(the model with its adapter folded in, its logits, what rounding may change, the check for
    the model card). Raises UserError if the adapter has no effect, or the merge changes more than
    rounding."""
    import torch

    adapted = _logits(model, inputs)
    rounding.check_finite(adapted, f"{run} on its base")
    with rounding.reordered(model):
        level = rounding.level(adapted, _logits(model, inputs), torch.float32)
    effect = rounding.difference(adapted, base_logits)
    _check_effect(effect, level, run)
    model = model.merge_and_unload()
    merged = _logits(model, inputs)
    apart = _check_equal(merged, adapted, level, f"the merged model and {run} on its base")
    check: dict[str, Any] = {
        "merged": apart.rms,
        "base": effect.rms,
        "rounding": level.rms,
        "allowed": rounding.ALLOWED,
        "faces": _FACES,
        "noise": _NOISE,
    }
    return model, merged, level, check


def _check_effect(effect: rounding.Difference, level: rounding.Difference, run: Path) -> None:
    """Raise UserError if an adapter has no effect beyond rounding."""
    if effect.within(level):
        raise UserError(
            f"the adapter of {run} changes the log-probabilities of its base by {effect}, which is "
            f"rounding ({level}): it was not trained, or it is for another base"
        )


def _unquantized_base(run_manifest: Manifest, run: Path) -> Path:
    base = manifest.resolve_base(run_manifest, run)
    if config := json.loads((base / "config.json").read_text()).get("quantization_config"):
        raise UserError(
            f"the base {run_manifest.base_model['id']} is stored quantised "
            f"({config.get('quant_method')}), and a sum with its rounded weights would not be the "
            "trained model: train on the original"
        )
    return base


@contextlib.contextmanager
def _temporary_folder(out: Path) -> Iterator[Path]:
    """A folder that is renamed to `out` at the end, and deleted after an error."""
    folder = out.with_name(f".{out.name}.merging")
    if folder.exists():  # of a merge that was killed, since this process holds the lock
        shutil.rmtree(folder)
    folder.mkdir()
    try:
        yield folder
        folder.rename(out)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _store(
    model: Any,
    saver: tuple[Family, Any],
    folder: Path,
    dtype: str,
    inputs: Sequence[Mapping[str, torch.Tensor]],
) -> list[torch.Tensor]:
    """Store the weights in `dtype`, with the family and processor `saver`; returns the logits of
    the rounded weights."""
    import torch

    family, processor = saver
    _round(model, getattr(torch, dtype))
    family.save_checkpoint(model, processor, folder)
    _round(model, torch.float32)
    return _logits(model, inputs)


def _hashes(folder: Path) -> dict[str, str]:
    """{file: SHA-256}."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): _sha256(path) for path in files}


def _round(model: Any, dtype: torch.dtype) -> None:
    """Convert the weights to `dtype`. Buffers, such as the frequencies of rotary positions, are not
    stored but recomputed when the weights are loaded, and stay exact."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)


def _with_adapter(model: Any, run: Path) -> Any:
    """The model with the run's adapter. Raises UserError for missing or unexpected tensors, of
    which peft only warns."""
    from peft import get_peft_model_state_dict
    from safetensors import safe_open

    model = adapter.attach(model, run)
    with safe_open(run / adapter.WEIGHTS, "pt") as file:
        stored = set(file.keys())
    expected = set(get_peft_model_state_dict(model, save_embedding_layers=False))
    if mismatched := sorted(stored ^ expected):
        raise UserError(
            f"the adapter in {run} does not fit its base: {len(mismatched)} of "
            f"{len(stored | expected)} tensors are in one of them only, such as {mismatched[0]}: "
            "restore the run's files"
        )
    return model


def _add_run_files(
    folder: Path, run: Path, run_manifest: Manifest, prompts: Sequence[Prompt]
) -> None:
    """Add the run's processor, prompts and manifest. Paths of this machine are reduced to their
    last part."""
    for name in run_manifest.processor:  # checked by `manifest.load`: plain names of plain files
        shutil.copyfile(run / name, folder / name)
    manifest.save_prompts(prompts, folder)
    dataclasses.replace(
        run_manifest,
        adapter=False,
        quantization=None,  # applied to training only
        base_model={**run_manifest.base_model, "id": _public(run_manifest.base_model["id"])},
        dataset=_public(run_manifest.dataset),
        processor=manifest.processor_shas(folder),
        weights=manifest.weights_shas(folder),
    ).save(folder)


def _public(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _public(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_public(item) for item in value]
    if isinstance(value, str) and value:
        path = Path(value).expanduser()
        if path.is_absolute() or ("/" in value and path.exists()):
            return path.name
    return value


# --- the comparison -------------------------------------------------------------------------------


def _conversations(
    processor: Any, family: Family, prompts: Sequence[Prompt]
) -> list[dict[str, torch.Tensor]]:
    """Images, each with one of the prompts and an answer in its format."""
    conversations = []
    for i, image in enumerate([*_faces(_FACES), *_noise(_NOISE)]):
        prompt = prompts[i % len(prompts)]
        labels = prompt.space.labels
        answer = prompt.completion(
            "The brows are lowered. The lips are apart.", labels[i % len(labels)]
        )
        row = encode.encode(processor, family, prompt.messages(NOT_MEASURED), image, answer)
        batch = encode.Collator(processor, family)([row])
        conversations.append({name: value for name, value in batch.items() if name != "labels"})
    return conversations


def _faces(n: int) -> list[Image.Image]:
    """Rendered faces of people who are not in a training set."""
    from PIL import Image

    from vlmface.synth.dataset import draw
    from vlmface.synth.render import render

    return [Image.fromarray(render(draw(0, "test", i * 100).face, 224).image) for i in range(n)]


def _noise(n: int) -> list[Image.Image]:
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (224, 224, 3), dtype=np.uint8)) for _ in range(n)]


def _logits(model: Any, inputs: Sequence[Mapping[str, torch.Tensor]]) -> list[torch.Tensor]:
    """(tokens, vocabulary) of each conversation."""
    import torch

    with torch.inference_mode():
        return [model(**encode.to_model(batch, model)).logits[0].float() for batch in inputs]


def _check_equal(
    logits: Sequence[torch.Tensor],
    expected: Sequence[torch.Tensor],
    level: rounding.Difference,
    description: str,
) -> rounding.Difference:
    """The difference of two lists of logits. Raises UserError if rounding does not explain it."""
    apart = rounding.difference(logits, expected)
    if not apart.within(level):
        raise UserError(
            f"{description} do not give the same log-probabilities: {apart} apart, where another "
            f"order of summation changes {level} and {rounding.ALLOWED:g} times that is allowed "
            f"({rounding.ALLOWED_LARGEST:g} times the largest). Nothing was written; report it "
            "with the run's adapter_config.json"
        )
    return apart


# --- the model card -------------------------------------------------------------------------------


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- upload ---------------------------------------------------------------------------------------


def check_repo(repo: str) -> None:
    """Check the id of a model repository.

    Args:
        repo: "owner/name".

    Raises:
        UserError: It is not a valid id.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
        if repo.count("/") != 1:
            raise HFValidationError("the owner is missing")
    except HFValidationError as error:
        raise UserError(
            f"{repo!r} is not the name of a model on the hub ({error}): write owner/name"
        ) from error


def push(folder: str | Path, repo: str) -> None:
    """Upload a merged checkpoint to the hub. Prints what is sent before it sends anything.

    Args:
        folder: The checkpoint.
        repo: The model repository, which is created as private if it does not exist.

    Raises:
        UserError: The upload fails.
    """
    from huggingface_hub import HfApi

    check_repo(repo)
    api = HfApi()
    files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    size = sum(path.stat().st_size for path in files)
    print(f"sending {len(files)} files, {size / 1e6:,.1f} MB, to {api.endpoint}/{repo}")
    print("(a new repository is created as private; an existing one keeps its visibility):")
    for path in files:
        print(f"  {printable(path.relative_to(folder))}  {path.stat().st_size:,} bytes", flush=True)
    try:
        api.create_repo(repo, private=True, exist_ok=True)
        api.upload_folder(
            repo_id=repo, folder_path=folder, commit_message="Merged checkpoint of vlmface"
        )
    except Exception as error:  # the hub's client raises many unrelated kinds
        raise UserError(
            f"{folder} is complete, but could not be sent to {repo}: {type(error).__name__}: "
            f"{error}. Repeat with `hf upload {repo} {folder}`"
        ) from error


# --- the command ----------------------------------------------------------------------------------


def merge_command(run: Path, out: Path, dtype: str, license: str | None, repo: str | None) -> int:
    """`vlmface merge`: merge, print the check, and upload if `repo` is given.

    Args:
        run: The folder of the run.
        out: A new folder.
        dtype: See `MergeOptions`.
        license: See `MergeOptions`.
        repo: The model repository to upload to.

    Returns:
        The exit code.

    Raises:
        UserError: As `merge` and `push`.
    """
    from transformers.utils import logging

    logging.disable_progress_bar()
    if manifest.family_of(run) == manifest.CLIP:
        return _merge_clip(run, out, dtype, license, repo)
    if repo is not None:
        check_repo(repo)
    check = merge(run, out, dtype=dtype, license=license, repo=repo)
    print(
        f"{out}: log-probabilities differ from base and adapter by {check['merged']:.1e} nats; "
        f"another order of summation changes {check['rounding']:.1e}, on {check['faces']} faces "
        f"and {check['noise']} noise images (the base differs by {check['base']:.1e}; root mean "
        "squares)"
    )
    if dtype != "float32":
        print(f"stored as {dtype}: rounding changed them by {check['rounded']:.1e} nats")
    print(f"next: vlmface predict FACE.jpg --model {out}, or read {out / 'README.md'}")
    if repo is not None:
        push(out, repo)
    return 0


def _merge_clip(run: Path, out: Path, dtype: str, license: str | None, repo: str | None) -> int:
    """Export the towers of a CLIP run as a folder of open_clip."""
    from vlmface.pipelines.clip import export

    if dtype != "float32" or license is not None or repo is not None:
        raise UserError(f"{run} is a CLIP: leave out --dtype, --license and --push")
    export(run, out)
    print(f"{out}: load it with open_clip as local-dir:{out}")
    return 0
