"""A merged checkpoint answers as base and adapter did, and says what it is; or there is none."""

from __future__ import annotations

import dataclasses
import http.server
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers import faulty_merge
from helpers.run_files import read_metrics
from helpers.samples import picture
from helpers.scripts import ROOT, Recipe, load_script
from safetensors.torch import load_file, save_file

from vlmface import manifest
from vlmface.cli import main
from vlmface.errors import UserError
from vlmface.infer.local import LocalModel
from vlmface.tools import merge, model_card


@pytest.fixture(scope="module")
def merged(run_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("merged") / "new" / "model"
    assert main(["merge", str(run_dir), str(folder)]) == 0
    return folder


def copy_of(run_dir: Path, folder: Path) -> Path:
    return Path(shutil.copytree(run_dir, folder, ignore=shutil.ignore_patterns("checkpoints")))


# --- the checkpoint -------------------------------------------------------------------------------


def test_it_gives_the_answers_of_the_run(run_dir: Path, merged: Path) -> None:
    pictures = [picture(seed) for seed in range(4)]
    adapter = LocalModel.load(run_dir, merge=False).predict(pictures)
    found = LocalModel.load(merged).predict(pictures)
    assert [p.text for p in found] == [p.text for p in adapter]
    for a, b in zip(found, adapter, strict=True):
        assert a.probabilities == pytest.approx(b.probabilities, abs=1e-4)


def test_transformers_alone_loads_it(run_dir: Path, merged: Path) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(merged).eval()
    processor = AutoProcessor.from_pretrained(merged)
    ours = LocalModel.load(run_dir, merge=False)
    text = processor.apply_chat_template(ours.messages, add_generation_prompt=True)
    batch = processor(text=text, images=picture(1), return_tensors="pt", add_special_tokens=False)
    with torch.no_grad():
        assert torch.allclose(model(**batch).logits, ours.model(**batch).logits, atol=1e-4)


def test_it_is_evaluated_like_a_run(run_dir: Path, merged: Path, tmp_path: Path) -> None:
    words = ["--benchmark", "synth", "--n", "8", "--output_dir", str(tmp_path)]
    load_script("eval/run.py").main([*words, "--model", str(merged)])
    found = read_metrics(tmp_path)
    trained = read_metrics(run_dir)["after"]
    assert (found["emotion"], found["au"]) == (trained["emotion"], trained["au"])


def test_the_manifest_is_the_runs_without_adapter_and_folders(run_dir: Path, merged: Path) -> None:
    before, prompts = manifest.load(run_dir)
    after, same = manifest.load(merged)
    assert (before.adapter, after.adapter) == (True, False)
    assert prompts == same
    assert after.processor == before.processor
    assert after.base_model == {
        "id": Path(before.base_model["id"]).name,
        "sha": before.base_model["sha"],
    }
    assert not list(merged.glob("adapter*"))
    text = "".join(
        p.read_text() for p in merged.rglob("*") if p.suffix in (".json", ".md", ".yaml")
    )
    assert str(run_dir) not in text and before.base_model["id"] not in text


def test_half_precision_is_rounded_once_and_says_by_how_much(run_dir: Path, tmp_path: Path) -> None:
    check = merge.merge(run_dir, tmp_path / "half", dtype="bfloat16")
    weights = load_file(tmp_path / "half" / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    assert check["merged"] <= 3 * check["rounding"] < 1e-4 < check["rounded"] < 1
    assert f"{check['rounded']:.1e}" in (tmp_path / "half" / "README.md").read_text()


# --- the card -------------------------------------------------------------------------------------


def test_the_card_has_the_hubs_metadata(run_dir: Path, merged: Path) -> None:
    from huggingface_hub import ModelCard

    card = ModelCard.load(merged / "README.md")
    found = yaml.safe_load((merged / "README.md").read_text().split("---")[1])
    # The base is a folder that states no licence: nothing is granted in its owner's name.
    assert (found["license"], found["license_link"]) == ("other", "README.md")
    assert "base_model" not in found  # no name of the hub
    assert (found["pipeline_tag"], found["library_name"]) == ("image-text-to-text", "transformers")
    assert found["datasets"] == ["synth"] and "vlmface" in found["tags"]
    assert found["metrics"] == ["accuracy", "f1", "recall"]
    scores = read_metrics(run_dir)["after"]
    results = {r.metric_name.split(",")[0]: r for r in card.data.eval_results}
    accuracy = results["emotion accuracy"]
    assert accuracy.metric_value == round(scores["emotion"]["accuracy"], 4)
    assert "people: too few for an interval" in scores["emotion"]["no_ci95"]
    assert accuracy.metric_args is None
    assert results["action units micro F1"].metric_value == round(scores["au"]["f1_micro"], 4)


def test_the_card_has_the_intervals_that_the_run_has(run_dir: Path) -> None:
    found = manifest.load(run_dir)[0]
    scores = read_metrics(run_dir)["after"]
    scores["emotion"]["ci95"]["accuracy"] = [0.125, 0.6]
    results = model_card._results(scores, {})
    text = model_card._metadata(found, "other", None, "a/b", scores, results)
    named = [
        r
        for r in yaml.safe_load(text)["model-index"][0]["results"][0]["metrics"]
        if r["name"].startswith("emotion accuracy")
    ]
    assert named[0]["args"] == {"ci95": [0.125, 0.6]}
    assert "95 % interval 0.125 to 0.600" in named[0]["name"]


def test_the_card_tells_data_limits_and_hashes(merged: Path) -> None:
    text = (merged / "README.md").read_text()
    found, _ = manifest.load(merged)
    for expected in (
        found.dataset["fingerprint"],
        found.limitations,
        found.prompts[0]["sha"],
        "AU12",
        f"| `model.safetensors` | `{merge._sha256(merged / 'model.safetensors')}` |",
    ):
        assert expected in text
    assert "{{" not in text and "{%" not in text and "None" not in text


def test_a_licence_is_the_bases_only_where_the_data_are_our_own(run_dir: Path) -> None:
    tiny = manifest.resolve(manifest.TINY_MODEL)
    own, foreign = {"licence": "CC0", "own": True}, {"licence": "research only", "own": False}
    assert model_card._licence(tiny, own, None)[0] == "apache-2.0"
    assert model_card._licence(tiny, foreign, None)[0] == "other"
    assert "research only" in model_card._licence(tiny, foreign, None)[1]
    assert model_card._licence(tiny, foreign, "mit")[0] == "mit"


# --- refusals -------------------------------------------------------------------------------------


def refused(run: Path, out: Path, match: str) -> None:
    before = sorted(out.parent.iterdir()) if out.parent.exists() else None
    with pytest.raises(UserError, match=match):
        merge.merge(run, out)
    assert (sorted(out.parent.iterdir()) if out.parent.exists() else None) == before


def test_an_existing_folder_is_not_touched(run_dir: Path, tmp_path: Path) -> None:
    refused(run_dir, tmp_path, "exists: give the name of a new folder")


def test_a_merged_model_is_not_merged_again(merged: Path, tmp_path: Path) -> None:
    refused(merged, tmp_path / "out", "has no adapter")


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    refused(tmp_path, tmp_path / "out", r"vlmface\.json")


@pytest.mark.parametrize("fault", ["gone", "changed", "quantised"])
def test_a_base_that_is_not_the_trained_one_is_refused(
    run_dir: Path, base: Path, tmp_path: Path, fault: str
) -> None:
    run, other = copy_of(run_dir, tmp_path / "run"), tmp_path / "base"
    found, _ = manifest.load(run)
    content = json.loads((run / "vlmface.json").read_text())
    content["base_model"]["id"] = str(other)
    (run / "vlmface.json").write_text(json.dumps(content))
    match = "which is missing"
    if fault != "gone":
        shutil.copytree(base, other)
    if fault == "changed":
        weights = load_file(other / "model.safetensors")
        weights = {name: tensor + 1e-3 for name, tensor in weights.items()}
        save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
        match = f"but the model was trained with {found.base_model['sha']}"
    if fault == "quantised":
        config = json.loads((other / "config.json").read_text())
        config["quantization_config"] = {"quant_method": "bitsandbytes"}
        (other / "config.json").write_text(json.dumps(config))
        match = r"stored quantised \(bitsandbytes\)"
    refused(run, tmp_path / "out", match)


def test_an_adapter_that_changes_nothing_is_refused(sft_cot: Recipe, tmp_path: Path) -> None:
    words = ["--learning_rate", "1e-15", "--projector", "frozen", "--train_embeddings", "false"]
    assert sft_cot(tmp_path / "run", *words, "--epochs", "1") == 0
    refused(tmp_path / "run", tmp_path / "out", r"changes the log-probabilities .* is rounding")


@pytest.mark.parametrize("which", ["lora_A", ""])
def test_an_adapter_of_another_base_is_refused(run_dir: Path, tmp_path: Path, which: str) -> None:
    """peft warns of LoRA tensors that it cannot place, and loads the rest."""
    run = copy_of(run_dir, tmp_path / "run")
    weights = load_file(run / "adapter_model.safetensors")
    weights = {k.replace(which or "model.", f"other.{which}", 1): v for k, v in weights.items()}
    save_file(weights, run / "adapter_model.safetensors")
    changed = dataclasses.replace(manifest.load(run)[0], weights=manifest.weights_shas(run))
    changed.save(run)
    refused(run, tmp_path / "out", "does not fit its base")


@pytest.mark.parametrize("fault", ["no adapter", "swapped layers", "1.05"])
def test_a_wrong_merge_is_refused_with_both_figures(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    faulty_merge.install(monkeypatch, fault, layers=(0, 1))
    out = tmp_path / "new" / "out"
    refused(
        run_dir, out, r"the same log-probabilities: \S+ nats .* another order .* changes \S+ nats"
    )
    assert not out.parent.exists()


def test_weights_that_are_not_finite_are_refused(run_dir: Path, tmp_path: Path) -> None:
    run = copy_of(run_dir, tmp_path / "run")
    weights = load_file(run / "adapter_model.safetensors")
    weights[next(iter(weights))].fill_(float("nan"))
    save_file(weights, run / "adapter_model.safetensors")
    changed = dataclasses.replace(manifest.load(run)[0], weights=manifest.weights_shas(run))
    changed.save(run)
    refused(run, tmp_path / "out", r"logits of .* are not finite \(NaN or infinite\)")


def test_wrongly_written_weights_are_refused(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from helpers.checkpoints import llava

    right = llava.save_checkpoint

    def wrong(model: Any, processor: Any, folder: Path) -> None:
        right(model, processor, folder)
        weights = load_file(folder / "model.safetensors")
        name = next(name for name in weights if "multi_modal_projector" in name)
        weights[name] += 0.01
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    monkeypatch.setattr(llava, "save_checkpoint", wrong)
    out = tmp_path / "new" / "out"
    refused(run_dir, out, "the checkpoint read back and the merged model do not give the same")
    assert not out.parent.exists()


def test_an_interruption_leaves_nothing(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(model_card, "render", interrupted)
    with pytest.raises(KeyboardInterrupt):
        merge.merge(run_dir, tmp_path / "new" / "out")
    assert not list(tmp_path.iterdir())


KILLED = """
import os, signal, sys
from vlmface.tools import merge, model_card
model_card.render = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
merge.merge(*sys.argv[1:])
"""


def test_a_merge_removes_an_unfinished_one(run_dir: Path, tmp_path: Path) -> None:
    (tmp_path / ".out.merging").mkdir()
    (tmp_path / ".out.merging" / "model.safetensors").write_bytes(b"half")
    merge.merge(run_dir, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.slow
def test_a_merge_removes_what_a_killed_one_left(run_dir: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED, str(run_dir), str(tmp_path / "out")]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    left = {path.name for path in tmp_path.iterdir()}
    assert ".out.merging" in left and "out" not in left
    merge.merge(run_dir, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_two_merges_into_one_folder(run_dir: Path, tmp_path: Path) -> None:
    from vlmface.utils import lock

    with lock.hold(tmp_path / "out"):
        refused(run_dir, tmp_path / "out", r"out is in use by process \d+ on ")
        merge.merge(run_dir, tmp_path / "other")


# --- sending --------------------------------------------------------------------------------------


def test_nothing_is_sent_unless_it_is_asked_for(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def connect(self: Any, address: Any) -> None:
        raise AssertionError(f"connects to {address}")

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(merge, "push", lambda *_: pytest.fail("pushes"))
    assert main(["merge", str(run_dir), str(tmp_path / "out")]) == 0


def test_a_bad_name_is_refused_before_any_work(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["merge", str(run_dir), str(tmp_path / "out"), "--push", "no-owner"]) == 2
    assert "write owner/name" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.fixture
def hub() -> Iterator[tuple[str, list[tuple[str, bytes]]]]:
    """(address, requests so far) of a server that speaks as much of the hub as an upload needs."""
    requests: list[tuple[str, bytes]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def answer(self, content: dict[str, Any]) -> None:
            body = json.dumps(content).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            requests.append((self.path, b""))
            self.answer({"id": "me/faces", "sha": "0" * 40, "siblings": [], "private": True})

        def do_POST(self) -> None:
            if self.headers.get("Transfer-Encoding") == "chunked":
                body = b""
                while size := int(self.rfile.readline(), 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
            else:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            requests.append((self.path, body))
            url = f"http://127.0.0.1:{server.server_address[1]}/me/faces"
            if "/preupload/" in self.path:
                files = json.loads(body)["files"]
                plain = {"uploadMode": "regular", "shouldIgnore": False, "oid": None}
                self.answer({"files": [{"path": f["path"], **plain} for f in files]})
            elif "/commit/" in self.path:
                self.answer({"commitUrl": f"{url}/commit/{'0' * 40}", "commitOid": "0" * 40})
            else:
                self.answer({"url": url, "id": "1"})

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", requests
    server.shutdown()


def test_a_push_says_what_goes_where_and_sends_that(
    merged: Path, hub: tuple[str, list[tuple[str, bytes]]]
) -> None:
    address, requests = hub
    code = f"from vlmface.tools import merge; merge.push({str(merged)!r}, 'me/faces')"
    hub_settings = {"HF_ENDPOINT": address, "HF_TOKEN": "hf_test", "HF_HUB_OFFLINE": "0"}
    environment = os.environ | hub_settings | {"PYTHONPATH": str(ROOT), "HF_HUB_DISABLE_XET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, text=True, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    files = {str(path.relative_to(merged)) for path in merged.rglob("*") if path.is_file()}
    first, *_ = done.stdout.splitlines()
    assert first.startswith(f"sending {len(files)} files") and first.endswith(f"{address}/me/faces")
    for name in files:
        assert f"  {name}  {(merged / name).stat().st_size:,} bytes" in done.stdout
    created = next(json.loads(body) for path, body in requests if path.endswith("/repos/create"))
    assert created.get("visibility") == "private" or created.get("private") is True
    commit = next(body for path, body in requests if "/commit/" in path)
    lines = [json.loads(line) for line in commit.splitlines()]
    assert {line["value"]["path"] for line in lines if line["key"] == "file"} == files


def test_a_push_that_fails_keeps_the_model(merged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import HfApi

    def offline(*_: Any, **__: Any) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr(HfApi, "create_repo", offline)
    with pytest.raises(UserError, match=r"is complete, but could not be sent.*hf upload me/faces"):
        merge.push(merged, "me/faces")
    assert (merged / "model.safetensors").exists()
