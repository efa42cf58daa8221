"""vLLM's command line for runs: all its settings follow from their manifests."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmface import families, manifest
from vlmface.errors import UserError
from vlmface.manifest import Manifest
from vlmface.utils import files

BASE_MODEL_NAME = "base"  # the served name of the base of adapters
API_KEY_ENV = "VLLM_API_KEY"  # the environment variable from which vLLM reads its key
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
