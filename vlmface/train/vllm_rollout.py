"""Rollouts by a vLLM server that runs beside the training, on GPUs of its own.

    VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 vllm serve BASE --enable-lora --max-lora-rank 64 \\
        --logprobs-mode processed_logprobs

Before each batch of completions the adapter is written to a folder that both machines see, and the
server is told to answer with it. It returns token ids and their log-probabilities, and the trainer
holds the latter against its own: a server with another base, template or precision is noticed.
"""

from __future__ import annotations

import asyncio
import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx2

from vlmface import families
from vlmface.data.row_images import open_row_image
from vlmface.errors import UserError
from vlmface.infer.endpoint import Endpoint, NoAnswerError, call, with_images
from vlmface.infer.sampling import Rollout
from vlmface.infer.server import png_uri
from vlmface.prompts import Prompt


class ServerGoneError(UserError):
    """The server does not answer any more, or not what it should."""


class Server:
    """A vLLM server at `url` ("http://host:8000/v1"), asked with `prompt`.

    `folder`: where adapters are written, seen by the server under the same path. `sampling`: fields
    of each request. `attempts` tries with pauses that grow from a second, 60 s at most. `padding`:
    the colour that pictures are padded to a square with (`Family.padding`).
    """

    def __init__(
        self, url: str, prompt: Prompt, folder: Path, sampling: dict[str, Any], *,
        attempts: int = 6, timeout_s: float = 600.0, concurrency: int = 32,
        padding: tuple[int, ...] | None = None,
    ) -> None:  # fmt: skip
        self.prompt, self.folder, self.sampling = prompt, folder.resolve(), sampling
        self.padding = padding
        self.endpoint = Endpoint(
            url, "", attempts=attempts, timeout_s=timeout_s, concurrency=concurrency
        )
        self.endpoint.check()
        # Other runs may use the same server.
        self.prefix = f"vlmface-{hashlib.sha256(str(self.folder).encode()).hexdigest()[:8]}-"
        self.name = ""  # of the adapter that it answers with

    def adapter_folder(self, step: int) -> Path:
        """Where the weights of a step belong, before `load` is called."""
        return self.folder / f"step-{step}"

    def load(self, step: int) -> None:
        """Let the server answer with the adapter of `step`, and forget earlier ones of this run.
        Raises ServerGoneError."""

        async def change() -> None:
            async with self._client() as client:
                await self._unload(client)
                body = {"lora_name": f"{self.prefix}{step}",
                        "lora_path": str(self.adapter_folder(step))}  # fmt: skip
                await self._tell(client, "load_lora_adapter", body)

        self._run(change())
        for old in self.folder.glob("step-*"):
            if old != self.adapter_folder(step):
                shutil.rmtree(old)
        self.use(step)

    def use(self, step: int) -> None:
        """Answer with what a process of this run has told the server to `load`."""
        self.name = f"{self.prefix}{step}"

    def close(self) -> None:
        """At the end of training: the server keeps nothing of it, if it is still there."""

        async def change() -> None:
            async with self._client() as client:
                await self._unload(client)

        try:
            self._run(change())
        except ServerGoneError as error:
            print(f"warning: {error}; the training is done without it")
        shutil.rmtree(self.folder, ignore_errors=True)

    async def _unload(self, client: httpx2.AsyncClient) -> None:
        listed = await call(client, self.endpoint, "models", None, lambda reply: reply.json())
        for name in [model["id"] for model in listed["data"]]:
            if name.startswith(self.prefix):
                await self._tell(client, "unload_lora_adapter", {"lora_name": name})

    async def _tell(self, client: httpx2.AsyncClient, path: str, body: dict[str, str]) -> None:
        try:
            await call(client, self.endpoint, path, body, lambda reply: reply.text)
        except NoAnswerError as error:
            if error.passing:
                raise
            raise ServerGoneError(
                f"{self.endpoint.url} refuses the adapter in {body.get('lora_path')}: {error}"
            ) from None
        except UserError as error:
            raise ServerGoneError(
                f"{error}. The server must run with --enable-lora and the environment variable "
                "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"
            ) from None

    def sample(
        self,
        images: Sequence[Sequence[Any]],
        prompts: Sequence[Sequence[int]],
        group: int,
        seed: int,
    ) -> Rollout:
        """`group` completions of each row's images, as they are stored; `prompts` are the token ids
        that the trainer reads for them. Raises ServerGoneError."""

        async def ask_all() -> list[list[dict[str, Any]]]:
            limit = asyncio.Semaphore(self.endpoint.concurrency)
            async with self._client() as client:

                async def ask(number: int, shown: Sequence[Any]) -> list[dict[str, Any]]:
                    pictures = [_lossless(picture, self.padding) for picture in shown]
                    body = {
                        **self.sampling,
                        "model": self.name,
                        "messages": with_images(self.prompt.messages(), pictures),
                        "n": group,
                        "seed": (seed + number) % 2**31,
                        "logprobs": True,
                        "return_token_ids": True,
                    }
                    async with limit:
                        asked, choices = await call(
                            client, self.endpoint, "chat/completions", body, _read
                        )
                    self._check_prompt(asked, list(prompts[number]))
                    if len(choices) != group:
                        raise ServerGoneError(
                            f"{self.endpoint.url} gave {len(choices)} completions instead of "
                            f"{group}"
                        )
                    return choices

                return await asyncio.gather(*(ask(i, shown) for i, shown in enumerate(images)))

        found = [choice for choices in self._run(ask_all()) for choice in choices]
        return Rollout(
            [one["ids"] for one in found],
            [one["log_probs"] for one in found],
            [one["complete"] for one in found],
        )

    def _check_prompt(self, asked: list[int] | None, expected: list[int]) -> None:
        # TRL's own vLLM rollouts expand image tokens twice (huggingface/trl#6294); here that would
        # be noticed.
        if asked is not None and asked != expected:
            at = next((i for i, (a, b) in enumerate(zip(asked, expected, strict=False)) if a != b),
                      min(len(asked), len(expected)))  # fmt: skip
            raise ServerGoneError(
                f"the server reads another prompt than the trainer: {len(asked)} tokens instead of "
                f"{len(expected)}, different from token {at} on. It needs the processor and chat "
                "template of the run that training starts from"
            )

    def _client(self) -> httpx2.AsyncClient:
        return httpx2.AsyncClient(
            timeout=self.endpoint.timeout_s,
            limits=httpx2.Limits(max_connections=self.endpoint.concurrency),
        )

    def _run(self, work: Any) -> Any:
        try:
            return asyncio.run(work)
        except NoAnswerError as error:
            raise ServerGoneError(
                f"the vLLM server at {self.endpoint.url} does not answer ({error})"
            ) from None


def _lossless(stored: Any, padding: tuple[int, ...] | None) -> str:
    """What the server sees is what the trainer sees."""
    return png_uri(families.padded(open_row_image(stored).convert("RGB"), padding))


def _read(reply: httpx2.Response) -> tuple[list[int] | None, list[dict[str, Any]]]:
    """(ids of the prompt if they are told, completions) of a reply."""
    content, found = reply.json(), []
    for choice in content["choices"]:
        ids = list(choice["token_ids"])
        log_probs = [float(token["logprob"]) for token in choice["logprobs"]["content"]]
        if len(ids) != len(log_probs):
            raise ValueError(f"{len(ids)} tokens with {len(log_probs)} log-probabilities")
        found.append({"ids": ids, "log_probs": log_probs,
                      "complete": choice["finish_reason"] == "stop"})  # fmt: skip
    return content.get("prompt_token_ids"), found
