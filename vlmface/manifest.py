"""vlmface.json: what a trained model was made of, beside its weights. Evaluation and serving read
this file and nothing else; whatever no longer agrees with it is an error that names both values.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from vlmface import __version__, prompts, taxonomy
from vlmface.errors import UserError
from vlmface.files import atomic_write, resource

NAME = "vlmface.json"
PROMPTS = "prompts"  # folder of a run
SCHEMA = 1
TINY = "vlmface-tiny"
CLIP = "clip"  # the `family` of a CLIP, which is none of vlmface.families
_PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json", "chat_template.jinja")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
_BLOCK = 32 * 2**20
_LATER = {"frames", "clip"}  # not in the manifests of earlier versions


@dataclass(frozen=True)
class Manifest:
    """The content of vlmface.json.

    `base` {"id", "sha"}: what the weights start from; `adapter`: whether the run folder holds a
    LoRA adapter for it or whole weights. `policy`: frozen | lora | full for tower, projector, llm.
    `prompts`: what the model was trained to answer, `describe` of each. `au_set`: AUs the training
    data annotates. `image`: sizes in pixels and tokens (the family's `describe_image`); `processor`
    {file name: sha} of preprocessing and chat template; `crop`: the view of a picture that is shown
    (`data.crops.Crop`), null for the picture whole, a list for several views; `frames`: how many of
    a clip, of each view; `quantize`: what the base's language model was quantised to while the
    adapter was trained, null if it was not (whoever loads the model takes the base unquantised);
    `clip`: of a CLIP, how its classifier is built (`clip.classifier.Shape`); `generation`
    {"max_new_tokens"}, always greedy. `data`
    {"name", "split", "n", "options", "fingerprint"}. `limits`: what the model is not fit for, for
    whoever reads its answers. `created`: time of training, UTC.
    """

    recipe: str
    family: str
    base: dict[str, str]
    adapter: bool
    policy: dict[str, str]
    prompts: list[dict[str, str]]
    au_set: list[int]
    image: dict[str, int]
    processor: dict[str, str]
    max_length: int
    generation: dict[str, int]
    data: dict[str, Any]
    seed: int
    limits: str
    crop: dict[str, Any] | list[dict[str, Any]] | None = None
    frames: int = 1
    quantize: str | None = None
    clip: dict[str, Any] | None = None
    created: str = field(default_factory=lambda: f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC")
    schema: int = SCHEMA
    vlmface: str = __version__

    def save(self, run_dir: str | Path) -> None:
        """Write vlmface.json atomically; after the files that it vouches for."""
        content = json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False)
        atomic_write(Path(run_dir) / NAME, content + "\n")


def neutral_limits(data: str) -> str:
    """The `limits` of a run whose settings describe none for its data."""
    return (
        f"Trained on {Path(data).name}. The limits of this model have not been described: do not "
        "use it for decisions about people. An expression is not proof of what someone feels."
    )


def load(run_dir: str | Path) -> tuple[Manifest, list[prompts.Prompt]]:
    """Read the manifest of a run and the prompts copied beside it, after checking that prompts,
    label spaces and processor are still those the model was trained with.

    Raises UserError for a missing or foreign file, and for each disagreement naming both values.
    """
    run_dir = Path(run_dir)
    path = run_dir / NAME
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{run_dir} has no {NAME}: it is no finished vlmface run. Give a run's --output_dir, "
            "or finish the run by starting it again with the same command"
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        found = content.get("schema") if isinstance(content, dict) else type(content).__name__
        raise UserError(
            f"{path} has schema {found!r}, but this vlmface {__version__} reads schema {SCHEMA}: "
            "use the vlmface that wrote it, or train again"
        )
    names = {f.name for f in dataclasses.fields(Manifest)}
    if odd := (names ^ set(content)) - (_LATER - set(content)):
        raise UserError(f"{path}: {', '.join(sorted(odd))} is missing or unknown; restore the file")
    manifest = Manifest(**content)

    asked = [_prompt(manifest, run_dir, entry["id"]) for entry in manifest.prompts]
    for prompt, entry in zip(asked, manifest.prompts, strict=True):
        space = taxonomy.space(entry["label_space"])
        name = f"label space {space.id} of this vlmface"
        _same(run_dir, name, space.sha, entry["label_space_sha"])
        _same(run_dir, f"prompt {prompt.id} in {PROMPTS}/", prompt.sha, entry["sha"])
    found = processor_shas(run_dir)
    for name in {**manifest.processor, **found}:
        _same(run_dir, name, found.get(name, "missing"), manifest.processor.get(name, "missing"))
    return manifest, asked


def _prompt(manifest: Manifest, run_dir: Path, id: str) -> Any:
    """A prompt of a run, or the texts of a CLIP's labels, which know the same of themselves."""
    path = run_dir / PROMPTS / f"{id}.yaml"
    if manifest.clip is None:
        return prompts.load(path)
    from vlmface.clip import texts

    return texts.load(path)


def among(
    asked: Sequence[prompts.Question], wanted: str | Path | prompts.Question, run: str | Path
) -> Any:
    """The prompt of a run that `wanted` is, or names. Raises UserError."""
    for prompt in asked:
        if wanted == prompt.id:
            return prompt
    other = prompts.load(wanted) if isinstance(wanted, str | Path) else wanted
    for prompt in asked:
        if prompt.sha == other.sha:
            return prompt
    trained = ", ".join(f"{prompt.id} {prompt.sha}" for prompt in asked)
    raise UserError(
        f"{run} was trained with prompt {trained}, not with {other.id} {other.sha}: leave the "
        "other prompt out, or load the base model with it"
    )


def made(run_or_model: str | Path) -> str | None:
    """When a run was trained, None for a base: answers that are kept are of that model alone."""
    return load(run_or_model)[0].created if is_run(run_or_model) else None


def family_of(run_dir: str | Path) -> str | None:
    """The family that a run's manifest names; None if it cannot be read, which `load` explains."""
    try:
        content = json.loads((Path(run_dir) / NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content.get("family") if isinstance(content, dict) else None


def is_run(path: str | Path) -> bool:
    """Whether `path` is a folder with a manifest."""
    return (Path(path) / NAME).is_file()


def describe(prompt: prompts.Question) -> dict[str, str]:
    """The entry of a prompt in a manifest."""
    space = prompt.space
    return {"id": prompt.id, "sha": prompt.sha, "label_space": space.id,
            "label_space_sha": space.sha}  # fmt: skip


def save_prompts(asked: Sequence[Any], run_dir: str | Path) -> None:
    """Copy the prompts into the run, as prompts/ID.yaml: it stays readable when files change."""
    for prompt in asked:
        content = {k: v for k, v in dataclasses.asdict(prompt).items() if v is not None}
        text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
        atomic_write(Path(run_dir) / PROMPTS / f"{prompt.id}.yaml", text)


def resolve(base: str) -> Path:
    """The folder of a base model: "vlmface-tiny", a folder, or a model id of the hub (downloaded if
    it is not cached). Raises UserError."""
    if base == TINY:
        return resource("tiny")
    path = Path(base).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UserError(f"{path} is no checkpoint: it has no config.json")
        return path
    if path.is_absolute() or base.startswith(".") or base.count("/") != 1:
        raise UserError(
            f"there is no base model {base!r}: give {TINY}, a checkpoint folder, or a model id "
            "such as llava-hf/llava-1.5-7b-hf"
        )
    from huggingface_hub import snapshot_download

    wanted = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]
    try:
        return Path(snapshot_download(base, allow_patterns=wanted))
    except Exception as error:  # the hub's client raises many unrelated kinds
        raise UserError(
            f"cannot get the base model {base!r}: {type(error).__name__}: {error}. Check the name "
            "and the network, or give the path of a folder with the checkpoint"
        ) from error


def resolve_base(manifest: Manifest, run_dir: str | Path) -> Path:
    """The folder of the run's base model, unchanged since training. Raises UserError."""
    base = manifest.base
    try:
        path = resolve(base["id"])
    except UserError as error:
        raise UserError(
            f"the adapter in {run_dir} needs its base model {base['id']!r}, which is gone: {error}"
        ) from error
    _same(run_dir, f"the base model {base['id']}", weights_sha(path), base["sha"])
    return path


def weights_sha(folder: str | Path) -> str:
    """12 hex digits over the weights of a checkpoint: size, first and last 32 MiB of every file.

    A checkpoint of many gigabytes is not read whole; one up to 64 MiB is.
    """
    files = sorted(Path(folder).glob("*.safetensors")) or sorted(Path(folder).glob("*.bin"))
    if not files:
        raise UserError(f"{folder} has no weights (*.safetensors): restore the checkpoint")
    digest = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        digest.update(str(size).encode())
        with file.open("rb") as stream:
            digest.update(stream.read(_BLOCK))
            stream.seek(max(_BLOCK, size - _BLOCK))
            digest.update(stream.read())
    return digest.hexdigest()[:12]


def processor_shas(folder: str | Path) -> dict[str, str]:
    """{file: 12 hex digits} of the files that decide how text and images become tensors."""
    files = [Path(folder) / name for name in (*_PROCESSOR_FILES, *_TOKENIZER_FILES)]
    return {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()[:12]
        for file in files
        if file.is_file()
    }


def _same(run_dir: str | Path, what: str, found: str, expected: str) -> None:
    if found != expected:
        raise UserError(
            f"{run_dir}: {what} is {found}, but the model was trained with {expected}: restore it, "
            "or train again"
        )
