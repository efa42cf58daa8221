"""`vlmface merge`: a run's LoRA adapter folded into its base, as one complete checkpoint.

The checkpoint appears under its name only after the weights that were written have been read back
and answered real images as base plus adapter do. Nothing leaves the machine unless `push` is asked.
"""

from __future__ import annotations

import dataclasses
import gc
import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmface import adapter, encode, families, manifest
from vlmface.errors import UserError
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


def merge(run: str | Path, out: str | Path, *, dtype: str = "float32", license: str | None = None,
          repo: str | None = None) -> dict[str, Any]:  # fmt: skip
    """Write the merged checkpoint of a LoRA run into the new folder `out`.

    `out` holds the weights in `dtype`, configuration, processor, prompts, vlmface.json (its
    `adapter` is false) and a model card. `license` is the card's licence id, by default what base
    and data allow; `repo` the hub id that the card's examples name. Returns {"merged", "base":
    how far its log-probabilities are from those of base plus adapter, and from the base, root mean
    square in nats; "rounding": what another order of summation changes of them, "allowed" times
    which "merged" may be; "rounded": what storing in `dtype` changed; "faces", "noise": pictures
    compared}. Raises UserError, and leaves nothing behind, if `out` exists or another merge writes
    it, the run has no adapter, its base is gone, changed or quantised, or the log-probabilities are
    not as they should be.
    """
    with lock.hold(out):
        return _merge(Path(run), Path(out), dtype, license, repo)


def _merge(
    run: Path, out: Path, dtype: str, license: str | None, repo: str | None
) -> dict[str, Any]:
    """`merge` into a folder that no other process merges into."""
    import torch

    if dtype not in DTYPES:
        raise UserError(f"dtype {dtype!r}: use one of {', '.join(DTYPES)}")
    if out.exists():
        raise UserError(f"{out} exists: give the name of a new folder")
    found, asked = manifest.load(run)
    if not found.adapter:
        raise UserError(f"{run} has no adapter: its weights are a complete checkpoint already")
    manifest.check_weights(found, run)
    scores = model_card.read_scores(run)
    base = manifest.resolve_base(found, run)
    if how := json.loads((base / "config.json").read_text()).get("quantization_config"):
        raise UserError(
            f"the base {found.base['id']} is stored quantised ({how.get('quant_method')}), and a "
            "sum with its rounded weights would not be the trained model: train on the original"
        )

    family = families.of_run(found.family, base)
    processor = families.load_processor(family, run)
    model = families.load_model(family, base, dtype=torch.float32)
    inputs = _conversations(processor, family, asked)
    plain = _logits(model, inputs)
    model = _with_adapter(model, run)
    adapted = _logits(model, inputs)
    for what, logits in ((f"the base {found.base['id']}", plain), (f"{run} on its base", adapted)):
        rounding.check_finite(logits, what)
    with rounding.reordered(model):
        level = rounding.level(adapted, _logits(model, inputs), torch.float32)
    effect = rounding.difference(adapted, plain)
    if effect.within(level):
        raise UserError(
            f"the adapter of {run} changes the log-probabilities of its base by {effect}, which is "
            f"rounding ({level}): it was not trained, or it is for another base"
        )
    model = model.merge_and_unload()
    merged = _logits(model, inputs)
    apart = _same(merged, adapted, level, f"the merged model and {run} on its base")
    check: dict[str, Any] = {
        "merged": apart.rms, "base": effect.rms, "rounding": level.rms,
        "allowed": rounding.ALLOWED, "faces": _FACES, "noise": _NOISE, "dtype": dtype,
    }  # fmt: skip

    temporary = out.with_name(f".{out.name}.merging")
    if temporary.exists():  # of a merge that was killed, since this one holds the lock
        shutil.rmtree(temporary)
    temporary.mkdir()
    try:
        _round(model, getattr(torch, dtype))
        family.save_checkpoint(model, processor, temporary)
        _round(model, torch.float32)
        expected = _logits(model, inputs)
        del model
        gc.collect()
        stored = _logits(families.load_model(family, temporary, dtype=torch.float32), inputs)
        _same(stored, expected, level, "the checkpoint read back and the merged model")
        check["rounded"] = rounding.difference(stored, merged).rms
        _complete(temporary, run, found, asked)
        files = sorted(path for path in temporary.rglob("*") if path.is_file())
        hashes = {path.relative_to(temporary).as_posix(): _sha256(path) for path in files}
        card = model_card.render(manifest.load(temporary)[0], found.quantize, asked, base, scores,
                     repo or out.name, license, check, hashes,
                     found.weights[adapter.WEIGHTS])  # fmt: skip
        atomic_write(temporary / "README.md", card)
        temporary.rename(out)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return check


def _round(model: Any, dtype: torch.dtype) -> None:
    """The weights in `dtype`. Buffers, such as the frequencies of rotary positions, are not stored
    but computed again when the weights are loaded, and stay exact."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)


def _with_adapter(model: Any, run: Path) -> Any:
    """The model with the run's adapter. peft only warns of tensors that it does not find or cannot
    place, and answers without them. Raises UserError."""
    from peft import get_peft_model_state_dict
    from safetensors import safe_open

    model = adapter.attach(model, run)
    with safe_open(run / adapter.WEIGHTS, "pt") as file:
        written = set(file.keys())
    placed = set(get_peft_model_state_dict(model, save_embedding_layers=False))
    if odd := sorted(written ^ placed):
        raise UserError(
            f"the adapter in {run} does not fit its base: {len(odd)} of {len(written | placed)} "
            f"tensors are in one of them only, such as {odd[0]}: restore the run's files"
        )
    return model


def _complete(folder: Path, run: Path, found: Manifest, asked: Sequence[Prompt]) -> None:
    """Add what the run knows: its processor to the letter, its prompts, its manifest. Names of
    folders on this machine are cut down to their last part."""
    for name in found.processor:  # checked by `manifest.load`: plain names of plain files
        shutil.copyfile(run / name, folder / name)
    manifest.save_prompts(asked, folder)
    dataclasses.replace(
        found,
        adapter=False,
        quantize=None,  # that was the training's
        base={**found.base, "id": _public(found.base["id"])},
        data=_public(found.data),
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
    """Pictures, the prompts asked about them in turn, and answers in their forms."""
    made = []
    for i, image in enumerate([*_faces(_FACES), *_noise(_NOISE)]):
        prompt = prompts[i % len(prompts)]
        labels = prompt.space.labels
        answer = prompt.wrap("The brows are lowered. The lips are apart.", labels[i % len(labels)])
        row = encode.encode(processor, family, prompt.messages(), image, answer)
        batch = encode.Collator(processor, family)([row])
        made.append({name: value for name, value in batch.items() if name != "labels"})
    return made


def _faces(n: int) -> list[Image.Image]:
    """Rendered faces of people who are in no training set."""
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


def _same(
    found: Sequence[torch.Tensor],
    expected: Sequence[torch.Tensor],
    level: rounding.Difference,
    what: str,
) -> rounding.Difference:
    """The difference of two lists of logits. Raises UserError if rounding does not explain it."""
    apart = rounding.difference(found, expected)
    if not apart.within(level):
        raise UserError(
            f"{what} do not give the same log-probabilities: {apart} apart, where another order of "
            f"summation changes {level} and {rounding.ALLOWED:g} times that is allowed "
            f"({rounding.ALLOWED_LARGEST:g} times the largest). Nothing was written; report it "
            "with the run's adapter_config.json"
        )
    return apart


# --- the model card -------------------------------------------------------------------------------


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- sending --------------------------------------------------------------------------------------


def check_repo(repo: str) -> None:
    """Raise UserError unless `repo` can be the hub's name of a model ("owner/name")."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
        if repo.count("/") != 1:
            raise HFValidationError("there is no owner")
    except HFValidationError as error:
        raise UserError(
            f"{repo!r} names no model of the hub ({error}): write owner/name"
        ) from error


def push(folder: str | Path, repo: str) -> None:
    """Upload a merged checkpoint to the model repository `repo` of the hub, which is made private
    if it does not exist. Prints what goes where before it sends anything. Raises UserError."""
    from huggingface_hub import HfApi

    check_repo(repo)
    api = HfApi()
    files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    size = sum(path.stat().st_size for path in files)
    print(f"sending {len(files)} files, {size / 1e6:,.1f} MB, to {api.endpoint}/{repo}")
    print("(a new repository is made private; an existing one stays as visible as it is):")
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
    """`vlmface merge`: returns the exit code."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    if manifest.family_of(run) == manifest.CLIP:
        return _merge_clip(run, out, dtype, license, repo)
    if repo is not None:
        check_repo(repo)
    check = merge(run, out, dtype=dtype, license=license, repo=repo)
    print(f"{out}: log-probabilities as of base and adapter, {check['merged']:.1e} nats apart "
          f"where another order of summation changes {check['rounding']:.1e}, on {check['faces']} "
          f"faces and {check['noise']} noise pictures (the base itself is {check['base']:.1e} "
          "away; root mean squares)")  # fmt: skip
    if dtype != "float32":
        print(f"stored as {dtype}: rounding moved them by {check['rounded']:.1e} nats")
    print(f"next: vlmface predict FACE.jpg --model {out}, or read {out / 'README.md'}")
    if repo is not None:
        push(out, repo)
    return 0


def _merge_clip(run: Path, out: Path, dtype: str, license: str | None, repo: str | None) -> int:
    """The towers of a CLIP's run as a folder of open_clip, which knows neither of our card's
    fields."""
    from vlmface.pipelines.clip import export

    if dtype != "float32" or license is not None or repo is not None:
        raise UserError(f"{run} is a CLIP: leave out --dtype, --license and --push")
    export(run, out)
    print(f"{out}: open_clip opens it as local-dir:{out}")
    return 0
