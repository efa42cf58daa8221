"""A run folder from a stranger: what it may not do, and that every damaged file is one message."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from vlmface import manifest, prompts
from vlmface.cli import main as vlmface
from vlmface.errors import UserError
from vlmface.infer.predictor import Predictor
from vlmface.tools import merge

MISSING = "missing"


@pytest.fixture
def copied(run_dir: Path, tmp_path: Path) -> Path:
    """A run in a folder of its own, so that a file beside it can be looked for."""
    folder = tmp_path / "inner" / "run"
    shutil.copytree(run_dir, folder, ignore=shutil.ignore_patterns("checkpoints"))
    return folder


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Connections that were tried, each of which fails."""
    tried: list[Any] = []

    def connect(self: socket.socket, address: Any) -> None:
        tried.append(address)
        raise OSError("there is no network in this test")

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: connect(None, a))  # type: ignore[arg-type]
    yield tried


def edit(run: Path, **changes: Any) -> None:
    path = run / manifest.FILENAME
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def vouch(run: Path) -> None:
    """Make the manifest agree with the weights in the folder, as a stranger's would."""
    edit(run, weights=manifest.weights_shas(run), processor=manifest.processor_shas(run))


def failure(action: Callable[[], Any]) -> str:
    with pytest.raises(UserError) as caught:
        action()
    return str(caught.value)


# --- nothing is written outside the output --------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/passwd", "sub/../../secret", "README.md", "secret", ""]
)
def test_a_processor_file_is_one_of_those_that_recipes_write(copied: Path, name: str) -> None:
    (copied.parent / "secret").write_text("a file of the user")
    edit(copied, processor={name: MISSING})
    message = failure(lambda: merge.merge(copied, copied.parent / "out"))
    assert "processor is" in message
    assert sorted(path.name for path in copied.parent.iterdir()) == ["run", "secret"]


@pytest.mark.parametrize("id", ["../../../x", "/x", "a/b", "a\\b", "..", ".", "", "x" * 101, "a\n"])
def test_the_id_of_a_prompt_is_a_plain_name(copied: Path, id: str, tmp_path: Path) -> None:
    entry = json.loads((copied / manifest.FILENAME).read_text())["prompts"][0] | {"id": id}
    edit(copied, prompts=[entry])
    assert "prompts is" in failure(lambda: manifest.load(copied))
    text = (copied / "prompts" / "face_cot.yaml").read_text()
    path = tmp_path / "own.yaml"
    path.write_text(text.replace("id: face_cot", f"id: {json.dumps(id)}"))
    assert "id" in failure(lambda: prompts.load(path))


def test_a_link_out_of_the_run_is_not_followed(copied: Path) -> None:
    secret = copied.parent / "secret"
    secret.write_text((copied / "chat_template.jinja").read_text())
    (copied / "chat_template.jinja").unlink()
    (copied / "chat_template.jinja").symlink_to(secret)
    message = failure(lambda: merge.merge(copied, copied.parent / "out"))
    assert "chat_template.jinja is a link" in message


def test_a_run_in_the_cache_of_the_hub_is_read(copied: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "hub" / "snapshots" / "0123"
    blobs = tmp_path / "hub" / "blobs"
    blobs.mkdir(parents=True)
    for i, path in enumerate(sorted(p for p in copied.rglob("*") if p.is_file())):
        shutil.copy(path, blobs / str(i))
        link = snapshot / path.relative_to(copied)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blobs / str(i))
    assert manifest.load(snapshot)[0] == manifest.load(copied)[0]


# --- nothing is fetched, no code is run -----------------------------------------------------------


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json"])
@pytest.mark.parametrize("vouched", [False, True])
def test_no_hub_is_asked_for_what_a_run_lacks(
    copied: Path, name: str, vouched: bool, no_network: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    (copied / name).unlink()
    if vouched:
        vouch(copied)
    for action in (Predictor.load, lambda run: merge.merge(run, copied.parent / "out")):
        assert name in failure(lambda action=action: action(copied))  # type: ignore[misc]
    assert no_network == []


def test_pickled_weights_are_not_loaded(copied: Path) -> None:
    (copied / "adapter_model.safetensors").rename(copied / "adapter_model.bin")
    vouch(copied)
    assert "adapter_model" in failure(lambda: Predictor.load(copied))


def test_an_adapter_names_no_module_to_import(copied: Path) -> None:
    path = copied / "adapter_config.json"
    config = json.loads(path.read_text())
    for changes in (
        {"megatron_config": {"a": 1}, "megatron_core": "antigravity"},
        {"peft_type": "PREFIX_TUNING"},
    ):
        path.write_text(json.dumps(config | changes))
        vouch(copied)
        assert "adapter_config.json" in failure(lambda: Predictor.load(copied))


def test_no_code_of_a_checkpoint_is_run(base: Path, tmp_path: Path) -> None:
    """Neither for a known model type nor for an unknown one, and nobody is asked whether it may."""
    for name, kind in (("known", "llava"), ("unknown", "stranger")):
        folder = tmp_path / name
        shutil.copytree(base, folder)
        (folder / "code.py").write_text("raise SystemExit('code of the checkpoint was run')")
        for file in ("config.json", "tokenizer_config.json", "processor_config.json"):
            content = json.loads((folder / file).read_text())
            content["auto_map"] = {
                auto: "code.Stranger"
                for auto in (
                    "AutoConfig",
                    "AutoModelForImageTextToText",
                    "AutoProcessor",
                    "AutoImageProcessor",
                    "AutoTokenizer",
                )
            } | {"AutoTokenizer": ["code.Stranger", None]}
            if file == "config.json":
                content["model_type"] = kind
            (folder / file).write_text(json.dumps(content))
        if kind == "llava":
            Predictor.load(folder, prompt="face_cot").close()
        else:
            failure(lambda folder=folder: Predictor.load(folder, prompt="face_cot"))  # type: ignore[misc]


def test_every_load_of_transformers_refuses_code(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is opened while a run is loaded: the setting is given, not left to be asked for."""
    import transformers

    given: list[tuple[str, Any]] = []
    for name in (
        "AutoConfig",
        "AutoProcessor",
        "AutoTokenizer",
        "AutoModelForImageTextToText",
        "LlavaForConditionalGeneration",
    ):
        cls = getattr(transformers, name)

        def spy(*args: Any, _name: str = name, _real: Any = cls.from_pretrained, **how: Any) -> Any:
            given.append((_name, how.get("trust_remote_code")))
            return _real(*args, **how)

        monkeypatch.setattr(cls, "from_pretrained", spy)
    Predictor.load(copied).close()
    assert {name for name, _ in given} >= {"AutoConfig", "AutoProcessor"}
    ours = [setting for _, setting in given]
    assert all(setting is False for setting in ours), given


def test_the_source_gives_the_setting_everywhere() -> None:
    import re

    import vlmface

    source = Path(vlmface.__file__).parent
    calls = []
    for path in source.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        for match in re.finditer(r"(?:Auto\w+|\w+Generation)\.from_(?:pretrained|config)\(", text):
            call = text[match.start() : match.start() + 300]
            calls.append((path.name, "trust_remote_code=False" in call))
    assert len(calls) >= 8
    assert all(refuses for _, refuses in calls), calls


def test_no_code_of_a_clip_is_run(clip_base: Path, tmp_path: Path) -> None:
    """open_clip hands on what the checkpoint says, and asks whether the code may be run."""
    from vlmface.clip import model

    code, folder = tmp_path / "code", tmp_path / "clip"
    code.mkdir()
    (code / "stranger.py").write_text("raise SystemExit('code of the checkpoint was run')")
    (code / "config.json").write_text(
        json.dumps({"model_type": "stranger", "auto_map": {"AutoConfig": "stranger.Stranger"}})
    )
    (code / "tokenizer_config.json").write_text(
        json.dumps({"auto_map": {"AutoTokenizer": ["stranger.Stranger", None]}})
    )
    shutil.copytree(clip_base, folder)
    path = folder / "open_clip_config.json"
    plain = json.loads(path.read_text())
    for words in (
        {"hf_tokenizer_name": str(code), "tokenizer_kwargs": {"trust_remote_code": True}},
        {"hf_tokenizer_name": str(code)},
        {"hf_model_name": str(code), "hf_tokenizer_name": str(code)},
    ):
        text = plain["model_cfg"]["text_cfg"] | words
        changed = plain | {"model_cfg": plain["model_cfg"] | {"text_cfg": text}}
        path.write_text(json.dumps(changed))
        assert "CLIP" in failure(lambda: model.load_clip(folder))


CLIP_DAMAGES = ["missing", "empty", "cut", "folder", "bytes", "list", "deep"]


@pytest.mark.parametrize("damage", CLIP_DAMAGES)
@pytest.mark.parametrize("vouched", [False, True])
def test_a_damaged_run_of_a_clip_is_one_message(
    clip_faces: Path, damage: str, vouched: bool, tmp_path: Path
) -> None:
    texts = next(clip_faces.glob("prompts/*.yaml")).relative_to(clip_faces)
    for name in ("trained.safetensors", str(texts)):
        run = tmp_path / name.replace("/", "-")
        shutil.copytree(clip_faces, run, ignore=shutil.ignore_patterns("checkpoints"))
        DAMAGES[damage](run / name)
        if vouched:
            vouch(run)
        assert _only_user_errors(lambda run=run: Predictor.load(run)) is not None  # type: ignore[misc]


# --- what the manifest vouches for ----------------------------------------------------------------


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json"])
def test_changed_weights_are_noticed(copied: Path, name: str) -> None:
    path = copied / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    for action in (Predictor.load, lambda run: merge.merge(run, copied.parent / "out")):
        message = failure(lambda action=action: action(copied))  # type: ignore[misc]
        assert f"{name} is" in message and "was trained with" in message


def test_weights_that_were_not_there_are_noticed(copied: Path) -> None:
    shutil.copy(copied / "adapter_model.safetensors", copied / "model.safetensors")
    assert "model.safetensors is" in failure(lambda: Predictor.load(copied))


WRONG: dict[str, list[Any]] = {
    "recipe": [1, "", "../x", "a" * 1000],
    "family": [None, [], "no-family"],
    "base_model": [
        {},
        {"id": "x"},
        {"id": "a\x1b[2J", "sha": "0" * 12},
        {"id": "x", "sha": "zz"},
        "x",
        {"id": "x", "sha": "0" * 12, "more": 1},
        {"id": {}, "sha": "0" * 12},
    ],
    "adapter": ["yes", None, 1],
    "trainable": [[], {"vision_tower": 1}, "lora"],
    "prompts": [[], {}, "face_cot", [{}], [1], [{"id": "face_cot"}]],
    "au_set": [{}, ["1"], [-1], [10**30], [1.5], [True]],
    "image": [[], {"width": "32"}, {"width": -1}, {"width": 1e400}],
    "processor": [[], {"tokenizer.json": 1}, {"tokenizer.json": "x"}],
    "weights": [{}, [], {"../x": "0" * 64}, {"adapter_model.safetensors": "0"}],
    "max_length": ["512", 0, -1, 1.5, 10**30],
    "generation": [[], {"temperature": 1}, {"max_new_tokens": 0}, {"max_new_tokens": "8"}],
    "dataset": [[], {}, {"name": 1}, {"name": "x", "deep": [[[[[[[[[[[[1]]]]]]]]]]]]}],
    "seed": ["0", -1, 1.0, True],
    "limitations": [1, None, "x" * 100_000],
    "views": [
        1,
        "face",
        [[1]],
        [],
        {"size": 32},
        [{"size": {}}],
        [{"size": 1e9}],
        [{"view": "nothing"}],
    ],
    "num_frames": [0, "1", 10**9, None],
    "quantization": [1, [], "../x"],
    "clip_classifier": [1, [], {"lora_rank": 10**9}, {"image_tower": []}],
    "created": [1, "x" * 1000],
    "schema": [1, "2", None, [], 99],
    "vlmface": [1, None],
}


@pytest.mark.parametrize(
    ("field", "value"), [(k, v) for k, values in WRONG.items() for v in values]
)
def test_every_field_of_a_manifest_is_checked(copied: Path, field: str, value: Any) -> None:
    edit(copied, **{field: value})
    message = failure(lambda: Predictor.load(copied))
    assert len(message) < 1000 and "\x1b" not in message


def test_a_manifest_has_all_fields_and_no_other(copied: Path) -> None:
    import dataclasses

    content = json.loads((copied / manifest.FILENAME).read_text())
    assert set(content) == {field.name for field in dataclasses.fields(manifest.Manifest)}
    for name in content:
        less = {k: v for k, v in content.items() if k != name}
        (copied / manifest.FILENAME).write_text(json.dumps(less))
        assert name in failure(lambda: manifest.load(copied))
    (copied / manifest.FILENAME).write_text(json.dumps(content | {"surprise": 1}))
    assert "surprise" in failure(lambda: manifest.load(copied))


# --- damaged files --------------------------------------------------------------------------------


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "missing": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "folder": _folder,
    "pipe": lambda path: (path.unlink(), os.mkfifo(path)),
    "bytes": lambda path: path.write_bytes(bytes(range(256)) * 4),
    "null": lambda path: path.write_text("null"),
    "list": lambda path: path.write_text("[1, 2]"),
    "number": lambda path: path.write_text("9" * 5000),
    "nan": lambda path: path.write_text('{"after": NaN, "peft_type": "LORA", "r": NaN}'),
    "deep": lambda path: path.write_text("[" * 100_000 + "]" * 100_000),
    "deep_object": lambda path: path.write_text('{"a":' * 5_000 + "1" + "}" * 5_000),
    "text": lambda path: path.write_text("one: two\nthree: [\n"),
}
READ = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "chat_template.jinja",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vlmface.json",
    "prompts/face_cot.yaml",
)


def _only_user_errors(action: Callable[[], Any]) -> str | None:
    """The message, None if the action succeeds; any other error fails the test."""
    try:
        found = action()
    except UserError as error:
        return str(error)
    if isinstance(found, Predictor):
        found.close()
    return None


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", READ)
def test_a_damaged_file_is_one_message(copied: Path, name: str, damage: str) -> None:
    DAMAGES[damage](copied / name)
    assert _only_user_errors(lambda: Predictor.load(copied)) is not None
    assert _only_user_errors(lambda: merge.merge(copied, copied.parent / "out")) is not None
    assert not (copied.parent / "out").exists()


@pytest.mark.parametrize("damage", ["missing", "cut", "bytes", "list", "deep"])
@pytest.mark.parametrize("name", [n for n in READ if n != "vlmface.json"])
def test_so_is_one_that_the_manifest_vouches_for(copied: Path, name: str, damage: str) -> None:
    """A damaged prompt, processor or adapter whose hash is right."""
    DAMAGES[damage](copied / name)
    vouch(copied)
    message = _only_user_errors(lambda: Predictor.load(copied))
    if name not in ("chat_template.jinja", "tokenizer_config.json"):  # which may hold anything
        assert message is not None


@pytest.mark.parametrize(
    "after",
    [
        [],
        {},
        {"emotion": []},
        {"emotion": {"accuracy": "much"}},
        {"benchmark": "synth", "n": "8"},
        {"emotion": {"accuracy": 0.5, "ci95": {"accuracy": 1}}},
        {"attributes": {"gender": 1}},
    ],
)
def test_so_do_metrics_of_wrong_types(copied: Path, after: Any) -> None:
    (copied / "metrics.json").write_text(json.dumps({"after": after, "before": {}}))
    message = failure(lambda: merge.merge(copied, copied.parent / "out"))
    assert "metrics.json does not have the form that recipes write" in message
    assert not (copied.parent / "out").exists()


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_metrics_file_costs_a_merge_one_message(
    copied: Path, damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if damage == "missing":
        pytest.skip("a run without results is merged")
    DAMAGES[damage](copied / "metrics.json")
    assert vlmface(["merge", str(copied), str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "metrics.json" in error
    assert not (tmp_path / "out").exists()
