"""Faces a second of an evaluation: ours against transformers used plainly. A LLaVA-shaped model of
at least 50 M random weights, float32, on a CPU.

    python tests/perf/eval_speed.py [--repeats 5] [--faces 16] [--json FILE]

scoring     the likelihood of 8 labels, pictures of 336 pixels (576 tokens, as in LLaVA-1.5): behind
            one reading of picture and prompt, in batches, against a forward pass over the whole
            conversation for each label
generation  greedy answers of up to 256 tokens, the length of a written-out reasoning, pictures of
            224 pixels (256 tokens): in batches, against `generate` for one picture at a time, which
            is how FERBench's script asks, at that size

Both sides work in one process, in turn: ours on a batch of all faces, the plain one on the first of
them, one by one. Likelihoods must be equal to 1e-4 and texts must be equal. Seconds a face are
compared, and the median of the pairs' ratios counts.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness

TOKENS = 256
ONE_BY_ONE = 8  # faces that are asked plainly: each takes as long as the others


def build(folder: Path, image_size: int = 336) -> None:
    from helpers.checkpoints import llava_sizes

    from vlmface import families, prompts

    corpus = [str(prompts.load("face_cot").messages()), "USER: ASSISTANT:"] * 20
    sizes = llava_sizes(image_size, vision=(384, 8), language=(576, 10, 1536))
    families.get("llava").build_tiny(folder, corpus, **sizes)


def plain_inputs(model: Any, processor: Any, prompt: Any, image: Any, answer: str) -> Any:
    """One conversation as transformers makes it of chat template, processor and text."""
    text = processor.apply_chat_template(prompt.messages(), add_generation_prompt=True)
    inputs = processor(text=text + answer, images=[image], return_tensors="pt")
    return inputs.to(model.device, model.dtype)  # pixels alone change their type


def plain_scores(model: Any, processor: Any, prompt: Any, images: Any) -> list[Any]:
    """For each picture, for each label, the log-likelihood of the answer that says it, from one
    forward pass over the conversation."""
    import torch

    found = []
    for image in images:
        start = plain_inputs(model, processor, prompt, image, "")["input_ids"].shape[1]
        row = []
        for label in prompt.space.labels:
            answer = f" {prompt.completion('', label)}{processor.tokenizer.eos_token}"
            inputs = plain_inputs(model, processor, prompt, image, answer)
            ids = inputs["input_ids"][0]
            with torch.inference_mode():
                log_p = model(**inputs).logits[0].log_softmax(-1)
            own = torch.arange(start, len(ids), device=ids.device)
            row.append(log_p[own - 1, ids[own]].sum().item())
        found.append(row)
    return found


def plain_texts(model: Any, processor: Any, prompt: Any, images: Any) -> list[Any]:
    """For each picture the ids that `generate` appends."""
    import torch

    found = []
    for image in images:
        inputs = plain_inputs(model, processor, prompt, image, "")
        with torch.inference_mode():
            ids = model.generate(**inputs, do_sample=False, max_new_tokens=TOKENS)
        found.append(ids[0, inputs["input_ids"].shape[1] :])
    return found


def text_of(processor: Any, ids: Any) -> str:
    return processor.tokenizer.decode(ids, skip_special_tokens=True).strip()


def is_tie(model: Any, processor: Any, prompt: Any, image: Any, expected: Any, text: str) -> bool:
    """Whether the texts part where the two likeliest tokens of this model, whose weights are
    random, are equally likely to rounding."""
    import torch

    same = max(
        k for k in range(len(expected) + 1) if text.startswith(text_of(processor, expected[:k]))
    )
    inputs = plain_inputs(model, processor, prompt, image, "")
    ids = torch.cat([inputs.pop("input_ids"), expected[None, :same]], 1)
    inputs["attention_mask"] = torch.ones_like(ids)
    with torch.inference_mode():
        best = model(input_ids=ids, **inputs).logits[0, -1].topk(2).values
    return bool(best[0] - best[1] < 1e-3)


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    result = work()
    return time.perf_counter() - began, result


def main() -> None:
    global TOKENS, ONE_BY_ONE
    parser = harness.parser(__doc__)
    parser.add_argument("--faces", type=int, default=16)
    words = parser.parse_args()
    sizes = (336, 224)  # pixels, of scoring and of generation
    if words.small:
        TOKENS, ONE_BY_ONE, words.faces, words.repeats, sizes = 8, 2, 2, 1, (56, 28)

    from vlmface.evaluate import answering
    from vlmface.infer.local import LocalModel
    from vlmface.synth import dataset

    images = answering.images_of(dataset.load("test", n=words.faces, size=sizes[0]))
    with tempfile.TemporaryDirectory() as name:
        large, small = Path(name, "large"), Path(name, "small")
        build(large, sizes[0])
        build(small, sizes[1])
        scorer = LocalModel.load(large, prompt="face_cot")
        writer = LocalModel.load(small, prompt="face_cot", max_new_tokens=TOKENS)
        size = sum(weight.numel() for weight in writer.model.parameters())
        print(f"{size / 1e6:.1f} M weights, {words.faces} faces")
        few = images[:ONE_BY_ONE]
        sides: dict[str, dict[str, Callable[[], Any]]] = {
            "scoring": {
                "plain": lambda: plain_scores(scorer.model, scorer.processor, scorer.prompt, few),
                "ours": lambda: scorer.score(images, batch_size=words.faces),
            },
            "generation": {
                "plain": lambda: plain_texts(writer.model, writer.processor, writer.prompt, few),
                "ours": lambda: writer.predict(images, batch_size=words.faces, probabilities=False),
            },
        }
        scorer.score(images[:1])  # warms up
        seconds: dict[str, list[list[float]]] = {"scoring": [], "generation": []}
        equal = {"scoring": 0.0, "generation": 0.0}
        for repeat in range(words.repeats):
            for task, both in sides.items():
                (theirs, expected), (ours, found) = timed(both["plain"]), timed(both["ours"])
                pair = [ours / words.faces, theirs / ONE_BY_ONE]
                seconds[task].append(pair)
                print(
                    f"{task} {repeat}: plain {pair[1]:.2f} s a face, ours {pair[0]:.2f} s",
                    flush=True,
                )
                if task == "scoring":
                    equal[task] = max(equal[task], difference(found, expected))
                else:
                    how = writer.model, writer.processor, writer.prompt
                    different = sum(
                        one.text != text_of(writer.processor, ids)
                        and not is_tie(*how, image, ids, one.text)
                        for one, ids, image in zip(found, expected, images, strict=False)
                    )
                    equal[task] = max(equal[task], different)
    print(
        f"largest difference of log-likelihoods {equal['scoring']:.1e}, texts that differ "
        f"{equal['generation']:.0f}"
    )
    assert equal["scoring"] < 1e-4 and equal["generation"] == 0
    ratios = {
        task: statistics.median(theirs / ours for ours, theirs in runs)
        for task, runs in seconds.items()
    }
    print(", ".join(f"{task} {ratio:.2f} times as fast" for task, ratio in ratios.items()))
    harness.write(words.json, "eval_speed", ratio=ratios, runs=seconds, equal=equal)


def difference(found: Any, expected: list[list[float]]) -> float:
    """The largest difference of two likelihoods relative to the first label's: what all labels of
    an answer have in common is in the plain sums, and in none of ours."""
    gaps = []
    for scores, row in zip(found, expected, strict=False):
        ours = list(scores.log_likelihood.values())
        gaps += [abs((a - ours[0]) - (b - row[0])) for a, b in zip(ours, row, strict=True)]
    return max(gaps)


if __name__ == "__main__":
    main()
