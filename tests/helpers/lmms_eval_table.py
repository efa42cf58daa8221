"""lmms-eval with a model `table` that says what a file holds: `answers=FILE` in --model_args, JSON
{question: {digest of the picture: text}}. The command line is lmms-eval's own."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from lmms_eval.api.model import lmms

GENERATION = {"max_new_tokens": 48, "temperature": 0.0, "do_sample": False, "until": []}


class Simple(lmms):
    """Is given a text and a picture."""

    def __init__(self, answers: str, **_: Any) -> None:
        super().__init__()
        self.answers = json.loads(Path(answers).read_text(encoding="utf-8"))

    def generate_until(self, requests: list[Any]) -> list[str]:
        return [self.answer(*request.args) for request in requests]

    def answer(
        self, text: str, options: dict[str, Any], visual: Any, doc: int, task: str, split: str
    ) -> str:
        (picture,) = visual(self.task_dict[task][split][doc])
        return self.look_up(text, picture, options)

    def look_up(self, question: str, picture: Any, options: dict[str, Any]) -> str:
        assert options == GENERATION, options
        assert picture.mode == "RGB"
        return self.answers[question][hashlib.sha256(picture.tobytes()).hexdigest()]

    def loglikelihood(self, requests: list[Any]) -> list[Any]:
        raise AssertionError("the tasks ask for texts alone")

    def generate_until_multi_round(self, requests: list[Any]) -> list[str]:
        raise AssertionError("the tasks ask once")


class Chat(Simple):
    """Is given messages; "role: text" of each makes the question."""

    is_simple = False

    def answer(
        self, text: str, messages: Any, options: dict[str, Any], doc: int, task: str, split: str
    ) -> str:
        from lmms_eval.protocol import ChatMessages

        chat = ChatMessages(messages=messages(self.task_dict[task][split][doc]))
        (picture,), _, _ = chat.extract_media()
        assert chat.messages[-1].content[0].type == "image"
        question = [
            f"{message.role}: {block.text}"
            for message in chat.messages
            for block in message.content
            if block.type == "text"
        ]
        return self.look_up("\n\n".join(question), picture, options)


if __name__ == "__main__":
    from lmms_eval import models
    from lmms_eval.cli.dispatch import main
    from lmms_eval.models.registry_v2 import ModelManifest

    paths = {
        "simple_class_path": "lmms_eval_table.Simple",
        "chat_class_path": "lmms_eval_table.Chat",
    }
    models.MODEL_REGISTRY_V2.register_manifest(ModelManifest("table", **paths))
    main()
