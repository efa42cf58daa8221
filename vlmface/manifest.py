"""vlmface.json: what a trained model was made of, next to its weights.

Evaluation and serving read this file and nothing else. Whatever no longer agrees with it is an
error that names both values.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from vlmface import __version__, label_spaces, prompts
from vlmface.errors import UserError
from vlmface.resources import resource
from vlmface.utils.files import atomic_write

FILENAME = "vlmface.json"
PROMPTS_DIR = "prompts"  # folder of a run
SCHEMA = 5
TINY_MODEL = "vlmface-tiny"
CLIP = "clip"  # the `family` of a CLIP, which is none of vlmface.families
_PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json", "chat_template.jinja")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
_BLOCK = 32 * 2**20
_LARGEST = 4 * 2**20  # bytes of vlmface.json
_SETTINGS_FILES = (
    "adapter_config.json",
    "config.json",
    "generation_config.json",
    "model.safetensors.index.json",
)


@dataclass(frozen=True)
class Manifest:
    """The content of vlmface.json.

    Attributes:
        recipe: The recipe that trained the model.
        family: The model family.
        base_model: {"id", "sha"} of the model that training started from.
        adapter: Whether the run folder holds a LoRA adapter for the base, or complete weights.
        trainable: {"vision_tower", "projector", "language_model": frozen | lora | full}.
        prompts: What the model was trained to answer, a `prompt_entry` each.
        au_set: AUs that the training data annotates.
        image: Sizes in pixels and tokens (the family's `describe_image`).
        processor: {file name: sha} of preprocessing and chat template.
        weights: {file name: sha256} of the run's own weights and their configuration.
        max_length: Tokens of a training row.
        generation: {"max_new_tokens"}; decoding is always greedy.
        dataset: {"name", "split", "n", "options", "fingerprint"} of the training data, and "file",
            the content of the YAML file that defines it.
        seed: Of training.
        limitations: What the model must not be used for, for readers of its answers.
        views: Of a picture (`data.crops.View`), in order; null for the whole picture.
        num_frames: Frames of a clip, for each view.
        faces: "largest": its pictures are faces, and in a photograph the largest face is detected;
            "none": they are not.
        quantization: What the base's language model was quantised to while the adapter was trained;
            null if it was not. The model is loaded with the unquantised base.
        init_from: {"id", "sha"} of the adapter that training started from; null: a new one.
        evidence: The estimator of the evidence in the prompts (`aus.evidence.identity`); null: they
            contain none.
        clip_classifier: How a CLIP's classifier is built (`clip.classifier.Shape`).
        created: Time of training, UTC.
        schema: Version of this format.
        vlmface: The vlmface that wrote the file.
    """

    recipe: str
    family: str
    base_model: dict[str, str]
    adapter: bool
    trainable: dict[str, str]
    prompts: list[dict[str, str]]
    au_set: list[int]
    image: dict[str, int]
    processor: dict[str, str]
    weights: dict[str, str]
    max_length: int
    generation: dict[str, int]
    dataset: dict[str, Any]
    seed: int
    limitations: str
    views: list[dict[str, Any]] | None = None
    num_frames: int = 1
    faces: str = "largest"
    quantization: str | None = None
    init_from: dict[str, str] | None = None
    evidence: dict[str, Any] | None = None
    clip_classifier: dict[str, Any] | None = None
    created: str = field(default_factory=lambda: f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC")
    schema: int = SCHEMA
    vlmface: str = __version__

    def save(self, run_dir: str | Path) -> None:
        """Write vlmface.json atomically. The files that it has hashes of must be complete."""
        content = json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False)
        atomic_write(Path(run_dir) / FILENAME, content + "\n")


def default_limitations(data: str) -> str:
    """The `limitations` of a run whose settings contain none.

    Args:
        data: The name of its data set, or a file.
    """
    return (
        f"Trained on {Path(data).name}. The limitations of this model have not been described: do "
        "not use it for decisions about people. An expression is not proof of what someone feels."
    )


def load(run_dir: str | Path) -> tuple[Manifest, list[prompts.Prompt]]:
    """Read the manifest of a run and the prompts copied next to it.

    A run folder may come from a stranger: every field is checked for its type and range, and names
    of files are those that recipes write. Prompts, label spaces and processor are compared with
    those of training; `check_weights` compares the weights.

    Args:
        run_dir: The folder of a finished run.

    Returns:
        (manifest, prompts).

    Raises:
        UserError: The file is missing or of another program, a field is not valid, or a file
            differs from training; the message names both values.
    """
    run_dir = Path(run_dir)
    manifest = _read(run_dir)
    files = [*manifest.processor, *manifest.weights]
    files += [f"{PROMPTS_DIR}/{entry['id']}.yaml" for entry in manifest.prompts]
    _check_links(run_dir, files)
    loaded = [_prompt(manifest, run_dir, entry["id"]) for entry in manifest.prompts]
    for prompt, entry in zip(loaded, manifest.prompts, strict=True):
        space = prompt.space
        _check_same(run_dir, f"the label space of {prompt.id}", space.id, entry["label_space"])
        name = f"label space {space.id}" + (" of this vlmface" if space.is_built_in else "")
        _check_same(run_dir, name, space.sha, entry["label_space_sha"])
        _check_same(run_dir, f"prompt {prompt.id} in {PROMPTS_DIR}/", prompt.sha, entry["sha"])
    stored = processor_shas(run_dir)
    for name in {**manifest.processor, **stored}:
        expected = manifest.processor.get(name, "missing")
        _check_same(run_dir, name, stored.get(name, "missing"), expected)
    return manifest, loaded


def _read(run_dir: Path) -> Manifest:
    path = run_dir / FILENAME
    if path.exists() and not path.is_file():
        raise UserError(f"{path} is not a regular file: restore it")
    try:
        if path.stat().st_size > _LARGEST:
            raise UserError(f"{path} has more than {_LARGEST:,} bytes: restore the file")
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{run_dir} has no {FILENAME}: it is not a finished vlmface run. Give the --output_dir "
            "of a run, or rerun the same command to finish it"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        schema = content.get("schema") if isinstance(content, dict) else type(content).__name__
        raise UserError(
            f"{path} has schema {_shortened(schema)}, but this vlmface {__version__} reads schema "
            f"{SCHEMA}: use the vlmface that wrote it, or train again"
        )
    if unexpected := set(_FIELDS) ^ set(content):
        names = ", ".join(sorted(unexpected))[:200]
        raise UserError(f"{path}: {names} is missing or unknown; restore the file")
    for name, (valid, expected) in _FIELDS.items():
        if not valid(content[name]):
            raise UserError(
                f"{path}: {name} is {_shortened(content[name])}, expected {expected}: restore the "
                "file"
            )
    return Manifest(**content)


def _check_links(run_dir: Path, names: Sequence[str]) -> None:
    """Refuse links out of the run: `vlmface merge` copies files of a run, and the target may be
    private. Links into the hub's cache are allowed, where every file of a download is a link."""
    home = run_dir.resolve()
    cache = home.parent.parent / "blobs" if home.parent.name == "snapshots" else home
    for name in names:
        target = (run_dir / name).resolve()
        if not (target.is_relative_to(home) or target.is_relative_to(cache)):
            raise UserError(
                f"{run_dir}: {name} is a link to {target}, outside the run: put the file itself "
                "there"
            )


# --- valid values of the fields -------------------------------------------------------------------

_Check = Callable[[Any], bool]


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."


def _matches(pattern: str) -> _Check:
    return lambda value: isinstance(value, str) and re.fullmatch(pattern, value) is not None


def _number(low: int, high: int) -> _Check:
    return lambda value: type(value) is int and low <= value <= high


def _text(limit: int) -> _Check:
    return lambda value: isinstance(value, str) and len(value) <= limit


def _entry(**fields: _Check) -> _Check:
    """A mapping with exactly these keys."""
    return lambda value: (
        isinstance(value, dict)
        and set(value) == set(fields)
        and all(valid(value[name]) for name, valid in fields.items())
    )


def _mapping(key: _Check, item: _Check) -> _Check:
    return lambda value: (
        isinstance(value, dict)
        and len(value) <= 1000
        and all(key(name) and item(entry) for name, entry in value.items())
    )


def _items(item: _Check, least: int = 0) -> _Check:
    return lambda value: (
        isinstance(value, list) and least <= len(value) <= 1000 and all(map(item, value))
    )


def _either(*checks: _Check) -> _Check:
    return lambda value: any(valid(value) for valid in checks)


def _plain(value: Any, depth: int = 10) -> bool:
    """Whether a JSON value is nested at most `depth` levels deep."""
    items = value.values() if isinstance(value, dict) else value
    return depth > 0 and (
        not isinstance(value, dict | list) or all(_plain(item, depth - 1) for item in items)
    )


_is_name = _matches(label_spaces.ID)
_is_sha = _matches("[0-9a-f]{12}")
_is_none: _Check = lambda value: value is None  # noqa: E731
_is_bool: _Check = lambda value: isinstance(value, bool)  # noqa: E731
_is_scalar: _Check = lambda value: (  # noqa: E731
    value is None
    or isinstance(value, bool)
    or (isinstance(value, int | float) and abs(value) <= 100_000)
    or _text(100)(value)
)
_is_view = _mapping(_is_name, _is_scalar)
_WEIGHT_FILE = r"(?:adapter_model|trained|model(?:-\d{5}-of-\d{5})?)\.safetensors|" + "|".join(
    map(re.escape, _SETTINGS_FILES)
)
_is_model = _entry(id=_matches(r"[^\0-\x1f]{1,1000}"), sha=_is_sha)
_PROMPT_ENTRY = _entry(id=_is_name, sha=_is_sha, label_space=_is_name, label_space_sha=_is_sha)
_is_evidence = _entry(
    estimator=_is_name,
    sha256=_matches("[0-9a-f]{64}"),
    landmarker_sha256=_matches("[0-9a-f]{64}"),
    measurement=_number(1, 10**6),
    format=_number(1, 10**6),
)
_FIELDS: Mapping[str, tuple[_Check, str]] = {
    "recipe": (_is_name, "a name"),
    "family": (_is_name, "a name"),
    "base_model": (_is_model, "{id, sha} with 12 hex digits"),
    "adapter": (_is_bool, "true or false"),
    "trainable": (_mapping(_is_name, _is_name), "names for names"),
    "prompts": (_items(_PROMPT_ENTRY, 1), "a list of {id, sha, label_space, label_space_sha}"),
    "au_set": (_items(_number(1, 100)), "a list of action units"),
    "image": (_mapping(_is_name, _number(0, 10**9)), "whole numbers"),
    "processor": (
        _mapping(lambda name: name in (*_PROCESSOR_FILES, *_TOKENIZER_FILES), _is_sha),
        "hashes of " + ", ".join((*_PROCESSOR_FILES, *_TOKENIZER_FILES)),
    ),
    "weights": (
        _mapping(_matches(_WEIGHT_FILE), _matches("[0-9a-f]{64}")),
        "SHA-256 of weights and of their configuration",
    ),
    "max_length": (_number(1, 10**7), "a whole number of tokens"),
    "generation": (
        _mapping(lambda name: name == "max_new_tokens", _number(1, 10**6)),
        "max_new_tokens",
    ),
    "dataset": (
        lambda value: isinstance(value, dict) and _text(1000)(value.get("name")) and _plain(value),
        "a mapping with a name",
    ),
    "seed": (_number(0, 2**64), "a whole number"),
    "limitations": (_text(20_000), "text"),
    "views": (_either(_is_none, _items(_is_view, 1)), "null, or a list of views"),
    "num_frames": (_number(1, 10_000), "a whole number"),
    "faces": (_matches("none|largest"), "none or largest"),
    "quantization": (_either(_is_none, _is_name), "null or a name"),
    "init_from": (_either(_is_none, _is_model), "null or {id, sha} with 12 hex digits"),
    "evidence": (_either(_is_none, _is_evidence), "null, or the estimator with its hashes"),
    "clip_classifier": (_either(_is_none, _is_view), "null or settings of a classifier"),
    "created": (_text(100), "a time"),
    "schema": (_number(SCHEMA, SCHEMA), str(SCHEMA)),
    "vlmface": (_text(100), "a version"),
}


def _prompt(manifest: Manifest, run_dir: Path, id: str) -> Any:
    """A prompt of a run, or the label texts of a CLIP, which have the same interface."""
    path = run_dir / PROMPTS_DIR / f"{id}.yaml"
    if path.is_file() and path.stat().st_size > _LARGEST:
        raise UserError(f"{path} has more than {_LARGEST:,} bytes: restore the file")
    if manifest.clip_classifier is None:
        return prompts.read(path, trusted=False)
    from vlmface import label_texts

    return label_texts.read(path, trusted=False)


def select_prompt(
    run_prompts: Sequence[prompts.PromptLike],
    choice: str | Path | prompts.PromptLike,
    run: str | Path,
) -> Any:
    """Select one of a run's prompts.

    Args:
        run_prompts: All prompts of the run.
        choice: The id of a prompt, or a prompt with the same content.
        run: Used in messages.

    Returns:
        The prompt of the run.

    Raises:
        UserError: The run was not trained with this prompt.
    """
    for prompt in run_prompts:
        if choice == prompt.id:
            return prompt
    other = prompts.load(choice) if isinstance(choice, str | Path) else choice
    for prompt in run_prompts:
        if prompt.sha == other.sha:
            return prompt
    trained = ", ".join(f"{prompt.id} {prompt.sha}" for prompt in run_prompts)
    raise UserError(
        f"{run} was trained with prompt {trained}, not with {other.id} {other.sha}: leave the "
        "other prompt out, or load the base model with it"
    )


def trained_at(run_or_model: str | Path) -> str | None:
    """When a run was trained, None for a base: stored answers are valid for that model only."""
    return load(run_or_model)[0].created if is_run(run_or_model) else None


def family_of(run_dir: str | Path) -> str | None:
    """The family in a run's manifest; None if it cannot be read (`load` raises the reason)."""
    try:
        content = json.loads((Path(run_dir) / FILENAME).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return content.get("family") if isinstance(content, dict) else None


def is_run(path: str | Path) -> bool:
    """Whether `path` is a folder with a manifest."""
    return (Path(path) / FILENAME).is_file()


def prompt_entry(prompt: prompts.PromptLike) -> dict[str, str]:
    """The entry of a prompt in a manifest."""
    space = prompt.space
    return {
        "id": prompt.id,
        "sha": prompt.sha,
        "label_space": space.id,
        "label_space_sha": space.sha,
    }


def save_prompts(run_prompts: Sequence[Any], run_dir: str | Path) -> None:
    """Copy the prompts into the run as prompts/ID.yaml, so that later changes do not affect it."""
    for prompt in run_prompts:
        text = yaml.safe_dump(prompt.to_mapping(), sort_keys=False, allow_unicode=True)
        atomic_write(Path(run_dir) / PROMPTS_DIR / f"{prompt.id}.yaml", text)


def resolve(base: str) -> Path:
    """The folder of a base model.

    Args:
        base: "vlmface-tiny", a folder, or a model id of the hub, which is downloaded if it is not
            cached.

    Returns:
        The folder with the checkpoint.

    Raises:
        UserError: The model does not exist, or cannot be downloaded.
    """
    if base == TINY_MODEL:
        return resource("tiny")
    path = Path(base).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UserError(f"{path} is not a checkpoint: it has no config.json")
        return path
    if path.is_absolute() or base.startswith(".") or base.count("/") != 1:
        raise UserError(
            f"unknown base model {base!r}: give {TINY_MODEL}, a checkpoint folder, or a model "
            "id such as llava-hf/llava-1.5-7b-hf"
        )
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]
    try:
        return Path(snapshot_download(base, allow_patterns=patterns))
    except Exception as error:  # the hub's client raises many unrelated kinds
        raise UserError(
            f"{base!r} is not a folder, and cannot be downloaded: {type(error).__name__}: {error}. "
            "Check the name and the network, or give the path of a run's folder or of a folder "
            "with a checkpoint"
        ) from error


def resolve_base(manifest: Manifest, run_dir: str | Path) -> Path:
    """The folder of the run's base model, unchanged since training. Raises UserError."""
    base = manifest.base_model
    try:
        path = resolve(base["id"])
    except UserError as error:
        raise UserError(
            f"the adapter in {run_dir} needs its base model {base['id']!r}, which is missing: "
            f"{error}"
        ) from error
    _check_same(run_dir, f"the base model {base['id']}", weights_sha(path), base["sha"])
    return path


def weights_shas(run_dir: str | Path) -> dict[str, str]:
    """{file: SHA-256} of the weights in a run folder and of their configuration."""
    folder = Path(run_dir)
    files = [*sorted(folder.glob("*.safetensors")), *(folder / name for name in _SETTINGS_FILES)]
    shas = {}
    for file in files:
        if file.is_file():
            with file.open("rb") as stream:
                shas[file.name] = hashlib.file_digest(stream, "sha256").hexdigest()
    return shas


def check_weights(manifest: Manifest, run_dir: str | Path) -> None:
    """Compare the run's own weights with its manifest. They are read completely, at about one
    gigabyte per second.

    Raises:
        UserError: A file is missing, has changed, or was added after training.
    """
    stored = weights_shas(run_dir)
    needed = (
        "trained" if manifest.clip_classifier else "adapter_model" if manifest.adapter else "model"
    )
    if not any(name.startswith(needed) for name in manifest.weights):
        raise UserError(
            f"{Path(run_dir) / FILENAME} lists no {needed}.safetensors: restore the file"
        )
    for name in {**manifest.weights, **stored}:
        expected = manifest.weights.get(name, "missing")
        _check_same(run_dir, name, stored.get(name, "missing"), expected)


def weights_sha(folder: str | Path) -> str:
    """12 hex digits over the weights of a checkpoint: size, first and last 32 MiB of every file.

    A checkpoint of many gigabytes is not read completely; a file of up to 64 MiB is.
    """
    files = sorted(Path(folder).glob("*.safetensors"))  # others, such as pickles, are not loaded
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
    """{file: 12 hex digits} of the files that determine how text and images become tensors."""
    files = [Path(folder) / name for name in (*_PROCESSOR_FILES, *_TOKENIZER_FILES)]
    return {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()[:12]
        for file in files
        if file.is_file()
    }


def _check_same(run_dir: str | Path, description: str, stored: str, expected: str) -> None:
    if stored != expected:
        raise UserError(
            f"{run_dir}: {description} is {stored}, but the model was trained with {expected}: "
            "restore it, or train again"
        )
