"""vlmface.json: what a trained model was made of, beside its weights. Evaluation and serving read
this file and nothing else; whatever no longer agrees with it is an error that names both values.
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

NAME = "vlmface.json"
PROMPTS = "prompts"  # folder of a run
SCHEMA = 2
TINY = "vlmface-tiny"
CLIP = "clip"  # the `family` of a CLIP, which is none of vlmface.families
_PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json", "chat_template.jinja")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
_BLOCK = 32 * 2**20
_LARGEST = 4 * 2**20  # bytes of vlmface.json
_SETTINGS_FILES = (
    "adapter_config.json", "config.json", "generation_config.json", "model.safetensors.index.json",
)  # fmt: skip


@dataclass(frozen=True)
class Manifest:
    """The content of vlmface.json.

    `base` {"id", "sha"}: what the weights start from; `adapter`: whether the run folder holds a
    LoRA adapter for it or whole weights. `policy`: frozen | lora | full for tower, projector, llm.
    `prompts`: what the model was trained to answer, `describe` of each. `au_set`: AUs the training
    data annotates. `image`: sizes in pixels and tokens (the family's `describe_image`); `processor`
    {file name: sha} of preprocessing and chat template; `weights` {file name: sha256} of the run's
    own weights and their configuration (`weights_shas`); `crop`: the view of a picture that is
    shown (`data.crops.View`), null for the picture whole, a list for several views; `frames`: how
    many of a clip, of each view; `faces`: whether its pictures are faces ("largest": in a
    photograph the largest one is looked for) or not ("none"); `quantize`: what the base's language
    model was quantised to while the adapter was trained, null if it was not (whoever loads the
    model takes the base unquantised);
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
    weights: dict[str, str]
    max_length: int
    generation: dict[str, int]
    data: dict[str, Any]
    seed: int
    limits: str
    crop: dict[str, Any] | list[dict[str, Any]] | None = None
    frames: int = 1
    faces: str = "largest"
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
    """Read the manifest of a run and the prompts copied beside it.

    A run folder may come from a stranger: every field is checked for its type and range, and names
    of files are those that recipes write. Prompts, label spaces and processor are compared with
    what the model was trained with; `check_weights` compares the weights.

    Raises:
        UserError: For a missing or foreign file, a field that is not valid, and for each
            disagreement, naming both values.
    """
    run_dir = Path(run_dir)
    manifest = _read(run_dir)
    files = [*manifest.processor, *manifest.weights]
    files += [f"{PROMPTS}/{entry['id']}.yaml" for entry in manifest.prompts]
    _check_links(run_dir, files)
    loaded = [_prompt(manifest, run_dir, entry["id"]) for entry in manifest.prompts]
    for prompt, entry in zip(loaded, manifest.prompts, strict=True):
        space = prompt.space
        _same(run_dir, f"the label space of {prompt.id}", space.id, entry["label_space"])
        name = f"label space {space.id}" + (" of this vlmface" if space.is_built_in else "")
        _same(run_dir, name, space.sha, entry["label_space_sha"])
        _same(run_dir, f"prompt {prompt.id} in {PROMPTS}/", prompt.sha, entry["sha"])
    found = processor_shas(run_dir)
    for name in {**manifest.processor, **found}:
        _same(run_dir, name, found.get(name, "missing"), manifest.processor.get(name, "missing"))
    return manifest, loaded


def _read(run_dir: Path) -> Manifest:
    path = run_dir / NAME
    if path.exists() and not path.is_file():
        raise UserError(f"{path} is not a regular file: restore it")
    try:
        if path.stat().st_size > _LARGEST:
            raise UserError(f"{path} has more than {_LARGEST:,} bytes: restore the file")
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{run_dir} has no {NAME}: it is no finished vlmface run. Give a run's --output_dir, "
            "or finish the run by starting it again with the same command"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        found = content.get("schema") if isinstance(content, dict) else type(content).__name__
        raise UserError(
            f"{path} has schema {_shown(found)}, but this vlmface {__version__} reads schema "
            f"{SCHEMA}: use the vlmface that wrote it, or train again"
        )
    if odd := set(_FIELDS) ^ set(content):
        names = ", ".join(sorted(odd))[:200]
        raise UserError(f"{path}: {names} is missing or unknown; restore the file")
    for name, (valid, expected) in _FIELDS.items():
        if not valid(content[name]):
            raise UserError(
                f"{path}: {name} is {_shown(content[name])}, expected {expected}: restore the file"
            )
    return Manifest(**content)


def _check_links(run_dir: Path, names: Sequence[str]) -> None:
    """`vlmface merge` copies files of a run, and what a link names may be private. Links into the
    hub's cache, where every file of a download is one, are taken."""
    home = run_dir.resolve()
    cache = home.parent.parent / "blobs" if home.parent.name == "snapshots" else home
    for name in names:
        target = (run_dir / name).resolve()
        if not (target.is_relative_to(home) or target.is_relative_to(cache)):
            raise UserError(
                f"{run_dir}: {name} is a link to {target}, outside the run: put the file itself "
                "there"
            )


# --- what a field may be --------------------------------------------------------------------------

_Check = Callable[[Any], bool]


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."


def _matches(pattern: str) -> _Check:
    return lambda value: isinstance(value, str) and re.fullmatch(pattern, value) is not None


def _number(low: int, high: int) -> _Check:
    return lambda value: type(value) is int and low <= value <= high


def _text(limit: int) -> _Check:
    return lambda value: isinstance(value, str) and len(value) <= limit


def _entry(**fields: _Check) -> _Check:
    """A mapping with just these keys."""
    return lambda value: (
        isinstance(value, dict)
        and set(value) == set(fields)
        and all(valid(value[name]) for name, valid in fields.items())
    )


def _mapping(key: _Check, item: _Check) -> _Check:
    return lambda value: (
        isinstance(value, dict)
        and len(value) <= 1000
        and all(key(name) and item(one) for name, one in value.items())
    )


def _items(item: _Check, least: int = 0) -> _Check:
    return lambda value: (
        isinstance(value, list) and least <= len(value) <= 1000 and all(map(item, value))
    )


def _either(*checks: _Check) -> _Check:
    return lambda value: any(valid(value) for valid in checks)


def _plain(value: Any, depth: int = 10) -> bool:
    """Whether a value of JSON is not nested deeper than that."""
    inside = value.values() if isinstance(value, dict) else value
    return depth > 0 and (
        not isinstance(value, dict | list) or all(_plain(one, depth - 1) for one in inside)
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
_PROMPT_ENTRY = _entry(id=_is_name, sha=_is_sha, label_space=_is_name, label_space_sha=_is_sha)
_FIELDS: Mapping[str, tuple[_Check, str]] = {
    "recipe": (_is_name, "a name"),
    "family": (_is_name, "a name"),
    "base": (
        _entry(id=_matches(r"[^\0-\x1f]{1,1000}"), sha=_is_sha), "{id, sha} with 12 hex digits"
    ),
    "adapter": (_is_bool, "true or false"),
    "policy": (_mapping(_is_name, _is_name), "names for names"),
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
        _mapping(lambda name: name == "max_new_tokens", _number(1, 10**6)), "max_new_tokens"
    ),
    "data": (
        lambda value: isinstance(value, dict) and _text(1000)(value.get("name")) and _plain(value),
        "a mapping with a name",
    ),
    "seed": (_number(0, 2**64), "a whole number"),
    "limits": (_text(20_000), "text"),
    "crop": (_either(_is_none, _is_view, _items(_is_view)), "null, a view, or a list of views"),
    "frames": (_number(1, 10_000), "a whole number"),
    "faces": (_matches("none|largest"), "none or largest"),
    "quantize": (_either(_is_none, _is_name), "null or a name"),
    "clip": (_either(_is_none, _is_view), "null or settings of a classifier"),
    "created": (_text(100), "a time"),
    "schema": (_number(SCHEMA, SCHEMA), str(SCHEMA)),
    "vlmface": (_text(100), "a version"),
}  # fmt: skip


def _prompt(manifest: Manifest, run_dir: Path, id: str) -> Any:
    """A prompt of a run, or the texts of a CLIP's labels, which know the same of themselves."""
    path = run_dir / PROMPTS / f"{id}.yaml"
    if path.is_file() and path.stat().st_size > _LARGEST:
        raise UserError(f"{path} has more than {_LARGEST:,} bytes: restore the file")
    if manifest.clip is None:
        return prompts.read(path, trusted=False)
    from vlmface import label_texts

    return label_texts.read(path, trusted=False)


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
    except (OSError, ValueError, RecursionError):
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
        text = yaml.safe_dump(prompt.to_mapping(), sort_keys=False, allow_unicode=True)
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
    """Compare the run's own weights with its manifest. They are read whole, about a gigabyte a
    second. Raises UserError if a file is missing, changed, or was not there after training."""
    stored = weights_shas(run_dir)
    needed = "trained" if manifest.clip else "adapter_model" if manifest.adapter else "model"
    if not any(name.startswith(needed) for name in manifest.weights):
        raise UserError(f"{Path(run_dir) / NAME} lists no {needed}.safetensors: restore the file")
    for name in {**manifest.weights, **stored}:
        expected = manifest.weights.get(name, "missing")
        _same(run_dir, name, stored.get(name, "missing"), expected)


def weights_sha(folder: str | Path) -> str:
    """12 hex digits over the weights of a checkpoint: size, first and last 32 MiB of every file.

    A checkpoint of many gigabytes is not read whole; one up to 64 MiB is.
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
