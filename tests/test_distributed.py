"""Two processes on a CPU under every launch configuration: the same losses and the same model as
one process at the same global batch, and runs that go on after an interruption.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from helpers.checkpoints import llava
from helpers.run_files import contents, read_metrics, training_log
from helpers.samples import picture, samples
from helpers.scripts import ROOT, Recipe, environment, launcher, to_argv
from helpers.training import sft_settings

from vlmface import encode, prompts
from vlmface.errors import UserError
from vlmface.evidence import NOT_MEASURED
from vlmface.infer.local import LocalModel
from vlmface.train import checks
from vlmface.train.rows import encode_rows
from vlmface.train.settings import SFTSettings
from vlmface.utils import distributed

pytestmark = pytest.mark.distributed
FAULTY = "tests/distributed/faulty_sft.py"
CONFIGS = sorted((ROOT / "recipes/accelerate").glob("*.yaml"))
FULL = ("--vision_tower", "full", "--projector", "full", "--language_model", "full")
LORA = (
    "--vision_tower",
    "lora",
    "--projector",
    "full",
    "--language_model",
    "lora",
    "--lora_dropout",
    "0",
)
# 16 faces, 2 epochs at a global batch of 8: 4 steps, with a checkpoint in the middle.
SHORT = {
    "n_train": 16,
    "n_eval": 4,
    "epochs": 2,
    "learning_rate": 3e-3,
    "warmup_steps": 0,
    "train_embeddings": "false",
    "cache_features": "false",
    "logging_steps": 1,
    "save_steps": 2,
    "max_new_tokens": 4,
}
WORDS = tuple(to_argv(SHORT))

Launch = Callable[..., subprocess.CompletedProcess[str]]
Words = tuple[str, ...]
Runs = dict[Words, Path]


@pytest.fixture(scope="module")
def launch(base: Path) -> Launch:
    """Start the recipe in two processes with a configuration of recipes/accelerate."""

    def start(
        config: str, output_dir: Path, *words: str, script: str = "recipes/sft_cot.py", **env: str
    ) -> subprocess.CompletedProcess[str]:
        command = [
            *launcher(config),
            *(str(ROOT / script), "--base_model", str(base), "--output_dir", str(output_dir)),
            *("--batch_size", "4", *WORDS, *words),
        ]
        return subprocess.run(
            command,
            env=environment(**env),
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )

    return start


def succeeded(result: subprocess.CompletedProcess[str]) -> None:
    assert result.returncode == 0, result.stderr[-20_000:]


def log(folder: Path, name: str) -> list[float]:
    return [line[name] for line in training_log(folder)]


def trained(folder: Path) -> dict[str, Any]:
    return read_metrics(folder)["train"]


def logits(folder: Path) -> torch.Tensor:
    """(tokens, vocabulary) of one picture with an answer, by the model in a run folder."""
    predictor = LocalModel.load(folder)
    target = "<think>Brows up.</think><answer>fear</answer>"
    row = encode.encode(predictor.processor, llava, predictor.messages, picture(3), target)
    batch = encode.Collator(predictor.processor, llava)([row])
    batch.pop("labels")
    with torch.no_grad():
        return predictor.model(**batch).logits[0]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    (file,) = folder.glob("*model.safetensors")
    return load_file(file)


def agree(found: Path, expected: Path) -> None:
    """Two runs are the same to 1e-3: losses, gradients, what was trained, and the model."""
    assert len(log(expected, "loss")) == 4
    assert log(found, "loss") == pytest.approx(log(expected, "loss"), abs=1e-3)
    assert log(found, "grad_norm") == pytest.approx(log(expected, "grad_norm"), abs=1e-3)
    for name in ("trainable", "trainable_sha", "parameters", "steps"):
        assert trained(found)[name] == trained(expected)[name], name
    mine, theirs = weights(found), weights(expected)
    assert mine.keys() == theirs.keys()
    assert max((mine[name] - theirs[name]).abs().max().item() for name in mine) < 1e-3
    assert torch.allclose(logits(found), logits(expected), atol=1e-3)


@pytest.fixture(scope="module")
def alone(sft_cot: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """The same runs in one process with twice the batch."""
    folder = tmp_path_factory.mktemp("alone")
    runs = {FULL: folder / "full", LORA: folder / "lora"}
    for words, path in runs.items():
        assert sft_cot(path, "--batch_size", "8", *WORDS, *words) == 0
    return runs


# --- the configurations ---------------------------------------------------------------------------


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_configuration_says_how_it_is_started(path: Path) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    first = path.read_text().splitlines()[0]
    assert first.startswith(f"# accelerate launch --config_file recipes/accelerate/{path.name} ")
    load_config_from_file(str(path))  # refuses unknown fields
    assert yaml.safe_load(path.read_text())["num_machines"] == 1


def test_all_configurations_are_there() -> None:
    assert [path.stem for path in CONFIGS] == ["cpu", "ddp", "fsdp2", "zero2", "zero3"]


# --- equal losses, equal models -------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("config", ["ddp", "zero2", "zero3"])
@pytest.mark.parametrize("words", [FULL, LORA], ids=["full", "lora"])
def test_two_processes_train_as_one_does(
    config: str, words: Words, launch: Launch, alone: Runs, tmp_path: Path
) -> None:
    succeeded(launch(config, tmp_path, *words))
    agree(tmp_path, alone[words])
    checkpoint = tmp_path / "checkpoints" / "checkpoint-4"
    sharded = config != "ddp"
    assert (checkpoint / "global_step4").exists() == sharded  # DeepSpeed did run, or did not


@pytest.mark.slow
@pytest.mark.parametrize("words", [FULL, LORA], ids=["full", "lora"])
def test_fsdp2_trains_as_one_process_does(
    words: Words, launch: Launch, alone: Runs, tmp_path: Path
) -> None:
    succeeded(launch("fsdp2", tmp_path, *words, script=FAULTY, FSDP_ON_CPU="1"))
    agree(tmp_path, alone[words])
    assert (tmp_path / "checkpoints" / "checkpoint-4" / "pytorch_model_fsdp.bin").exists()


@pytest.mark.slow
def test_accumulated_steps_are_the_same_steps(
    launch: Launch, sft_cot: Recipe, tmp_path: Path
) -> None:
    """2 processes x 2 rows x 2 accumulated: rows of different lengths share one denominator."""
    words = (*FULL, "--gradient_accumulation", "2")
    assert sft_cot(tmp_path / "one", *WORDS, *words, "--batch_size", "4") == 0
    for config in ("zero2", "zero3"):
        succeeded(launch(config, tmp_path / config, *words, "--batch_size", "2"))
        agree(tmp_path / config, tmp_path / "one")


@pytest.mark.slow
def test_trained_embeddings_under_zero2(launch: Launch, sft_cot: Recipe, tmp_path: Path) -> None:
    words = (*LORA, "--train_embeddings", "true")
    assert sft_cot(tmp_path / "one", "--batch_size", "8", *WORDS, *words) == 0
    succeeded(launch("zero2", tmp_path / "two", *words))
    agree(tmp_path / "two", tmp_path / "one")


@pytest.mark.slow
@pytest.mark.parametrize("config", ["ddp", "zero2"])
def test_nf4_in_two_processes(config: str, launch: Launch, sft_cot: Recipe, tmp_path: Path) -> None:
    words = (*LORA, "--quantization", "nf4")
    assert sft_cot(tmp_path / "one", "--batch_size", "8", *WORDS, *words) == 0
    succeeded(launch(config, tmp_path / "two", *words))
    agree(tmp_path / "two", tmp_path / "one")


# --- validation -----------------------------------------------------------------------------------

VALIDATION = (
    *("--eval_steps", "1", "--eval_generate_steps", "2", "--validation_split", "validation"),
    *("--n_validation", "5", "--n_generate", "3", "--metric_for_best_model", "accuracy"),
)


@pytest.fixture(scope="module")
def validated(sft_cot: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Runs in one process. All answers are cut off and wrong, so the first evaluation of answers,
    after half of the steps, is the best."""
    folder = tmp_path_factory.mktemp("validated")
    runs = {FULL: folder / "full", LORA: folder / "lora"}
    for words, path in runs.items():
        assert sft_cot(path, "--batch_size", "8", *WORDS, *words, *VALIDATION) == 0
        assert trained(path)["best"]["step"] == 2
    return runs


@pytest.mark.slow
@pytest.mark.parametrize("config", ["ddp", "zero2", "zero3", "fsdp2"])
@pytest.mark.parametrize("words", [FULL, LORA], ids=["full", "lora"])
def test_two_processes_validate_as_one_does(
    config: str,
    words: Words,
    launch: Launch,
    validated: Runs,
    tmp_path: Path,
) -> None:
    env = {"script": FAULTY, "FSDP_ON_CPU": "1"} if config == "fsdp2" else {}
    succeeded(launch(config, tmp_path, *words, *VALIDATION, **env))
    alone = validated[words]
    for found, expected in zip(training_log(tmp_path), training_log(alone), strict=True):
        assert found.keys() == expected.keys()
        for name in expected.keys() - {"elapsed_s", "grad_norm"}:
            assert found[name] == pytest.approx(expected[name], rel=1e-3, abs=1e-3), name
    assert trained(tmp_path)["best"]["step"] == trained(alone)["best"]["step"]
    mine, theirs = weights(tmp_path), weights(alone)
    assert mine.keys() == theirs.keys()
    assert max((mine[name] - theirs[name]).abs().max().item() for name in mine) < 1e-3


# --- going on -------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "words"),
    [("zero2", FULL), ("zero2", LORA), ("zero3", FULL), ("fsdp2", FULL)],
    ids=["zero2-full", "zero2-lora", "zero3-full", "fsdp2-full"],
)
def test_resumed_equals_uninterrupted(
    config: str, words: Words, launch: Launch, alone: Runs, tmp_path: Path
) -> None:
    """Stopped in step 4, after 3; the last checkpoint is of step 2."""
    env = {"script": FAULTY} | ({"FSDP_ON_CPU": "1"} if config == "fsdp2" else {})
    stopped = launch(config, tmp_path, *words, **env, STOP_AT="4")
    assert stopped.returncode != 0 and "interrupted; run the same command again" in stopped.stderr
    assert log(tmp_path, "step") == [1, 2, 3]
    assert not (tmp_path / "metrics.json").exists()
    went_on = launch(config, tmp_path, *words, **env)
    succeeded(went_on)
    assert f"resuming from {tmp_path / 'checkpoints' / 'checkpoint-2'}" in went_on.stdout
    assert log(tmp_path, "step") == [1, 2, 3, 4]
    agree(tmp_path, alone[words])


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["NAN_AT", "INF_AT"])
@pytest.mark.parametrize("config", ["ddp", "zero2", "zero3", "fsdp2"])
def test_all_processes_stop_where_one_diverges(
    config: str, fault: str, launch: Launch, tmp_path: Path
) -> None:
    env = {"script": FAULTY} | ({"FSDP_ON_CPU": "1"} if config == "fsdp2" else {})
    started = time.monotonic()
    stopped = launch(config, tmp_path, *FULL, **env, **{fault: "4"})
    assert time.monotonic() - started < 300
    assert stopped.returncode != 0
    lines = [line for line in stopped.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert re.match("error: the (loss|gradient norm) is (nan|inf) at step 4", lines[0])
    assert log(tmp_path, "step") == [1, 2, 3]
    assert [path.parent.name for path in tmp_path.glob("checkpoints/*/complete")] == [
        "checkpoint-2"
    ]
    assert not list(tmp_path.glob("*.safetensors")) and not (tmp_path / "vlmface.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("config", ["ddp", "zero2"])
def test_a_run_of_two_processes_is_resumed_by_two_with_all_their_files(
    config: str, launch: Launch, sft_cot: Recipe, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    stopped = launch(config, folder, *FULL, script=FAULTY, STOP_AT="4")
    assert stopped.returncode != 0
    before = contents(tmp_path)
    base = settings_of(folder)["base_model"]
    alone = ("--base_model", base, "--batch_size", "4", *WORDS, *FULL)
    with pytest.raises(UserError, match="with processes 2, but now it is 1"):
        sft_cot(folder, *alone)
    checkpoint = folder / "checkpoints" / "checkpoint-2"
    of_ranks = ["rng_state_0.pth", "rng_state_1.pth"]
    if config == "zero2":
        shards = sorted((checkpoint / "global_step2").iterdir())
        of_ranks += [path.relative_to(checkpoint).as_posix() for path in shards]
    for name in of_ranks:
        whole = (checkpoint / name).read_bytes()
        (checkpoint / name).unlink()
        with pytest.raises(UserError, match=f"{name} is missing"):
            sft_cot(folder, *alone)
        (checkpoint / name).write_bytes(whole)
    (checkpoint / of_ranks[-1]).write_bytes(whole[:-1])
    refused = launch(config, folder, *FULL)
    assert refused.returncode != 0 and f"{of_ranks[-1]} has {len(whole) - 1} " in refused.stderr
    assert refused.stderr.count("error: ") == 1
    (checkpoint / of_ranks[-1]).write_bytes(whole)
    other = launch("zero2" if config == "ddp" else "ddp", folder, *FULL)
    assert other.returncode != 0 and "was started with sharding " in other.stderr
    assert contents(tmp_path) == before
    succeeded(launch(config, folder, *FULL))


@pytest.mark.slow
def test_two_launches_in_one_folder(launch: Launch, tmp_path: Path) -> None:
    from vlmface.utils import lock

    with lock.hold(tmp_path / "run"):
        refused = launch("ddp", tmp_path / "run", *FULL)
    assert refused.returncode != 0 and f"in use by process {os.getpid()} on" in refused.stderr
    assert refused.stderr.count("error: ") == 1
    assert not list(tmp_path.iterdir())


def settings_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "settings.json").read_text())


def test_a_run_says_what_it_trained(run_dir: Path) -> None:
    found = trained(run_dir)
    notes = [json.loads(file.read_text()) for file in run_dir.glob("checkpoints/*/complete")]
    (sha,) = {note["trainable_sha"] for note in notes}
    assert found["trainable_sha"] == sha and len(sha) == 12


# --- several machines -----------------------------------------------------------------------------

SCONTROL = """#!/bin/bash
[ "$*" = "show hostnames node[1-2]" ] && printf '127.0.0.1\\nnode2\\n'
"""
SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do shift; done
SLURM_NODEID=1 "$@" & other=$!
SLURM_NODEID=0 "$@" && wait $other
"""


@pytest.mark.slow
def test_the_slurm_script_trains_on_two_nodes(base: Path, alone: Runs, tmp_path: Path) -> None:
    """Both nodes of the job are this machine; scontrol and srun do what Slurm's do."""
    for name, text in (("scontrol", SCONTROL), ("srun", SRUN)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "PATH": f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_NNODES": "2",
        "GPUS_PER_NODE": "1",
        "MAIN_PORT": str(port),
        "ACCELERATE_CONFIG": "recipes/accelerate/zero2.yaml",
    }
    words = [
        "--base_model",
        str(base),
        "--output_dir",
        str(tmp_path / "run"),
        "--num_processes",
        "2",
    ]
    result = subprocess.run(
        ["recipes/slurm.sh", "recipes/sft_cot.py", *words, "--batch_size", "4", *WORDS, *LORA],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    succeeded(result)
    agree(tmp_path / "run", alone[LORA])


def test_the_slurm_script_says_what_it_lacks(tmp_path: Path) -> None:
    (tmp_path / "scontrol").write_text("#!/bin/bash\necho node1\n")
    (tmp_path / "scontrol").chmod(0o755)

    def complaint(*words: str) -> str:
        environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "1"}
        command = ["bash", str(ROOT / "recipes/slurm.sh"), *words]
        result = subprocess.run(
            command,
            env=environment | {"SLURM_JOB_NODELIST": "node1"},
            capture_output=True,
            text=True,
        )
        assert result.returncode != 0
        return result.stderr

    assert "error: say which recipe" in complaint()
    assert "no GPUs in this job: pass --gpus-per-node" in complaint("recipes/sft_cot.py")


# --- what ranks must not differ in ----------------------------------------------------------------


def test_every_row_has_an_image(processor: Any) -> None:
    """Under ZeRO-3 each layer is gathered by all processes at once: were the rows of one process
    text only, it would not enter the tower, and the others would wait there for ever. No prompt
    asks without an image, and a row without one cannot be encoded."""
    for file in sorted((ROOT / "prompts").glob("*.yaml")):
        prompt = prompts.load(file.stem)
        messages = prompt.messages(NOT_MEASURED)
        blocks = [block["type"] for message in messages for block in message["content"]]
        assert blocks.count("image") == prompt.images >= 1, file.name
    from datasets import Dataset

    from vlmface.schema import features

    found = [sample.to_row() for sample in samples(2)]
    found[1]["image"] = None
    rows = Dataset.from_list(found, features=features())
    with pytest.raises(UserError, match="face-1 has neither an image nor frames"):
        encode_rows(rows, processor, llava, prompts.load("face_cot"), max_length=512, seed=0)


# --- refusals -------------------------------------------------------------------------------------


@pytest.fixture
def launched_with(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """The environment that accelerate's launcher makes."""

    def make(kind: str, stage: str = "") -> None:
        monkeypatch.setenv(f"ACCELERATE_USE_{kind}", "true")
        monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", stage)

    for name in ("DEEPSPEED", "FSDP"):
        monkeypatch.delenv(f"ACCELERATE_USE_{name}", raising=False)
    return make


@pytest.mark.parametrize("kind", ["DeepSpeed", "FSDP"])
def test_sharding_that_did_not_happen_is_refused(
    kind: str, launched_with: Callable[..., None]
) -> None:
    plain = SimpleNamespace(is_deepspeed_enabled=False, is_fsdp_enabled=False)
    distributed.check_sharding(plain)
    launched_with(kind.upper())
    with pytest.raises(UserError, match=f"launched with {kind}, but would train without it"):
        distributed.check_sharding(plain)
    distributed.check_sharding(SimpleNamespace(is_deepspeed_enabled=True, is_fsdp_enabled=True))


@pytest.mark.slow
def test_fsdp_on_a_cpu_is_refused(launch: Launch, tmp_path: Path) -> None:
    result = launch("fsdp2", tmp_path, *FULL)
    assert result.returncode != 0
    assert "error: accelerate was launched with FSDP, but would train without it" in result.stderr


def settings_with(**changes: Any) -> SFTSettings:
    return sft_settings(Path("b"), Path("o"), **changes)


@pytest.mark.parametrize(
    ("kind", "stage", "gpu", "changes", "message"),
    [
        ("DEEPSPEED", "3", False, {"train_embeddings": True}, "train_embeddings under ZeRO-3"),
        ("FSDP", "", True, {"train_embeddings": True}, "train_embeddings does not work under FSDP"),
        ("DEEPSPEED", "3", True, {"quantization": "nf4"}, "asks for ZeRO-3"),
        ("FSDP", "", True, {"quantization": "nf4"}, "asks for FSDP"),
    ],
)
def test_what_a_launch_cannot_do_is_refused(
    kind: str,
    stage: str,
    gpu: bool,
    changes: dict[str, Any],
    message: str,
    launched_with: Callable[..., None],
) -> None:
    checks.check_supported(settings_with(**changes), gpu)
    launched_with(kind, stage)
    checks.check_supported(settings_with(), gpu)
    with pytest.raises(UserError, match=message):
        checks.check_supported(settings_with(**changes), gpu)


# --- rows without a picture -----------------------------------------------------------------------


@pytest.mark.slow
def test_batches_with_and_without_pictures_do_not_wait_for_each_other(
    launch: Launch, sft_cot: Recipe, tmp_path: Path
) -> None:
    """Under ZeRO-3, with batches of one length: a process has pictures while the other has none."""
    path = tmp_path / "texts.jsonl"
    row = json.dumps({"question": "What is AU4?", "answer": "the brows are lowered"})
    path.write_text(f"{row}\n" * 16)
    words = ("--text_only_data", str(path), "--epochs", "1")
    assert sft_cot(tmp_path / "alone", "--batch_size", "8", *WORDS, *FULL, *words) == 0
    succeeded(launch("zero3", tmp_path / "two", *FULL, *words))
    assert trained(tmp_path / "two")["n"] == 32
    agree(tmp_path / "two", tmp_path / "alone")


# --- GRPO -----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("config", ["ddp", "zero2", "zero3"])
def test_grpo_in_two_processes(
    launch: Launch, sft_cot: Recipe, tmp_path: Path, config: str
) -> None:
    """From a run that has learnt a little: rewards of all processes, weights that agree."""
    start = tmp_path / "start"
    assert sft_cot(start, "--batch_size", "8", *WORDS, *LORA, "--epochs", "20") == 0
    words = {
        "init_from": start,
        "n_train": 8,
        "n_eval": 4,
        "num_generations": 2,
        "batch_size": 2,
        "max_steps": 2,
        "save_steps": 2,
        "max_new_tokens": 12,
        "learning_rate": 1e-3,
        "warmup_steps": 0,
        "rewards": "{format: 1, repetition: 1, length_penalty: {words: 4}}",
    }
    out = tmp_path / config
    command = [*launcher(config), str(ROOT / "recipes/grpo.py"), *to_argv(words)]
    command += ["--output_dir", str(out)]
    done = subprocess.run(
        command, env=environment(), capture_output=True, text=True, timeout=600, check=False
    )
    succeeded(done)
    assert [line for line in log(out, "step")] == [1, 2]
    assert all(drift < 1e-4 for drift in log(out, "rollout_drift"))
    assert (out / "samples.html").exists() and trained(out)["steps"] == 2
    before, after = weights(start), weights(out)
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)


# --- why the overrides are there ------------------------------------------------------------------


def test_llava_names_layers_that_it_does_not_have(base: Path) -> None:
    """Without the trainer's own list, accelerate would look for them to divide, and fail."""
    model = llava.load_model(base)
    there = {type(module).__name__ for module in model.modules()}
    assert set(model._no_split_modules) - there
    assert {"LlamaDecoderLayer", "CLIPEncoderLayer"} <= there & set(model._no_split_modules)
