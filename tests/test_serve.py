"""vlmface serve: the command that follows from a manifest, and a real vLLM that is held against the
run before it is called ready."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import pytest
from helpers.run_files import read_metrics
from helpers.samples import picture
from helpers.scripts import Recipe

from vlmface import manifest
from vlmface.cli import main
from vlmface.errors import UserError
from vlmface.evaluate import run as evaluation
from vlmface.infer import Predictor
from vlmface.serving import parity, vllm
from vlmface.serving import plan as serve_plan
from vlmface.serving.parity import Generation
from vlmface.utils.images import data_uri

VLLM = os.environ.get("VLLM") or shutil.which("vllm")
REAL = pytest.mark.skipif(
    VLLM is None, reason="no vLLM here: install it, or name its executable in VLLM"
)
PICTURES = [picture(seed, (40 + seed, 40)) for seed in range(32)]
LLM_ONLY = (
    "--vision_tower",
    "frozen",
    "--projector",
    "frozen",
    "--train_embeddings",
    "false",
    "--lora_dropout",
    "0",
    "--learning_rate",
    "2e-2",
    "--epochs",
    "8",
)


@pytest.fixture(scope="module")
def adapters(sft_cot: Recipe, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two runs on one base that train the LoRA of the language model alone."""
    folder = tmp_path_factory.mktemp("adapters")
    for seed, name in enumerate(("one", "two")):
        assert sft_cot(folder / name, *LLM_ONLY, "--seed", str(seed)) == 0
    return [folder / "one", folder / "two"]


def plan(*runs: Any, **how: Any) -> serve_plan.ServePlan:
    fixed: dict[str, Any] = {"vllm": "vllm", "host": "127.0.0.1", "port": 8000, "gpu": False}
    return serve_plan.make_plan([str(run) for run in runs], serve_plan.ServeOptions(**fixed | how))


def flag(made: serve_plan.ServePlan, name: str) -> str:
    return made.command[made.command.index(f"--{name}") + 1]


# --- the command ----------------------------------------------------------------------------------


def test_what_vllm_would_leave_out_is_merged(run_dir: Path) -> None:
    """`run_dir` trains the tower, too."""
    made = plan(run_dir)
    assert not made.adapters and "--enable-lora" not in made.command
    found, _ = manifest.load(made.weights)
    assert not found.adapter and flag(made, "served-model-name") == run_dir.name
    before = made.weights.stat().st_mtime_ns
    assert plan(run_dir).weights.stat().st_mtime_ns == before  # merged once
    assert plan(made.weights).weights == made.weights  # what is merged is served as it is
    config = json.loads((made.weights / "config.json").read_text())["text_config"]
    limit = found.max_length + found.generation["max_new_tokens"]
    assert int(flag(made, "max-model-len")) == min(limit, config["max_position_embeddings"])


def test_adapters_share_their_base(adapters: list[Path]) -> None:
    made = plan(adapters[0], f"second={adapters[1]}", words=["--max-num-seqs", "7"])
    at = made.command.index("--lora-modules")
    assert made.command[at + 1 : at + 3] == [f"one={adapters[0]}", f"second={adapters[1]}"]
    rank = json.loads((adapters[0] / "adapter_config.json").read_text())["r"]
    assert int(flag(made, "max-lora-rank")) >= rank and flag(made, "max-loras") == "2"
    assert made.weights == manifest.resolve_base(manifest.load(adapters[0])[0], adapters[0])
    assert flag(made, "dtype") == "float32" and "--enforce-eager" in made.command
    assert made.command[-2:] == ["--max-num-seqs", "7"]  # the user's come last
    gpu = plan(adapters[0], gpu=True)
    assert flag(gpu, "dtype") == "bfloat16" and "--enforce-eager" not in gpu.command
    assert "VLLM_CPU_KVCACHE_SPACE" not in gpu.environment
    assert gpu.environment["VLLM_NO_USAGE_STATS"] == "1"


def test_a_dry_run_prints_and_starts_nothing(
    run_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("VLMFACE_CACHE", str(tmp_path / "cache"))
    assert main(["serve", str(run_dir), "--dry-run", "--port", "9", "--max-num-seqs", "3"]) == 0
    line = capsys.readouterr().out.strip().splitlines()[-1]
    assert "vllm serve " in line and "--port 9" in line and "--max-num-seqs 3" in line
    assert not (tmp_path / "cache" / "merged").exists()


def test_what_cannot_be_served_together(
    adapters: list[Path], run_dir: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"finished cannot be served as an adapter"):
        plan(adapters[0], run_dir)
    with pytest.raises(UserError, match=r"two models would be called one: name them"):
        plan(adapters[0], adapters[0])
    other = shutil.copytree(adapters[0], tmp_path / "other")
    written = json.loads((other / "vlmface.json").read_text())
    written["base_model"]["sha"] = "0" * 12
    (other / "vlmface.json").write_text(json.dumps(written))
    with pytest.raises(UserError, match="trained on different base models"):
        plan(adapters[0], other)
    with pytest.raises(UserError, match="not a finished vlmface run"):
        plan(tmp_path)


def test_a_key_is_no_word_of_the_command(
    adapters: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="put the key into the environment variable VLLM_API_KEY"):
        plan(adapters[0], words=["--api-key=secret"])
    asked: list[Any] = []

    def post(*_: Any, headers: dict[str, str], **__: Any) -> Any:
        asked.append(headers)
        return httpx2.Response(401, text="no")

    monkeypatch.setattr(httpx2, "post", post)
    monkeypatch.setenv("VLLM_API_KEY", "secret")
    made = plan(adapters[0])
    with pytest.raises(UserError, match="the server rejects one: no"):
        parity.generate_remote(made, "one", adapters[0], PICTURES[:1])
    assert asked == [{"Authorization": "Bearer secret"}]
    assert "secret" not in made.as_shell() + vllm.curl_example(made)
    assert "Bearer $VLLM_API_KEY" in vllm.curl_example(made)


def test_a_missing_or_old_vllm(tmp_path: Path) -> None:
    message = r"executable .*nowhere was not found.*environment of its own"
    with pytest.raises(UserError, match=message):
        vllm.find_vllm(str(tmp_path / "nowhere"))
    old = tmp_path / "vllm"
    # A Python that says what an old vLLM's would.
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 0.6.1\n")
    python.chmod(0o755)
    old.write_text(f"#!{python}\n")
    old.chmod(0o755)
    with pytest.raises(UserError, match=r"is vLLM 0\.6\.1: use 0\.32 or newer"):
        vllm.check_version(vllm.find_vllm(str(old)))
    old.write_text(f"#!{sys.executable}\n")
    with pytest.raises(UserError, match="cannot read the version"):
        vllm.check_version(str(old))


def test_a_server_that_stops_says_why(adapters: list[Path], tmp_path: Path) -> None:
    broken = tmp_path / "vllm"
    broken.write_text("#!/bin/sh\necho no such device >&2\nexit 3\n")
    broken.chmod(0o755)
    made = plan(adapters[0], vllm=str(broken))
    with (
        pytest.raises(UserError, match=r"vLLM stopped(?s:.*)no such device"),
        vllm.running_server(made, tmp_path / "log"),
    ):
        pass


# --- parity ---------------------------------------------------------------------------------------

# Rounding moves a token by 4e-5 nats in the mean and by 1e-4 at most: 1.6e-4 and 4e-4 are allowed,
# and twice the latter between two tokens.
GOOD = Generation(
    [1, 2], [5, 6, 7], [-0.1, -0.2, -0.3], [2.0, 1.0, 0.0005], rounding=[1e-5, 1e-5, 1e-4]
)


def behind(**changes: Any) -> list[Generation]:
    return [dataclasses.replace(GOOD, **changes)]


def test_rounding_is_no_difference() -> None:
    assert parity.check_parity([GOOD], [GOOD], "run") == 0
    near = behind(log_probs=[-0.10005, -0.2, -0.3])
    assert parity.check_parity([GOOD], near, "run") == pytest.approx(5e-5 / 3)
    assert parity.check_parity([GOOD], behind(ids=[5, 6, 8]), "run") == 0  # a tie


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"prompt": [1, 3]}, "another prompt .*different from token 1 on"),
        ({"prompt": [1, 2, 2]}, "3 tokens instead of 2, different from token 2 on"),
        ({"ids": [5, 9, 7]}, r"from token 1 on, where the run's margin is 1 nats"),
        ({"ids": [5]}, "from token 1 on"),
        ({"ids": [5, 6, 7, 8], "log_probs": [-0.1, -0.2, -0.3, -1.0]}, "from token 3 on"),
        ({"log_probs": [-0.1, -0.2, -0.4]}, r"3\.33e-02 nats a token away"),
        ({"log_probs": [-0.1, -0.2, -0.3006]}, r"2\.00e-04 nats .* \(1\.6e-04 is rounding\)"),
        ({"log_probs": [-0.1, -0.2, -float("inf")]}, "inf nats a token away"),
        ({"log_probs": [-0.1, -0.2, float("nan")]}, "nan nats a token away"),
    ],
)
def test_a_server_that_is_not_the_run(changes: dict[str, Any], why: str) -> None:
    with pytest.raises(UserError, match=why):
        parity.check_parity([GOOD], behind(**changes), "run")


def test_what_is_compared_is_what_the_run_answers(run_dir: Path) -> None:
    here = parity.generate_local(run_dir, PICTURES[:2], "float32")
    with Predictor.load(run_dir) as predictor:
        said = predictor.predict(PICTURES[:2], faces="none")
    tokenizer = predictor.backend.model.processor.tokenizer  # type: ignore[attr-defined]
    for one, report in zip(here, said, strict=True):
        assert tokenizer.decode(one.ids, skip_special_tokens=True).strip() == report.primary.text
        assert len(one.ids) == len(one.log_probs) == len(one.margins)
        assert all(value <= 0 for value in one.log_probs) and min(one.margins) >= 0


def test_an_adapter_without_effect_is_noticed(
    adapters: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = plan(adapters[0])
    monkeypatch.setattr(parity, "generate_remote", lambda *a: behind())
    for there in (behind(), behind(log_probs=[-0.10005, -0.2, -0.3])):  # rounding is no effect
        with pytest.raises(UserError, match="the adapter of one has no effect"):
            parity.check_adapter_active(made, "one", [GOOD], there, PICTURES[:1])
    with pytest.raises(UserError, match="the adapter of one has no effect"):
        parity.check_adapter_active(made, "one", [GOOD], behind(log_probs=[float("nan")] * 3), [])
    parity.check_adapter_active(made, "one", [GOOD], behind(log_probs=[-0.2, -0.2, -0.3]), [])
    parity.check_adapter_active(made, "one", [GOOD], behind(ids=[5, 6, 8]), [])


# --- the real one ---------------------------------------------------------------------------------


class Served:
    """The command, as a user runs it, until it says that it is ready."""

    def __init__(self, *runs: str, port: int | None = None) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = port or probe.getsockname()[1]
        words = [
            sys.executable,
            "-m",
            "vlmface.cli",
            "serve",
            *runs,
            "--port",
            str(self.port),
            "--vllm",
            str(VLLM),
            "--max_num_seqs",
            "16",
        ]
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self.process = subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.said = ""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said += line
            if line.startswith("printf"):
                self.curl = line
                break

    def __enter__(self) -> Served:
        assert self.process.poll() is None and "ready: " in self.said, self.said[-3000:]
        return self

    def __exit__(self, *_: object) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)


@pytest.fixture(scope="module")
def server(adapters: list[Path]) -> Iterator[Served]:
    with Served(str(adapters[0]), f"second={adapters[1]}") as running:
        yield running


@REAL
@pytest.mark.slow
def test_two_adapters_answer_as_their_runs(server: Served, adapters: list[Path]) -> None:
    assert server.said.count("the same prompts and answers as in this process") == 2
    answers = []
    for name, run in zip(("one", "second"), adapters, strict=True):
        with (
            Predictor.load(server.url, run_dir=run, served_model_name=name) as there,
            Predictor.load(run) as here,
        ):
            found = [report.primary.text for report in there.predict(PICTURES, faces="none")]
            expected = [report.primary.text for report in here.predict(PICTURES, faces="none")]
            assert sum(a == b for a, b in zip(found, expected, strict=True)) >= 31
            *pieces, last = there.stream(PICTURES[0], faces="none")
            assert len(pieces) > 1 and not isinstance(last, str) and last.primary.text == found[0]
        answers.append(found)
    assert answers[0] != answers[1]


@REAL
@pytest.mark.slow
def test_figures_behind_the_server_are_the_local_ones(
    server: Served, adapters: list[Path], tmp_path: Path
) -> None:
    words = ["--benchmark", "synth", "--n", "32"]
    local = [*words, "--model", str(adapters[0]), "--output_dir", str(tmp_path / "here")]
    there = [
        *words,
        "--model",
        server.url,
        "--run_dir",
        str(adapters[0]),
        "--served_model_name",
        "one",
        "--output_dir",
        str(tmp_path / "there"),
    ]
    assert evaluation.main(local) == 0 and evaluation.main(there) == 0
    here, served = (read_metrics(tmp_path / name) for name in ("here", "there"))
    for part in ("emotion", "au", "parse"):
        assert here[part] == served[part]


@REAL
@pytest.mark.slow
def test_a_server_can_be_held_to_the_form(server: Served, adapters: list[Path]) -> None:
    with Predictor.load(
        server.url, prompt="facescan_emotion", served_model_name="one", guided_decoding=True
    ) as predictor:
        found = predictor.predict(PICTURES[:8], faces="none")
    assert {(report.status, report.primary.complete) for report in found} == {("strict", True)}
    with Predictor.load(
        server.url,
        run_dir=adapters[0],
        served_model_name="one",
        guided_decoding=True,
        max_new_tokens=20,
    ) as predictor:  # which may write anything between the tags, as long as it likes
        found = predictor.predict(PICTURES[:8], faces="none")
    assert all(report.primary.text.startswith("<think>") for report in found)


@REAL
@pytest.mark.slow
def test_the_printed_curl_line_works(server: Served, tmp_path: Path) -> None:
    PICTURES[0].save(tmp_path / "FACE.png")
    done = subprocess.run(["bash", "-c", server.curl], cwd=tmp_path, capture_output=True, text=True)
    assert json.loads(done.stdout)["choices"][0]["message"]["content"], done.stdout


@REAL
@pytest.mark.slow
def test_many_clients_one_that_hangs_up_and_nonsense(server: Served, adapters: list[Path]) -> None:
    stop = threading.Event()

    def hang_up() -> None:
        body = {"model": "one", "stream": True, "messages": [{"role": "user", "content": "?"}]}
        while not stop.is_set():
            with httpx2.stream("POST", f"{server.url}/chat/completions", json=body) as reply:
                next(reply.iter_lines(), None)
            time.sleep(0.05)

    thread = threading.Thread(target=hang_up)
    thread.start()
    with Predictor.load(
        server.url, run_dir=adapters[0], served_model_name="one", concurrency=32
    ) as predictor:
        with ThreadPoolExecutor(32) as pool:
            reports = pool.map(partial(predictor.predict, faces="none"), PICTURES)
            found = [report.primary.text for report in reports]
        stop.set()
        thread.join()
        assert found == [
            report.primary.text for report in predictor.predict(PICTURES, faces="none")
        ]
    for body in (b"{", b"[]", b'{"model": "one"}', b'{"model": "none", "messages": []}'):
        reply = httpx2.post(
            f"{server.url}/chat/completions",
            content=body,
            headers={"Content-Type": "application/json"},
        )
        assert 400 <= reply.status_code < 500
    bad = {
        "role": "user",
        "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}],
    }
    reply = httpx2.post(f"{server.url}/chat/completions", json={"model": "one", "messages": [bad]})
    assert reply.status_code >= 400
    assert httpx2.get(f"{server.url.removesuffix('/v1')}/health").status_code == 200
    assert data_uri(PICTURES[0], image_format="PNG").startswith("data:image/png")


@REAL
@pytest.mark.slow
def test_requests_outlive_a_restart(adapters: list[Path]) -> None:
    with Predictor.load(adapters[0]) as here:
        expected = [report.primary.text for report in here.predict(PICTURES[:8], faces="none")]
    first = Served(str(adapters[0]))
    found: list[str] = []

    def ask() -> None:
        how: dict[str, Any] = {"run_dir": adapters[0], "served_model_name": "one", "attempts": 12}
        with Predictor.load(first.url, **how) as there:
            begun.set()
            while len(found) < 8 or not again.is_set():
                image = PICTURES[len(found) % 8]
                found.append(there.predict(image, faces="none").primary.text)

    begun, again = threading.Event(), threading.Event()
    thread = threading.Thread(target=ask)
    with first:
        thread.start()
        begun.wait(60)
        time.sleep(1)
    with Served(str(adapters[0]), port=first.port):
        again.set()
        thread.join(180)
    assert not thread.is_alive()
    assert all(len(set(found[i::8])) == 1 for i in range(8))  # before and after
    # Random weights are now and then undecided between two tokens.
    assert sum(a == b for a, b in zip(found, expected, strict=False)) >= 7
