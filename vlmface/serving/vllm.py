"""`vlmface serve`: start vLLM for a run and verify that its outputs match.

Weights that vLLM would ignore are merged first; all other settings follow from the manifest. The
server is reported ready only after it has read the same prompts, generated the same answers for the
same images, and given each token nearly the same log-probability as the run in this process.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2

from vlmface import encode, families, manifest
from vlmface.data import crops
from vlmface.errors import UserError
from vlmface.infer.local import LocalModel
from vlmface.infer.remote import image_uris, padding_colour, request_fields
from vlmface.manifest import Manifest
from vlmface.utils import files, rounding

if TYPE_CHECKING:
    import torch

MIN_VLLM_VERSION = (0, 32)  # the first version that was tested
BASE_MODEL_NAME = "base"  # the served name of the base of adapters
# How far the server's log-probabilities may be from the run's, in multiples of the change that
# another order of summation causes in this process: more than for a merge, since vLLM has other
# kernels.
MAX_LOGPROB_DRIFT = 4.0
TIE_MARGIN = 2.0  # nats by which two tokens may be swapped, in multiples of the largest such change
API_KEY_ENV = "VLLM_API_KEY"  # the environment variable from which vLLM reads its key
PARITY_IMAGES = 4
_STARTUP_TIMEOUT_S = 900.0
_LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM supports


@dataclass(frozen=True)
class ServeOptions:
    """How vLLM is started.

    Attributes:
        vllm: vLLM's executable.
        host: The address to listen at.
        port: Of the server.
        gpu: Whether it runs on a GPU.
        dtype: By default bfloat16 on a GPU and float32 on a CPU.
        max_num_seqs: Requests of one batch.
        words: More arguments of `vllm serve`.
        merge: Whether weights are merged if necessary, into the cache folder.
    """

    vllm: str
    host: str
    port: int
    gpu: bool = False
    dtype: str | None = None
    max_num_seqs: int = 64
    words: Sequence[str] = ()
    merge: bool = True


@dataclass(frozen=True)
class ServePlan:
    """What is started.

    Attributes:
        command: The server's command line.
        environment: Variables to set.
        models: {served name: run}.
        weights: The checkpoint that is served.
        adapters: Whether the runs are adapters on `weights`, or `weights` are those of one run.
        url: Of the server's API.
        dtype: Of the computation.
    """

    command: list[str]
    environment: dict[str, str]
    models: dict[str, Path]
    weights: Path
    adapters: bool
    url: str
    dtype: str

    def as_shell(self) -> str:
        """The command line for a shell, with the environment."""
        variables = [f"{name}={value}" for name, value in self.environment.items()]
        return shlex.join([*variables, *self.command])


# --- the plan -------------------------------------------------------------------------------------


def make_plan(runs: Sequence[str], options: ServeOptions) -> ServePlan:
    """Plan how to serve runs.

    Args:
        runs: Folders, or NAME=FOLDER.
        options: How vLLM is started.

    Returns:
        The plan, with weights merged if necessary.

    Raises:
        UserError: The runs cannot be served together, or a run is damaged.
    """
    if any(word.partition("=")[0] in ("--api-key", "--api_key") for word in options.words):
        raise UserError(
            f"put the key into the environment variable {API_KEY_ENV}: on the command line every "
            "user of this machine could read it, and the parity check would not know it"
        )
    models = _served_names(runs)
    loaded = {name: manifest.load(run) for name, run in models.items()}
    manifests = {name: run_manifest for name, (run_manifest, _) in loaded.items()}
    images = max(prompt.images for _, prompts in loaded.values() for prompt in prompts)
    bases = {run_manifest.base_model["sha"]: name for name, run_manifest in manifests.items()}
    if len(bases) > 1:
        raise UserError(
            f"{' and '.join(bases.values())} were trained on different base models: serve each on "
            "its own port"
        )
    flags, merged = _family_flags(models, manifests, images)
    adapters = all(run_manifest.adapter for run_manifest in manifests.values()) and not merged
    if len(models) > 1 and not adapters:
        raise UserError(
            f"{', '.join(merged or models)} cannot be served as an adapter together with other "
            "runs, since vLLM applies adapters to the language model only: serve it on its own "
            "port, or train with projector: frozen, vision_tower: frozen and train_embeddings: "
            "false"
        )
    name, run = next(iter(models.items()))
    if adapters:
        weights = manifest.resolve_base(manifests[name], run)
        flags |= _adapter_flags(models)
    else:
        weights = _complete_checkpoint(run, manifests[name], options.merge)
        flags |= {"served-model-name": name}
    dtype = options.dtype or ("bfloat16" if options.gpu else "float32")
    flags |= _server_flags(options, dtype)
    command = [options.vllm, "serve", str(weights)]
    for flag, value in flags.items():
        command += [f"--{flag}"] if value is None else [f"--{flag}", str(value)]
    if adapters:
        command += ["--lora-modules", *(f"{n}={path.resolve()}" for n, path in models.items())]
    return ServePlan(
        command=[*command, *options.words],
        environment=_environment(options.gpu),
        models=models,
        weights=weights,
        adapters=adapters,
        url=f"http://{_client_host(options.host)}:{options.port}/v1",
        dtype=dtype,
    )


def _served_names(runs: Sequence[str]) -> dict[str, Path]:
    models: dict[str, Path] = {}
    for argument in runs:
        name, equals, folder = argument.rpartition("=")
        path = Path(folder if equals else argument)
        name = name if equals else path.name
        if name in models or name == BASE_MODEL_NAME:
            raise UserError(f"two models would be called {name}: name them, {name}2={path}")
        models[name] = path
    return models


def _client_host(host: str) -> str:
    """The address at which a client on this machine reaches the server."""
    return "127.0.0.1" if host == "0.0.0.0" else host


def _family_flags(
    models: Mapping[str, Path], manifests: Mapping[str, Manifest], images: int
) -> tuple[dict[str, Any], list[str]]:
    """(flags of the model family, names of the runs that must be merged)."""
    flags: dict[str, Any] = {}
    merged = []
    for name, run_manifest in manifests.items():
        run = models[name]
        manifest.check_weights(run_manifest, run)
        family = families.get(run_manifest.family)
        vllm_flags = family.vllm_flags(
            families.load_processor(family, run),
            max_length=_max_model_length(run_manifest, run),
            trainable=run_manifest.trainable,
            images=images,
        )
        if run_manifest.adapter and (vllm_flags["merge"] or _has_more_than_lora(run)):
            merged.append(name)
        flags = flags or vllm_flags["serve"]
        flags["max-model-len"] = max(flags["max-model-len"], vllm_flags["serve"]["max-model-len"])
    return flags, merged


def _adapter_flags(models: Mapping[str, Path]) -> dict[str, Any]:
    flags: dict[str, Any] = {
        "served-model-name": BASE_MODEL_NAME,
        "enable-lora": None,
        "max-lora-rank": _max_lora_rank(list(models.values())),
        "max-loras": len(models),
    }
    template = next(iter(models.values())) / "chat_template.jinja"
    if template.is_file():
        flags["chat-template"] = template.resolve()
    return flags


def _server_flags(options: ServeOptions, dtype: str) -> dict[str, Any]:
    guided_decoding = {"disable_any_whitespace": True, "backend": "xgrammar"}
    flags = {
        "host": options.host,
        "port": options.port,
        "dtype": dtype,
        "seed": 0,
        "max-num-seqs": options.max_num_seqs,
        # A request without sampling parameters is answered greedily, whatever the checkpoint's
        # generation_config.json contains.
        "generation-config": "vllm",
        "override-generation-config": json.dumps({"temperature": 0.0}),
        "structured-outputs-config": json.dumps(guided_decoding),
    }
    return flags if options.gpu else flags | {"enforce-eager": None}


def _environment(gpu: bool) -> dict[str, str]:
    environment = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"}
    if not gpu:
        environment |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    return environment


def _max_model_length(run_manifest: Manifest, run: Path) -> int:
    """Tokens of a conversation: a prompt as long as in training with the longest answer, at most
    the model's number of positions."""
    from transformers import AutoConfig

    folder = manifest.resolve_base(run_manifest, run) if run_manifest.adapter else run
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False).get_text_config()
    length = run_manifest.max_length + run_manifest.generation["max_new_tokens"]
    return min(length, getattr(config, "max_position_embeddings", length))


def _has_more_than_lora(run: Path) -> bool:
    """Whether the adapter has weights other than plain LoRA, which vLLM would ignore."""
    config = json.loads((run / "adapter_config.json").read_text(encoding="utf-8"))
    names = ("trainable_token_indices", "modules_to_save", "use_dora")
    return any(config.get(name) for name in names)


def _max_lora_rank(runs: Sequence[Path]) -> int:
    """The smallest rank that vLLM supports and that is large enough for all runs."""
    rank = max(json.loads((run / "adapter_config.json").read_text())["r"] for run in runs)
    if rank > _LORA_RANKS[-1]:
        raise UserError(f"vLLM has LoRA ranks up to {_LORA_RANKS[-1]}, this run has {rank}")
    return next(supported for supported in _LORA_RANKS if supported >= rank)


def _complete_checkpoint(run: Path, run_manifest: Manifest, merge: bool) -> Path:
    """The run's weights as one checkpoint: the run itself, or a merged copy in the cache."""
    if not run_manifest.adapter:
        return run.resolve()
    key = f"{manifest.weights_sha(run)}-{run_manifest.base_model['sha']}-{manifest.SCHEMA}"
    folder = files.cache_dir() / "merged" / key
    if merge and not folder.exists():
        print(f"merging {run} with its base, since vLLM would ignore a part of the adapter")
        from vlmface.tools.merge import merge as merge_run

        merge_run(run, folder)
    return folder


# --- vLLM itself ----------------------------------------------------------------------------------


def find_vllm(executable: str | None) -> str:
    """Find vLLM's executable.

    Args:
        executable: By default the environment variable VLLM, or the one on the path.

    Returns:
        Its path.

    Raises:
        UserError: There is none; explains how to install it.
    """
    name = executable or os.environ.get("VLLM") or "vllm"
    path = shutil.which(name)
    if path is None:
        raise UserError(
            f"the executable {name} was not found: vLLM needs other versions of its libraries than "
            "vlmface and is installed in an environment of its own: python -m venv vllm && "
            "vllm/bin/pip install vllm (without a GPU see docs/serving.md), then --vllm "
            "vllm/bin/vllm"
        )
    return path


def check_version(vllm: str) -> str:
    """Check vLLM's version.

    Args:
        vllm: Its executable.

    Returns:
        The version.

    Raises:
        UserError: It is too old or cannot be read.
    """
    shebang = Path(vllm).read_bytes()[:500].splitlines()[0].decode("utf-8", "replace")
    has_shebang = shebang.startswith("#!")
    python = shebang.removeprefix("#!").strip() if has_shebang else sys.executable
    code = "import importlib.metadata as m; print(m.version('vllm'))"
    completed = subprocess.run([*shlex.split(python), "-c", code], capture_output=True, text=True)
    version = completed.stdout.strip()
    try:
        numbers = tuple(int(part) for part in version.split(".")[:2])
    except ValueError:
        raise UserError(
            f"cannot read the version of {vllm}: {(completed.stderr or version).strip()[-300:]}"
        ) from None
    if numbers < MIN_VLLM_VERSION:
        raise UserError(
            f"{vllm} is vLLM {version}: use {'.'.join(map(str, MIN_VLLM_VERSION))} or newer, older "
            "versions have not been tested"
        )
    return version


@contextlib.contextmanager
def running_server(plan: ServePlan, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Start the server, wait until it is ready, and stop it at the end.

    Args:
        plan: What is started.
        log: The file for its output.

    Yields:
        The process.

    Raises:
        UserError: It stops or does not become ready.
    """
    environment = os.environ | plan.environment
    environment.pop("OMP_NUM_THREADS", None)  # vLLM would read it as its own setting
    environment.pop("PYTHONPATH", None)
    environment["PATH"] = f"{Path(plan.command[0]).parent}{os.pathsep}{environment['PATH']}"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        process = subprocess.Popen(
            plan.command,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        _wait_until_ready(plan, process, log)
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _wait_until_ready(plan: ServePlan, process: subprocess.Popen[bytes], log: Path) -> None:
    health = plan.url.removesuffix("/v1") + "/health"
    deadline = time.monotonic() + _STARTUP_TIMEOUT_S
    while True:
        try:
            if httpx2.get(health, timeout=5).status_code == 200 and process.poll() is None:
                return
        except httpx2.TransportError:
            pass  # it does not listen yet
        if process.poll() is not None or time.monotonic() > deadline:
            stopped = process.poll() is not None
            state = "stopped" if stopped else f"is not ready after {_STARTUP_TIMEOUT_S} s"
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
            raise UserError(f"vLLM {state}; the end of {log}:\n{tail}")
        time.sleep(0.5)


# --- parity ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Generation:
    """An answer as tokens.

    Attributes:
        prompt: Token ids of the prompt.
        ids: Token ids of the answer.
        log_probs: Of each token of the answer.
        margins: By how much the likeliest token at each position was ahead of the second one.
        rounding: By how much another order of summation changes each log-probability, in nats;
            empty if it was not measured.
    """

    prompt: list[int]
    ids: list[int]
    log_probs: list[float]
    margins: list[float]
    rounding: Sequence[float] = ()


def parity_images() -> list[Any]:
    """The images of the check: rendered faces, one of them in a wide picture, which a server with
    another processor would crop or squeeze differently."""
    from vlmface.evaluate import answering
    from vlmface.synth import dataset

    rows = dataset.load("test", n=PARITY_IMAGES, size=224, progress=False)
    *square, last = answering.images_of(rows)
    return [*square, last.crop((0, 40, 224, 180))]


def generate_local(run: Path, images: Sequence[Any], dtype: str) -> list[Generation]:
    """The run's answers, computed in this process.

    Args:
        run: Its folder.
        images: RGB.
        dtype: Name of a torch dtype.

    Returns:
        An answer for each image, with `rounding`.
    """
    import torch

    model = LocalModel.load(run, dtype=getattr(torch, dtype))
    stops = model.family.stop_token_ids(model.processor)
    collate = encode.Collator(model.processor, model.family)
    generations = []
    for image in images:
        (row,) = model.prompt_rows([_apply_views(image, model.views, model.frames)])
        batch = encode.to_model(collate([row]), model.model)
        with torch.inference_mode():
            output = model.model.generate(
                **batch,
                do_sample=False,
                max_new_tokens=model.max_new_tokens,
                eos_token_id=stops,
                pad_token_id=model.processor.tokenizer.pad_token_id,
                output_logits=True,
                return_dict_in_generate=True,
            )
        prompt = list(row["input_ids"])
        ids = output.sequences[0, len(prompt) :]
        logits = torch.stack(output.logits)[:, 0].float()
        rounding.check_finite([logits], str(run))
        all_log_probs = logits.log_softmax(-1)
        top_two = all_log_probs.topk(2).values
        log_probs = all_log_probs.gather(1, ids[:, None])[:, 0]
        min_change = torch.finfo(model.model.dtype).eps * float(logits.abs().max())
        reordered = _reordered_log_probs(model, row, ids.tolist())
        changes = (reordered - log_probs[: len(reordered)]).abs().clamp(min=min_change)
        generation = Generation(
            prompt=prompt,
            ids=ids.tolist(),
            log_probs=log_probs.tolist(),
            margins=(top_two[:, 0] - top_two[:, 1]).tolist(),
            rounding=changes.tolist(),
        )
        generations.append(generation)
    return generations


def _reordered_log_probs(model: LocalModel, row: dict[str, Any], ids: list[int]) -> torch.Tensor:
    """The log-probabilities of an answer's tokens, computed in one pass with another order of
    summation; up to an image token, which an untrained model may generate but which cannot be
    encoded as text."""
    import torch

    image = model.processor.tokenizer.convert_tokens_to_ids(model.processor.image_token)
    ids = ids[: ids.index(image) + 1] if image in ids else ids
    prompt = len(row["input_ids"])
    conversation = [*row["input_ids"], *ids[:-1]]
    token_inputs = model.family.per_token_inputs(model.processor, conversation, prompt)
    collate = encode.Collator(model.processor, model.family)
    batch = collate([{**row, "input_ids": conversation, **token_inputs}])
    with torch.inference_mode(), rounding.reordered(model.model):
        logits = model.model(**encode.to_model(batch, model.model), use_cache=False).logits
    log_probs = logits[0, prompt - 1 :].float().log_softmax(-1)
    return log_probs.gather(1, torch.tensor(ids, device=log_probs.device)[:, None])[:, 0]


def _apply_views(image: Any, views: crops.Views, frames: int) -> Any:
    """A rendered face as the run receives it: the whole image in every view."""
    return crops.image_views(image, None, views, frames)


def generate_remote(
    plan: ServePlan, name: str, run: Path, images: Sequence[Any]
) -> list[Generation]:
    """The server's answers.

    Args:
        plan: Of the running server.
        name: The served name of the model.
        run: The folder with its prompts and views.
        images: RGB.

    Returns:
        An answer for each image, without `margins` and `rounding`.

    Raises:
        UserError: The server rejects a request.
    """
    from vlmface.infer.endpoint import attach_images

    run_manifest, prompts = manifest.load(run)
    views, padding = crops.parse_views(run_manifest.views), padding_colour(run)
    request = request_fields(run) | {
        "model": name,
        "temperature": 0,
        "logprobs": True,
        "return_token_ids": True,
        "max_tokens": run_manifest.generation["max_new_tokens"],
    }
    generations = []
    for image in images:
        uris = image_uris(_apply_views(image, views, run_manifest.num_frames), padding)
        body = request | {"messages": attach_images(prompts[0].messages(), uris)}
        reply = httpx2.post(
            f"{plan.url}/chat/completions", json=body, headers=_key_header(), timeout=300
        )
        if reply.status_code != 200:
            raise UserError(f"the server rejects {name}: {' '.join(reply.text[:500].split())}")
        content = reply.json()
        (choice,) = content["choices"]
        log_probs = [float(token["logprob"]) for token in choice["logprobs"]["content"]]
        ids = list(choice["token_ids"])
        generations.append(Generation(content["prompt_token_ids"], ids, log_probs, []))
    return generations


def _key_header() -> dict[str, str]:
    key = os.environ.get(API_KEY_ENV)
    return {"Authorization": f"Bearer {key}"} if key else {}


def check_parity(local: Sequence[Generation], remote: Sequence[Generation], name: str) -> float:
    """Compare the server's answers with the run's.

    The tolerance is measured on the run itself (`Generation.rounding`): in the mean for the
    log-probabilities, at most for two tokens that may be swapped. A number that is not finite is
    never within it.

    Args:
        local: From `generate_local`.
        remote: From `generate_remote`.
        name: Of the model, for messages.

    Returns:
        The mean difference of the log-probabilities of the tokens that are equal.

    Raises:
        UserError: The prompts differ, or rounding does not explain a difference of the answers.
    """
    differences: list[float] = []
    max_mean, max_token = _rounding_bounds(local)
    for ours, theirs in zip(local, remote, strict=True):
        if ours.prompt != theirs.prompt:
            at = _first_difference(ours.prompt, theirs.prompt)
            raise UserError(
                f"the server reads another prompt than {name} was trained with: "
                f"{len(theirs.prompt)} tokens instead of {len(ours.prompt)}, different from token "
                f"{at} on; it has another processor or chat template"
            )
        equal = _first_difference(ours.ids, theirs.ids)
        if equal < max(len(ours.ids), len(theirs.ids)):
            margin = ours.margins[equal] if equal < len(ours.margins) else float("inf")
            if not margin <= TIE_MARGIN * max_token:
                raise UserError(
                    f"{name} gives another answer on the server, from token {equal} on, where the "
                    f"run's margin is {margin:.3g} nats ({TIE_MARGIN * max_token:.1g} is "
                    "rounding): vLLM does not serve this model as it was trained"
                )
        pairs = zip(ours.log_probs[:equal], theirs.log_probs[:equal], strict=True)
        differences += [abs(a - b) for a, b in pairs]
    drift = sum(differences) / max(1, len(differences))
    if not drift <= max_mean:
        raise UserError(
            f"{name} is {drift:.2e} nats a token away from the run ({max_mean:.1e} is rounding): "
            "vLLM does not serve this model as it was trained"
        )
    return drift


def _rounding_bounds(local: Sequence[Generation]) -> tuple[float, float]:
    """(nats a token in the mean, nats of one token) that rounding may change."""
    changes = [value for generation in local for value in generation.rounding]
    mean = sum(changes) / max(1, len(changes))
    return MAX_LOGPROB_DRIFT * mean, MAX_LOGPROB_DRIFT * max(changes, default=0.0)


def _first_difference(a: Sequence[int], b: Sequence[int]) -> int:
    """The first index at which two lists differ; the length of the shorter one if there is none."""
    shorter = min(len(a), len(b))
    return next((i for i in range(shorter) if a[i] != b[i]), shorter)


def check_adapter_active(
    plan: ServePlan,
    name: str,
    local: Sequence[Generation],
    remote: Sequence[Generation],
    images: Sequence[Any],
) -> None:
    """Check that the server applies an adapter.

    Args:
        plan: Of the running server.
        name: The served name of the adapter.
        local: From `generate_local`; only its `rounding` is used.
        remote: The server's answers with the adapter.
        images: Those of the answers.

    Raises:
        UserError: Up to rounding, the base gives the same answers as the adapter.
    """
    max_mean, _ = _rounding_bounds(local)
    base = generate_remote(plan, BASE_MODEL_NAME, plan.models[name], images)
    pairs = list(zip(base, remote, strict=True))
    if any(of_base.ids != of_adapter.ids for of_base, of_adapter in pairs):
        return
    differences = [
        abs(a - b)
        for of_base, of_adapter in pairs
        for a, b in zip(of_base.log_probs, of_adapter.log_probs, strict=True)
    ]
    effect = sum(differences) / max(1, len(differences))
    if not effect > max_mean:
        raise UserError(
            f"the adapter of {name} has no effect on the server, which answers as the base does "
            f"({effect:.1e} nats a token apart, {max_mean:.1e} is rounding): vLLM has not applied "
            "it"
        )


# --- the command ----------------------------------------------------------------------------------


def serve_command(
    runs: Sequence[str], vllm: str | None, options: ServeOptions, *, dry_run: bool
) -> int:
    """Serve until stopped.

    Args:
        runs: Folders, or NAME=FOLDER.
        vllm: vLLM's executable, see `find_vllm`.
        options: How it is started; `vllm`, `gpu` and `merge` are filled in.
        dry_run: Only print the command.

    Returns:
        The exit code.

    Raises:
        UserError: The server cannot be started, or its outputs do not match.
    """
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()
    executable = vllm or "vllm" if dry_run else find_vllm(vllm)
    gpu = torch.cuda.is_available()
    plan = make_plan(runs, replace(options, vllm=executable, gpu=gpu, merge=not dry_run))
    if dry_run:
        print(plan.as_shell())
        return 0
    version = check_version(executable)
    images = parity_images()
    print(f"vLLM {version}; first computing the runs' answers in this process", flush=True)
    local = {name: generate_local(run, images, plan.dtype) for name, run in plan.models.items()}
    log = files.cache_dir() / "serve" / f"{options.port}.log"
    print(f"starting the server, which takes a minute or more; its log is {log}", flush=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with running_server(plan, log) as process:
            for name, run in plan.models.items():
                remote = generate_remote(plan, name, run, images)
                drift = check_parity(local[name], remote, name)
                if plan.adapters:
                    check_adapter_active(plan, name, local[name], remote, images)
                tokens = sum(len(generation.ids) for generation in remote)
                print(
                    f"{name}: the same prompts and answers as in this process; {tokens} tokens, "
                    f"log-probabilities {drift:.1e} apart in the mean"
                )
            print(f"ready: {plan.url}\n\n{curl_example(plan)}\n", flush=True)
            code = process.wait()
            raise UserError(f"vLLM stopped with code {code}: see the end of {log}")
    except KeyboardInterrupt:
        print("stopped")
        return 0


def curl_example(plan: ServePlan) -> str:
    """A shell command that sends FACE.png, or IMAGE1.png and so on, to the first model.

    Args:
        plan: Of the server.
    """
    from vlmface.infer.endpoint import attach_images

    name, run = next(iter(plan.models.items()))
    run_manifest, (prompt, *_) = manifest.load(run)
    mark = "@@"
    numbers = range(1, prompt.images + 1)
    uris = [f"data:image/png;base64,{mark}{i}{mark}" for i in numbers]
    body = request_fields(run) | {
        "model": name,
        "max_tokens": run_manifest.generation["max_new_tokens"],
        "temperature": 0,
        "messages": attach_images(prompt.messages(), uris),
    }
    quoted = shlex.quote(json.dumps(body))
    for i in numbers:
        file = f"IMAGE{i}.png" if prompt.images > 1 else "FACE.png"
        quoted = quoted.replace(f"{mark}{i}{mark}", f"'\"$(base64 -w0 {file})\"'")
    return (
        f"printf %s {quoted} | curl -s {plan.url}/chat/completions "
        + (f'-H "Authorization: Bearer ${API_KEY_ENV}" ' if os.environ.get(API_KEY_ENV) else "")
        + "-H 'Content-Type: application/json' -d @-"
    )
