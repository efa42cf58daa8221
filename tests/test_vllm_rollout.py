"""Rollouts by a real vLLM server: what it draws is what the trainer scores, step after step."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from helpers.fake_teacher import FakeTeacher, Reply
from helpers.run_files import training_log
from helpers.samples import FACES
from helpers.scripts import Recipe, load_script, to_argv

from vlmface import prompts
from vlmface.errors import UserError
from vlmface.rationale import rules
from vlmface.train import vllm_rollout

ROOT = Path(__file__).parent.parent
PROMPT = prompts.load("face_cot")
# vLLM has pins of its own and lives in an environment of its own.
VLLM = os.environ.get("VLLM") or shutil.which("vllm")
REAL = pytest.mark.skipif(
    VLLM is None, reason="no vLLM here: install it, or name its executable in VLLM"
)


# --- a server that misbehaves ---------------------------------------------------------------------


def server(url: str, folder: Path) -> vllm_rollout.VLLMRolloutServer:
    found = vllm_rollout.VLLMRolloutServer(url, PROMPT, folder, {"max_tokens": 8}, attempts=2)
    found.endpoint = found.endpoint.__class__(url, "", attempts=2, backoff_s=0.01)
    return found


def completion(n: int, ids: list[int], prompt: list[int]) -> Reply:
    logprobs = {"content": [{"logprob": -0.5} for _ in ids]}
    choice = {"token_ids": ids, "logprobs": logprobs, "finish_reason": "stop"}
    body = {"choices": [choice] * n, "prompt_token_ids": prompt}
    return Reply(body=json.dumps(body).encode())


def face() -> dict[str, Any]:
    from vlmface import data

    return data.load("synth", n=1).cast_column("image", _stored())[0]["image"]


def _stored() -> Any:
    from datasets import Image

    return Image(decode=False)


def test_what_is_asked_and_what_is_read(tmp_path: Path) -> None:
    with FakeTeacher(lambda asked: completion(2, [5, 6, 7], [1, 2])) as fake:
        client = server(fake.url, tmp_path)
        client.use(3)
        drawn = client.sample([[face()]], [[1, 2]], 2, seed=11)
    assert drawn.ids == [[5, 6, 7]] * 2 and drawn.log_probs == [[-0.5] * 3] * 2
    assert drawn.complete == [True, True]
    body = fake.requests[0].body
    assert (body["n"], body["seed"], body["max_tokens"]) == (2, 11, 8)
    assert body["model"] == client.name and client.name.endswith("-3")
    assert fake.requests[0].face.startswith("data:image/png")  # without loss


def test_a_server_that_is_not_what_is_trained(tmp_path: Path) -> None:
    with FakeTeacher(lambda asked: completion(2, [5], [1, 9, 9])) as fake:
        with pytest.raises(vllm_rollout.ServerGoneError, match="different from token 1 on"):
            server(fake.url, tmp_path).sample([[face()]], [[1, 2]], 2, seed=0)
        with pytest.raises(vllm_rollout.ServerGoneError, match="2 completions instead of 3"):
            server(fake.url, tmp_path).sample([[face()]], [[1, 9, 9]], 3, seed=0)


def test_a_server_that_is_gone_is_tried_again(tmp_path: Path) -> None:
    with FakeTeacher(lambda asked: Reply(status=503, body=b"busy")) as fake:
        with pytest.raises(vllm_rollout.ServerGoneError, match=r"does not answer.*503"):
            server(fake.url, tmp_path).sample([[face()]], [[1]], 2, seed=0)
        assert len(fake.requests) == 2
    with pytest.raises(vllm_rollout.ServerGoneError, match="does not answer"):
        server(fake.url, tmp_path).load(0)  # nobody listens there any more


def test_only_the_language_models_lora_can_be_handed_over(memorised: Path, tmp_path: Path) -> None:
    main = load_script("recipes/grpo.py").main  # memorised trains the projector, too
    words = {"n_train": 4, "n_eval": 2, "output_dir": tmp_path}
    with pytest.raises(UserError, match="projector: full"):
        main(to_argv({"init_from": memorised, "vllm_url": "http://127.0.0.1:1/v1"} | words))


# --- the real one ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def start(sft_cot: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a small Qwen2.5-VL with a LoRA in the language model, of heads that vLLM knows."""
    from helpers.checkpoints import qwen_vl

    folder = tmp_path_factory.mktemp("qwen")
    corpus = [rules.write(aus, emotion, seed=seed) for aus, emotion in FACES for seed in range(20)]
    corpus += [str(PROMPT.messages())] * 20
    qwen_vl.build_tiny(folder / "base", corpus, head=32, vision_width=64)
    words = {
        "base_model": folder / "base",
        "vision_tower": "frozen",
        "projector": "frozen",
        "n_eval": 2,
        "train_embeddings": "false",
        "epochs": 10,
        "lora_dropout": 0.0,
    }
    assert sft_cot(folder / "run", *to_argv(words)) == 0
    return folder / "run"


class Vllm:
    """`vllm serve` of the base, which can be killed and started again on its port."""

    def __init__(self, base: Path, log: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self.base, self.log = base, log

    def __enter__(self) -> Vllm:
        environment = os.environ | {
            "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
        }
        environment.pop("OMP_NUM_THREADS", None)
        environment["PATH"] = f"{Path(str(VLLM)).parent}:{environment['PATH']}"
        words = [
            "serve",
            str(self.base),
            "--dtype",
            "float32",
            "--enforce-eager",
            "--port",
            str(self.port),
            "--max-model-len",
            "512",
            "--max-num-seqs",
            "16",
            "--limit-mm-per-prompt",
            '{"image":1,"video":0}',
            "--enable-lora",
            "--max-lora-rank",
            "32",
            "--logprobs-mode",
            "processed_logprobs",
        ]
        self.process = subprocess.Popen(
            [str(VLLM), *words],
            env=environment,
            start_new_session=True,
            stdout=self.log.open("ab"),
            stderr=subprocess.STDOUT,
        )
        deadline = time.monotonic() + 400
        while True:
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            assert time.monotonic() < deadline, self.log.read_text()[-3000:]
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=2)
                return self
            except OSError:
                time.sleep(0.5)

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


@pytest.fixture(scope="module")
def vllm(start: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vllm]:
    with Vllm(start.parent / "base", tmp_path_factory.mktemp("vllm") / "log") as running:
        yield running


def words(start: Path, url: str, output: Path, **changes: Any) -> list[str]:
    fixed = {
        "init_from": start,
        "vllm_url": url,
        "output_dir": output,
        "n_train": 8,
        "n_eval": 2,
        "num_generations": 4,
        "batch_size": 2,
        "max_steps": 4,
        "save_steps": 2,
        "warmup_steps": 0,
        "max_new_tokens": 40,
        "learning_rate": 1e-2,
        "lr_scheduler": "constant",
        "max_logprob_drift": 1e-4,
        "rewards": "{repetition: 1, length_penalty: {words: 5}}",
    }
    return to_argv(fixed | changes)


def log(folder: Path) -> list[dict[str, Any]]:
    return training_log(folder)


@REAL
@pytest.mark.slow
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_server_draws_from_the_policy_that_is_trained(
    start: Path, vllm: Vllm, tmp_path: Path, temperature: float
) -> None:
    assert (
        load_script("recipes/grpo.py").main(
            words(start, vllm.url, tmp_path, temperature=temperature)
        )
        == 0
    )
    lines = log(tmp_path)
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    # The weights move, and the server with them: a stale adapter would be off by far more.
    assert lines[0]["grad_norm"] > 1e-4 and lines[2]["grad_norm"] > 1e-4
    assert all(line["rollout_drift"] < 1e-5 for line in lines)
    # Nothing is left behind.
    assert not (tmp_path / "rollout").exists()
    names = [m["id"] for m in httpx2.get(f"{vllm.url}/models").json()["data"]]
    assert not any(name.startswith("vlmface-") for name in names)


@REAL
@pytest.mark.slow
def test_a_stale_adapter_would_be_noticed(
    start: Path, vllm: Vllm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = vllm_rollout.VLLMRolloutServer.load

    def once(self: vllm_rollout.VLLMRolloutServer, step: int) -> None:
        if step == 0:
            original(self, step)

    def stay(self: vllm_rollout.VLLMRolloutServer, step: int) -> None:
        self.name = f"{self.prefix}0"

    monkeypatch.setattr(vllm_rollout.VLLMRolloutServer, "load", once)
    monkeypatch.setattr(vllm_rollout.VLLMRolloutServer, "use", stay)
    with pytest.raises(UserError, match="differ from the rollout's"):
        load_script("recipes/grpo.py").main(words(start, vllm.url, tmp_path))


@REAL
@pytest.mark.slow
def test_a_server_that_dies_stops_the_run_with_a_checkpoint(
    start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = Vllm(start.parent / "base", tmp_path / "log")
    run: Callable[[list[str]], int] = load_script("recipes/grpo.py").main
    asked = words(start, running.url, tmp_path / "run")
    original = vllm_rollout.VLLMRolloutServer.load

    def dies(self: vllm_rollout.VLLMRolloutServer, step: int) -> None:
        if step == 3:
            running.__exit__()
        original(self, step)

    with monkeypatch.context() as patch, running:
        patch.setattr(vllm_rollout.VLLMRolloutServer, "load", dies)
        with pytest.raises(vllm_rollout.ServerGoneError, match="The 3 steps so far are kept"):
            run(asked)
    assert (tmp_path / "run" / "checkpoints" / "checkpoint-3" / "complete").exists()
    with running:
        assert run(asked) == 0
    assert [line["step"] for line in log(tmp_path / "run")] == [1, 2, 3, 4]
    assert all(line["rollout_drift"] < 1e-5 for line in log(tmp_path / "run"))
