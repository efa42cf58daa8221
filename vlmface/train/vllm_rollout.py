"""Rollouts by a vLLM server next to the training process, on its own GPUs.

    VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 vllm serve BASE --enable-lora --max-lora-rank 64 \\
        --logprobs-mode processed_logprobs

Before each batch of completions the adapter is written to a folder that both machines can read, and
loaded by the server. The server returns token ids with their log-probabilities, which the trainer
compares with its own: a server with another base, template or precision is detected.
"""

from __future__ import annotations

import asyncio
import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx2

from vlmface.data.row_images import open_row_image
from vlmface.errors import UserError
from vlmface.infer.chat import attach_images
from vlmface.infer.endpoint import Endpoint, NoAnswerError, open_client, send_request
from vlmface.infer.remote import image_uris
from vlmface.infer.sampling import Rollout
from vlmface.prompts import Prompt


class ServerGoneError(UserError):
    """The server has stopped answering, or gives unusable answers."""


class VLLMRolloutServer:
    """A vLLM server that samples completions.

    Args:
        url: Of the API, such as "http://host:8000/v1".
        prompt: What it is asked.
        folder: For adapters; the server reads it under the same path.
        sampling: Fields of each request.
        attempts: Tries of one request, with pauses that grow from 1 to 60 s.
        timeout_s: Of one request.
        concurrency: The most requests at once.
        padding: The colour that images are padded to a square with (`Family.padding`).
    """

    def __init__(
        self,
        url: str,
        prompt: Prompt,
        folder: Path,
        sampling: dict[str, Any],
        *,
        attempts: int = 6,
        timeout_s: float = 600.0,
        concurrency: int = 32,
        padding: tuple[int, ...] | None = None,
    ) -> None:
        self.prompt, self.folder, self.sampling = prompt, folder.resolve(), sampling
        self.padding = padding
        self.endpoint = Endpoint(
            url, "", attempts=attempts, timeout_s=timeout_s, concurrency=concurrency
        )
        self.endpoint.check()
        # Other runs may use the same server.
        self.prefix = f"vlmface-{hashlib.sha256(str(self.folder).encode()).hexdigest()[:8]}-"
        self.name = ""  # of the active adapter

    def adapter_folder(self, step: int) -> Path:
        """The folder for the weights of a step, which must exist before `load` is called."""
        return self.folder / f"step-{step}"

    def load(self, step: int) -> None:
        """Load the adapter of `step` on the server, and unload earlier ones of this run. Raises
        ServerGoneError."""

        async def update() -> None:
            async with open_client(self.endpoint) as client:
                await self._unload(client)
                body = {
                    "lora_name": f"{self.prefix}{step}",
                    "lora_path": str(self.adapter_folder(step)),
                }
                await self._post(client, "load_lora_adapter", body)

        self._run(update())
        for old in self.folder.glob("step-*"):
            if old != self.adapter_folder(step):
                shutil.rmtree(old)
        self.use(step)

    def use(self, step: int) -> None:
        """Use the adapter of `step`, which a process of this run has loaded."""
        self.name = f"{self.prefix}{step}"

    def close(self) -> None:
        """Unload the adapters at the end of training, if the server is still running."""

        async def update() -> None:
            async with open_client(self.endpoint) as client:
                await self._unload(client)

        try:
            self._run(update())
        except ServerGoneError as error:
            print(f"warning: {error}; the training has finished without it")
        shutil.rmtree(self.folder, ignore_errors=True)

    async def _unload(self, client: httpx2.AsyncClient) -> None:
        models = await send_request(
            client, self.endpoint, "models", None, lambda reply: reply.json()
        )
        for name in [model["id"] for model in models["data"]]:
            if name.startswith(self.prefix):
                await self._post(client, "unload_lora_adapter", {"lora_name": name})

    async def _post(self, client: httpx2.AsyncClient, path: str, body: dict[str, str]) -> None:
        try:
            await send_request(client, self.endpoint, path, body, lambda reply: reply.text)
        except NoAnswerError as error:
            if error.retryable:
                raise
            raise ServerGoneError(
                f"{self.endpoint.url} rejects the adapter in {body.get('lora_path')}: {error}"
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
        evidence: Sequence[str] | None = None,
    ) -> Rollout:
        """Sample completions.

        Args:
            images: Of each row, as they are stored.
            prompts: Token ids of each row's prompt, as the trainer encodes it.
            group: Completions of each row.
            seed: Of the first row.
            evidence: Of each row, if the prompt contains any.

        Returns:
            The completions.

        Raises:
            ServerGoneError: The server does not respond, or encodes another prompt.
        """

        async def sample_all() -> list[list[dict[str, Any]]]:
            slots = asyncio.Semaphore(self.endpoint.concurrency)
            async with open_client(self.endpoint) as client:

                async def sample_row(row: int) -> list[dict[str, Any]]:
                    text = evidence[row] if evidence else None
                    body = self._request(images[row], group, (seed + row) % 2**31, text)
                    async with slots:
                        prompt_ids, choices = await send_request(
                            client, self.endpoint, "chat/completions", body, _parse_reply
                        )
                    self._check_prompt(prompt_ids, list(prompts[row]))
                    if len(choices) != group:
                        raise ServerGoneError(
                            f"{self.endpoint.url} gave {len(choices)} completions instead of "
                            f"{group}"
                        )
                    return choices

                return await asyncio.gather(*map(sample_row, range(len(images))))

        completions = [choice for choices in self._run(sample_all()) for choice in choices]
        return Rollout(
            [completion["ids"] for completion in completions],
            [completion["log_probs"] for completion in completions],
            [completion["complete"] for completion in completions],
        )

    def _request(
        self, stored: Sequence[Any], group: int, seed: int, evidence: str | None
    ) -> dict[str, Any]:
        # Lossless: the server encodes the same pixels as the trainer.
        opened = [open_row_image(image).convert("RGB") for image in stored]
        return {
            **self.sampling,
            "model": self.name,
            "messages": attach_images(
                self.prompt.messages(evidence), image_uris(opened, self.padding)
            ),
            "n": group,
            "seed": seed,
            "logprobs": True,
            "return_token_ids": True,
        }

    def _check_prompt(self, ids: list[int] | None, expected: list[int]) -> None:
        # TRL's own vLLM rollouts expand image tokens twice (huggingface/trl#6294); that would be
        # detected here.
        if ids is not None and ids != expected:
            shorter = min(len(ids), len(expected))
            at = next((i for i in range(shorter) if ids[i] != expected[i]), shorter)
            raise ServerGoneError(
                f"the server reads another prompt than the trainer: {len(ids)} tokens instead of "
                f"{len(expected)}, different from token {at} on. It needs the processor and chat "
                "template of the run that training starts from"
            )

    def _run(self, work: Any) -> Any:
        try:
            return asyncio.run(work)
        except NoAnswerError as error:
            raise ServerGoneError(
                f"the vLLM server at {self.endpoint.url} does not answer ({error})"
            ) from None


def _parse_reply(reply: httpx2.Response) -> tuple[list[int] | None, list[dict[str, Any]]]:
    """(ids of the prompt if the server sends them, completions)."""
    content, completions = reply.json(), []
    for choice in content["choices"]:
        ids = list(choice["token_ids"])
        log_probs = [float(token["logprob"]) for token in choice["logprobs"]["content"]]
        if len(ids) != len(log_probs):
            raise ValueError(f"{len(ids)} tokens with {len(log_probs)} log-probabilities")
        complete = choice["finish_reason"] == "stop"
        completions.append({"ids": ids, "log_probs": log_probs, "complete": complete})
    return content.get("prompt_token_ids"), completions
