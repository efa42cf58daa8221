"""`vlmface serve`: vLLM as a run needs it, checked against the run before anybody is told of it.

What vLLM would ignore is merged first; everything else follows from the manifest. The server counts
as ready only after it has read the same prompts, written the same answers to the same pictures and
been as sure of each token as the run is in this process.
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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2

from vlmface import encode, families, manifest
from vlmface.data import crops
from vlmface.errors import UserError
from vlmface.infer.local import LocalModel
from vlmface.infer.server import padding_of, png_uri, requests_of
from vlmface.manifest import Manifest
from vlmface.utils import files, rounding
from vlmface.utils.images import as_list

if TYPE_CHECKING:
    import torch

OLDEST = (0, 32)  # vLLM's first version that was tried with this
BASE = "base"  # the served name of what adapters are put on
# How far the server's log-probabilities may be from the run's, in units of what another order of
# summation changes of them in this process: more than for a merge, since vLLM's kernels are others.
ALLOWED = 4.0
KEY = "VLLM_API_KEY"  # the environment variable in which vLLM looks for its key
FACES = 4  # pictures of the parity check
_STARTING = 900.0  # s


@dataclass(frozen=True)
class Plan:
    """`models` {served name: run}; `command` and `environment` of the server; `adapters` whether
    the runs are adapters on `weights` or `weights` are the one run's own."""

    command: list[str]
    environment: dict[str, str]
    models: dict[str, Path]
    weights: Path
    adapters: bool
    url: str
    dtype: str

    def shown(self) -> str:
        """As one would type it."""
        told = [f"{name}={value}" for name, value in self.environment.items()]
        return shlex.join([*told, *self.command])


# --- what is started ------------------------------------------------------------------------------


def make_plan(
    runs: Sequence[str], *, vllm: str, host: str, port: int, gpu: bool, dtype: str | None = None,
    max_num_seqs: int = 64, words: Sequence[str] = (), merge: bool = True,
) -> Plan:  # fmt: skip
    """How to serve the runs, which are named by their folders or as NAME=FOLDER. `words` are
    further arguments of `vllm serve`. Merges what must be merged, into the cache folder, unless
    `merge` is false. Raises UserError."""
    if any(word.partition("=")[0] in ("--api-key", "--api_key") for word in words):
        raise UserError(
            f"put the key into the environment variable {KEY}: on the command line every user of "
            "this machine could read it, and the parity check would not know it"
        )
    models = _names(runs)
    loaded = {name: manifest.load(run) for name, run in models.items()}
    found = {name: one for name, (one, _) in loaded.items()}
    images = max(prompt.images for _, asked in loaded.values() for prompt in asked)
    first_name, first = next(iter(found.items()))
    bases = {one.base["sha"]: name for name, one in found.items()}
    if len(bases) > 1:
        raise UserError(
            f"{' and '.join(bases.values())} were trained on different base models: serve each on "
            "a port of its own"
        )
    flags: dict[str, Any] = {}
    merged = []
    for name, one in found.items():
        manifest.check_weights(one, models[name])
        processor = families.load_processor(families.get(one.family), models[name])
        told = families.get(one.family).vllm_flags(
            processor, max_length=_length(one, models[name]), policy=one.policy, images=images
        )
        if one.adapter and (told["merge"] or _beyond_lora(models[name])):
            merged.append(name)
        flags = flags or told["serve"]
        flags["max-model-len"] = max(flags["max-model-len"], told["serve"]["max-model-len"])
    adapters = all(one.adapter for one in found.values()) and not merged
    if len(models) > 1 and not adapters:
        raise UserError(
            f"{', '.join(merged or models)} cannot be an adapter beside others, since vLLM puts "
            "adapters on the language model alone: serve it on a port of its own, or train with "
            "projector: frozen, tower: frozen and train_embeddings: false"
        )
    if adapters:
        weights = manifest.resolve_base(first, models[first_name])
        flags |= {"served-model-name": BASE, "enable-lora": None,
                  "max-lora-rank": _served_rank(models.values()),
                  "max-loras": len(models)}  # fmt: skip
        template = models[first_name] / "chat_template.jinja"
        if template.is_file():
            flags["chat-template"] = template.resolve()
    else:
        weights = _whole(models[first_name], first, merge)
        flags |= {"served-model-name": first_name}
    dtype = dtype or ("bfloat16" if gpu else "float32")
    flags |= {
        "host": host, "port": port, "dtype": dtype, "seed": 0, "max-num-seqs": max_num_seqs,
        # A request that sets nothing is answered greedily, whatever the checkpoint's own
        # generation_config.json holds.
        "generation-config": "vllm",
        "override-generation-config": json.dumps({"temperature": 0.0}),
        "structured-outputs-config": json.dumps({"disable_any_whitespace": True,
                                                 "backend": "xgrammar"}),
    }  # fmt: skip
    environment = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"}
    if not gpu:
        flags["enforce-eager"] = None
        environment |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    command = [vllm, "serve", str(weights)]
    for name, value in flags.items():
        command += [f"--{name}"] if value is None else [f"--{name}", str(value)]
    if adapters:
        command += ["--lora-modules", *(f"{n}={run.resolve()}" for n, run in models.items())]
    return Plan(
        [*command, *words], environment, models, weights, adapters,
        f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{port}/v1", dtype,
    )  # fmt: skip


def _names(runs: Sequence[str]) -> dict[str, Path]:
    models: dict[str, Path] = {}
    for word in runs:
        name, equals, folder = word.rpartition("=")
        path = Path(folder if equals else word)
        name = name if equals else path.name
        if name in models or name == BASE:
            raise UserError(f"two models would be called {name}: name them, {name}2={path}")
        models[name] = path
    return models


def _length(found: Manifest, run: Path) -> int:
    """Tokens of a conversation: a question as long as in training with the longest answer, or what
    the model has positions for."""
    from transformers import AutoConfig

    folder = manifest.resolve_base(found, run) if found.adapter else run
    text = AutoConfig.from_pretrained(folder, trust_remote_code=False).get_text_config()
    asked = found.max_length + found.generation["max_new_tokens"]
    return min(asked, getattr(text, "max_position_embeddings", asked))


def _beyond_lora(run: Path) -> bool:
    """Whether the adapter has weights that are no LoRA: vLLM would leave them out."""
    config = json.loads((run / "adapter_config.json").read_text(encoding="utf-8"))
    return bool(config.get("trainable_token_indices") or config.get("modules_to_save")
                or config.get("use_dora"))  # fmt: skip


def _served_rank(runs: Any) -> int:
    """The smallest rank that vLLM knows and that has room for all of them."""
    ranks = [json.loads((run / "adapter_config.json").read_text())["r"] for run in runs]
    known = (8, 16, 32, 64, 128, 256, 320, 512)
    if max(ranks) > known[-1]:
        raise UserError(f"vLLM has LoRA ranks up to {known[-1]}, this run has {max(ranks)}")
    return next(rank for rank in known if rank >= max(ranks))


def _whole(run: Path, found: Manifest, merge: bool) -> Path:
    """The run's weights as one checkpoint: its own, or merged once and kept in the cache."""
    if not found.adapter:
        return run.resolve()
    key = f"{manifest.weights_sha(run)}-{found.base['sha']}"
    folder = files.cache_dir() / "merged" / key
    if merge and not folder.exists():
        print(f"merging {run} with its base, since vLLM would leave a part of it out")
        from vlmface.tools.merge import merge as merge_run

        merge_run(run, folder)
    return folder


# --- vLLM itself ----------------------------------------------------------------------------------


def find_vllm(named: str | None) -> str:
    """vLLM's executable: `named`, the environment variable VLLM, or the one on the path. Raises
    UserError with how to get one."""
    asked = named or os.environ.get("VLLM") or "vllm"
    found = shutil.which(asked)
    if found is None:
        raise UserError(
            f"there is no executable {asked}: vLLM needs other versions of its libraries than "
            "vlmface and lives in an environment of its own: python -m venv vllm && "
            "vllm/bin/pip install vllm (without a GPU see docs/serving.md), then --vllm "
            "vllm/bin/vllm"
        )
    return found


def check_version(vllm: str) -> str:
    """vLLM's version. Raises UserError if it is too old or cannot be read."""
    first = Path(vllm).read_bytes()[:500].splitlines()[0].decode("utf-8", "replace")
    python = first.removeprefix("#!").strip() if first.startswith("#!") else sys.executable
    code = "import importlib.metadata as m; print(m.version('vllm'))"
    done = subprocess.run([*shlex.split(python), "-c", code], capture_output=True, text=True)
    version = done.stdout.strip()
    try:
        numbers = tuple(int(part) for part in version.split(".")[:2])
    except ValueError:
        raise UserError(
            f"cannot read the version of {vllm}: {(done.stderr or version).strip()[-300:]}"
        ) from None
    if numbers < OLDEST:
        raise UserError(
            f"{vllm} is vLLM {version}: use {'.'.join(map(str, OLDEST))} or newer, older ones were "
            "not tried with this"
        )
    return version


@contextlib.contextmanager
def running(plan: Plan, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The server, ready for requests; stopped at the end. Its output goes into `log`. Raises
    UserError if it stops or does not become ready."""
    environment = os.environ | plan.environment
    environment.pop("OMP_NUM_THREADS", None)  # vLLM would read it as its own setting
    environment.pop("PYTHONPATH", None)
    environment["PATH"] = f"{Path(plan.command[0]).parent}{os.pathsep}{environment['PATH']}"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as out:
        process = subprocess.Popen(
            plan.command, env=environment, stdout=out, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
    try:
        _wait(plan, process, log)
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _wait(plan: Plan, process: subprocess.Popen[bytes], log: Path) -> None:
    health, deadline = plan.url.removesuffix("/v1") + "/health", time.monotonic() + _STARTING
    while True:
        try:
            if httpx2.get(health, timeout=5).status_code == 200 and process.poll() is None:
                return
        except httpx2.TransportError:
            pass  # it does not listen yet
        if process.poll() is not None or time.monotonic() > deadline:
            what = "stopped" if process.poll() is not None else f"is not ready after {_STARTING} s"
            end = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
            raise UserError(f"vLLM {what}; the end of {log}:\n{end}")
        time.sleep(0.5)


# --- parity ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Written:
    """An answer as tokens: `prompt` that it follows, its `ids`, the log-probability of each, and by
    how much the likeliest token of each place was ahead of the next. `rounding`: what another order
    of summation changes of each log-probability, in nats, where it was measured."""

    prompt: list[int]
    ids: list[int]
    log_probs: list[float]
    lead: list[float]
    rounding: Sequence[float] = ()


def pictures() -> list[Any]:
    """What the check asks about: rendered faces, one of them in a wide picture, which a server with
    another processor would cut or squeeze otherwise."""
    from vlmface.evaluate import answering
    from vlmface.synth import dataset

    *square, last = answering.images_of(dataset.load("test", n=FACES, size=224, progress=False))
    return [*square, last.crop((0, 40, 224, 180))]


def written_here(run: Path, images: Sequence[Any], dtype: str) -> list[Written]:
    """What the run answers in this process."""
    import torch

    model = LocalModel.load(run, dtype=getattr(torch, dtype))
    stops = model.family.stop_token_ids(model.processor)
    found = []
    for image in images:
        (row,) = model._rows([_shown(image, model.views, model.frames)])
        batch = encode.to_model(encode.Collator(model.processor, model.family)([row]), model.model)
        with torch.inference_mode():
            output = model.model.generate(
                **batch, do_sample=False, max_new_tokens=model.max_new_tokens, eos_token_id=stops,
                pad_token_id=model.processor.tokenizer.pad_token_id, output_logits=True,
                return_dict_in_generate=True,
            )  # fmt: skip
        prompt = list(row["input_ids"])
        ids = output.sequences[0, len(prompt) :]
        logits = torch.stack(output.logits)[:, 0].float()
        rounding.check_finite([logits], str(run))
        log_p = logits.log_softmax(-1)
        best = log_p.topk(2).values
        own = log_p.gather(1, ids[:, None])[:, 0]
        lead = best[:, 0] - best[:, 1]
        least = torch.finfo(model.model.dtype).eps * float(logits.abs().max())
        again = _read_again(model, row, ids.tolist())
        moved = (again - own[: len(again)]).abs().clamp(min=least)
        found.append(Written(prompt, ids.tolist(), own.tolist(), lead.tolist(), moved.tolist()))
    return found


def _read_again(model: LocalModel, row: dict[str, Any], ids: list[int]) -> torch.Tensor:
    """The log-probabilities of an answer's tokens, read at once and with sums in another order; up
    to an image token, which an untrained model may write, but which cannot be read as text."""
    import torch

    image = model.processor.tokenizer.convert_tokens_to_ids(model.processor.image_token)
    ids = ids[: ids.index(image) + 1] if image in ids else ids
    prompt = len(row["input_ids"])
    everything = [*row["input_ids"], *ids[:-1]]
    more = model.family.per_token_inputs(model.processor, everything, prompt)
    collate = encode.Collator(model.processor, model.family)
    batch = collate([{**row, "input_ids": everything, **more}])
    with torch.inference_mode(), rounding.reordered(model.model):
        logits = model.model(**encode.to_model(batch, model.model), use_cache=False).logits
    log_p = logits[0, prompt - 1 :].float().log_softmax(-1)
    return log_p.gather(1, torch.tensor(ids, device=log_p.device)[:, None])[:, 0]


def _shown(image: Any, views: crops.Views, frames: int) -> Any:
    """A rendered face as the run is shown it: all of it in every view."""
    return crops.image_views(image, None, views, frames)


def written_there(plan: Plan, name: str, run: Path, images: Sequence[Any]) -> list[Written]:
    """What the server answers."""
    from vlmface.infer.endpoint import with_images

    model_manifest, asked = manifest.load(run)
    views, padding = crops.parse_views(model_manifest.crop), padding_of(run)
    request = requests_of(run) | {
        "model": name, "temperature": 0, "logprobs": True, "return_token_ids": True,
        "max_tokens": model_manifest.generation["max_new_tokens"],
    }  # fmt: skip
    found = []
    for image in images:
        shown = as_list(_shown(image, views, model_manifest.frames))
        sent = [png_uri(families.padded(picture, padding)) for picture in shown]
        body = request | {"messages": with_images(asked[0].messages(), sent)}
        reply = httpx2.post(
            f"{plan.url}/chat/completions", json=body, headers=_key_header(), timeout=300
        )
        if reply.status_code != 200:
            raise UserError(f"the server refuses {name}: {' '.join(reply.text[:500].split())}")
        content = reply.json()
        (choice,) = content["choices"]
        log_probs = [float(token["logprob"]) for token in choice["logprobs"]["content"]]
        found.append(Written(content["prompt_token_ids"], list(choice["token_ids"]), log_probs, []))
    return found


def _key_header() -> dict[str, str]:
    key = os.environ.get(KEY)
    return {"Authorization": f"Bearer {key}"} if key else {}


def compare(here: Sequence[Written], there: Sequence[Written], name: str) -> float:
    """The mean difference of the log-probabilities of what both wrote. Raises UserError if the
    prompts differ, answers part where no rounding explains it, or the difference is too large.

    What rounding explains is measured on the run itself (`Written.rounding`): in the mean for the
    difference, at most for two tokens that may be exchanged. A number that is not finite never is.
    """
    differences: list[float] = []
    bound, most = _bounds(here)
    for ours, theirs in zip(here, there, strict=True):
        if ours.prompt != theirs.prompt:
            at = _parts(ours.prompt, theirs.prompt)
            raise UserError(
                f"the server reads another prompt than {name} was trained with: "
                f"{len(theirs.prompt)} tokens instead of {len(ours.prompt)}, different from token "
                f"{at} on; its processor or chat template is another one"
            )
        same = _parts(ours.ids, theirs.ids)
        if same < max(len(ours.ids), len(theirs.ids)):
            lead = ours.lead[same] if same < len(ours.lead) else float("inf")
            if not lead <= 2 * most:
                raise UserError(
                    f"{name} answers otherwise behind the server, from token {same} on, where the "
                    f"run is sure by {lead:.3g} nats ({2 * most:.1g} is rounding): vLLM does not "
                    "serve this model as it is"
                )
        pairs = zip(ours.log_probs[:same], theirs.log_probs[:same], strict=True)
        differences += [abs(a - b) for a, b in pairs]
    drift = sum(differences) / max(1, len(differences))
    if not drift <= bound:
        raise UserError(
            f"{name} is {drift:.2e} nats a token away from the run ({bound:.1e} is rounding): "
            "vLLM does not serve this model as it is"
        )
    return drift


def _bounds(here: Sequence[Written]) -> tuple[float, float]:
    """(nats a token in the mean, nats of one token) that rounding may change."""
    moved = [value for answer in here for value in answer.rounding]
    return ALLOWED * sum(moved) / max(1, len(moved)), ALLOWED * max(moved, default=0.0)


def _parts(a: Sequence[int], b: Sequence[int]) -> int:
    """Where two lists part; the length of the shorter one if they do not."""
    shorter = min(len(a), len(b))
    return next((i for i in range(shorter) if a[i] != b[i]), shorter)


def check_effect(plan: Plan, name: str, here: Sequence[Written], there: Sequence[Written],
                 images: Sequence[Any]) -> None:  # fmt: skip
    """Raises UserError if the server answers with an adapter as it does without, up to rounding."""
    bound, _ = _bounds(here)
    plain = written_there(plan, BASE, plan.models[name], images)
    pairs = list(zip(plain, there, strict=True))
    if any(base.ids != adapted.ids for base, adapted in pairs):
        return
    differences = [
        abs(a - b)
        for base, adapted in pairs
        for a, b in zip(base.log_probs, adapted.log_probs, strict=True)
    ]
    effect = sum(differences) / max(1, len(differences))
    if not effect > bound:
        raise UserError(
            f"the adapter of {name} has no effect behind the server, which answers as the base "
            f"does ({effect:.1e} nats a token apart, {bound:.1e} is rounding): vLLM has not "
            "applied it"
        )


# --- the command ----------------------------------------------------------------------------------


def serve_command(
    runs: Sequence[str], vllm: str | None, host: str, port: int, dtype: str | None,
    max_num_seqs: int, dry_run: bool, words: Sequence[str],
) -> int:  # fmt: skip
    """Serve until it is stopped; returns the exit code."""
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()
    executable = vllm or "vllm" if dry_run else find_vllm(vllm)
    plan = make_plan(
        runs, vllm=executable, host=host, port=port, gpu=torch.cuda.is_available(), dtype=dtype,
        max_num_seqs=max_num_seqs, words=words, merge=not dry_run,
    )  # fmt: skip
    if dry_run:
        print(plan.shown())
        return 0
    version = check_version(executable)
    images = pictures()
    print(f"vLLM {version}; what the runs answer here is computed first", flush=True)
    here = {name: written_here(run, images, plan.dtype) for name, run in plan.models.items()}
    log = files.cache_dir() / "serve" / f"{port}.log"
    print(f"starting it, a minute or more; it writes to {log}", flush=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with running(plan, log) as process:
            for name, run in plan.models.items():
                there = written_there(plan, name, run, images)
                drift = compare(here[name], there, name)
                if plan.adapters:
                    check_effect(plan, name, here[name], there, images)
                tokens = sum(len(one.ids) for one in there)
                print(f"{name}: the same prompts and answers as in this process; {tokens} tokens, "
                      f"log-probabilities {drift:.1e} apart in the mean")  # fmt: skip
            print(f"ready: {plan.url}\n\n{curl(plan)}\n", flush=True)
            code = process.wait()
            raise UserError(f"vLLM stopped with code {code}: the end of {log} may say why")
    except KeyboardInterrupt:
        print("stopped")
        return 0


def curl(plan: Plan) -> str:
    """A shell command that asks the first model about FACE.png, or IMAGE1.png and so on."""
    from vlmface.infer.endpoint import with_images

    name, run = next(iter(plan.models.items()))
    found, asked = manifest.load(run)
    mark = "@@"
    body = requests_of(run) | {
        "model": name, "max_tokens": found.generation["max_new_tokens"], "temperature": 0,
        "messages": with_images(
            asked[0].messages(),
            [f"data:image/png;base64,{mark}{i}{mark}" for i in range(1, asked[0].images + 1)],
        ),
    }  # fmt: skip
    quoted = shlex.quote(json.dumps(body))
    for i in range(1, asked[0].images + 1):
        file = f"IMAGE{i}.png" if asked[0].images > 1 else "FACE.png"
        quoted = quoted.replace(f"{mark}{i}{mark}", f"'\"$(base64 -w0 {file})\"'")
    return (
        f"printf %s {quoted} | curl -s {plan.url}/chat/completions "
        + (f'-H "Authorization: Bearer ${KEY}" ' if os.environ.get(KEY) else "")
        + "-H 'Content-Type: application/json' -d @-"
    )
