"""Rollouts by a vLLM server that runs beside the training, on GPUs of its own.

    VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 vllm serve BASE --enable-lora --max-lora-rank 64 \\
        --logprobs-mode processed_logprobs

Before each batch of completions the adapter is written to a folder that both machines see, and the
server is told to answer with it. It returns token ids and their log-probabilities, and the trainer
holds the latter against its own: a server with another base, template or precision is noticed.
"""

from __future__ import annotations

import asyncio
import base64
import io
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx2

from vlmface.encode import open_row_image
from vlmface.errors import UserError
from vlmface.infer.endpoint import Endpoint, NoAnswerError, post, with_image
from vlmface.prompts import Prompt
from vlmface.train.rollout import Rollout


class ServerGoneError(UserError):
    """The server does not answer any more, or not what it should."""


class Server:
    """A vLLM server at `url` ("http://host:8000/v1"), asked with `prompt`.

    `folder`: where adapters are written, seen by the server under the same path. `sampling`: fields
    of each request. `attempts` tries with pauses that grow from a second, 60 s at most.
    """

    def __init__(
        self, url: str, prompt: Prompt, folder: Path, sampling: dict[str, Any], *,
        attempts: int = 6, timeout_s: float = 600.0, concurrency: int = 32,
    ) -> None:  # fmt: skip
        self.prompt, self.folder, self.sampling = prompt, folder.resolve(), sampling
        self.endpoint = Endpoint(
            url, "", attempts=attempts, timeout_s=timeout_s, concurrency=concurrency
        )
        self.endpoint.check()
        self.name: str | None = None  # of the adapter that it answers with

    def adapter_folder(self, step: int) -> Path:
        """Where the weights of a step belong, before `load` is called."""
        return self.folder / f"step-{step}"

    def load(self, step: int) -> None:
        """Let the server answer with the adapter of `step` from now on. Raises ServerGoneError."""
        name, before = f"vlmface-step-{step}", self.name
        path = str(self.adapter_folder(step))

        async def change() -> None:
            async with self._client() as client:
                if before is not None:
                    await self._tell(client, "unload_lora_adapter", {"lora_name": before})
                await self._tell(
                    client, "load_lora_adapter", {"lora_name": name, "lora_path": path}
                )

        self._run(change())
        self.name = name
        for old in self.folder.glob("step-*"):
            if old != self.adapter_folder(step):
                shutil.rmtree(old)

    def use(self, step: int) -> None:
        """Answer with what another process has told the server to `load`."""
        self.name = f"vlmface-step-{step}"

    async def _tell(self, client: httpx2.AsyncClient, path: str, body: dict[str, str]) -> None:
        """A request whose reply is a sentence."""
        url = f"{self.endpoint.url.rstrip('/')}/{path}"
        try:
            reply = await client.post(url, json=body)
        except httpx2.TransportError as error:
            raise NoAnswerError(f"{type(error).__name__} {error}".strip(), passing=True) from error
        said = " ".join(reply.text[:300].split())
        if reply.status_code == 404 and path == "load_lora_adapter" and "adapter" not in said:
            raise ServerGoneError(
                f"{url} does not exist: start the server with --enable-lora and the environment "
                "variable VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"
            )
        # A server that was started anew knows no adapter to unload, one that was not may have this.
        if reply.status_code >= 400 and not (
            path == "unload_lora_adapter" or "already been loaded" in said
        ):
            raise ServerGoneError(f"{url} refuses the adapter (HTTP {reply.status_code}): {said}")

    def sample(
        self, images: Sequence[Any], prompts: Sequence[Sequence[int]], group: int, seed: int
    ) -> Rollout:
        """`group` completions of each image (stored rows); `prompts` are the token ids that the
        trainer reads for them. Raises ServerGoneError."""

        async def ask_all() -> list[list[dict[str, Any]]]:
            limit = asyncio.Semaphore(self.endpoint.concurrency)
            async with self._client() as client:

                async def ask(number: int, image: Any) -> list[dict[str, Any]]:
                    body = {
                        **self.sampling,
                        "model": self.name,
                        "messages": with_image(self.prompt.messages(), _data_uri(image)),
                        "n": group,
                        "seed": (seed + number) % 2**31,
                        "logprobs": True,
                        "return_token_ids": True,
                    }
                    async with limit:
                        asked, choices = await post(
                            client, self.endpoint, "chat/completions", body, _read
                        )
                    self._check_prompt(asked, list(prompts[number]))
                    if len(choices) != group:
                        raise ServerGoneError(
                            f"{self.endpoint.url} gave {len(choices)} completions instead of "
                            f"{group}"
                        )
                    return choices

                return await asyncio.gather(*(ask(i, image) for i, image in enumerate(images)))

        found = [choice for choices in self._run(ask_all()) for choice in choices]
        return Rollout(
            [one["ids"] for one in found],
            [one["log_probs"] for one in found],
            [one["complete"] for one in found],
        )

    def _check_prompt(self, asked: list[int] | None, expected: list[int]) -> None:
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


def _data_uri(stored: Any) -> str:
    """The picture without loss: what the server sees is what the trainer sees."""
    file = io.BytesIO()
    open_row_image(stored).convert("RGB").save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def _read(content: Any) -> tuple[list[int] | None, list[dict[str, Any]]]:
    """(ids of the prompt if they are told, completions) of a reply."""
    found = []
    for choice in content["choices"]:
        ids = list(choice["token_ids"])
        log_probs = [float(token["logprob"]) for token in choice["logprobs"]["content"]]
        if len(ids) != len(log_probs):
            raise ValueError(f"{len(ids)} tokens with {len(log_probs)} log-probabilities")
        found.append({"ids": ids, "log_probs": log_probs,
                      "complete": choice["finish_reason"] == "stop"})  # fmt: skip
    return content.get("prompt_token_ids"), found
