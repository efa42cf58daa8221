"""Random checkpoints of every registered family, and what plain transformers makes of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from vlmface import encode, families

llava = families.get("llava")
paligemma = families.get("paligemma")
qwen_vl = families.get("qwen_vl")
smolvlm = families.get("smolvlm")

# {model type: (folder, corpus, **sizes) -> (model, processor)}
BUILDERS: dict[str, Callable[..., Any]] = {
    model_type: partial(families.get(name).build_tiny, model_type=model_type)
    for name in families.FAMILIES
    for model_type in families.get(name).MODEL_TYPES
}


def corpus(turns: str = "USER: User: Assistant: system user") -> list[str]:
    """Texts for the tokenizers: rationales, prompts and the words of the chat templates."""
    from helpers.samples import FACES
    from vlmface import prompts
    from vlmface.rationale import rules

    texts = [
        rules.write(aus, emotion, format=format, seed=seed)
        for aus, emotion in FACES
        for format in ("think_answer", "three_part")
        for seed in range(20)
    ]
    for name in ("face_cot", "expllm", "expllm_label"):
        texts += [str(prompts.load(name).messages()), turns] * 20
    return texts


def clip_vision(width: int, layers: int, heads: int, image: int, patch: int = 14) -> Any:
    """The configuration of a CLIP tower whose MLP is four times as wide."""
    from transformers import CLIPVisionConfig

    return CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        image_size=image,
        patch_size=patch,
    )


def llava_sizes(
    image: int, vision: tuple[int, int], language: tuple[int, int, int], patch: int = 14
) -> dict[str, int]:
    """Options of `llava.build_tiny`: pixels; (width, layers); (width, layers, width of the MLP)."""
    names = ("vision_width", "vision_layers", "hidden", "layers", "mlp")
    sizes = dict(zip(names, (*vision, *language), strict=True))
    return sizes | {"image_size": image, "patch_size": patch, "max_length": 1024}


def build_clip(folder: Path) -> Path:
    """A random CLIP of open_clip with two layers a tower: 32 x 32 pixels, 24 features."""
    import open_clip

    from vlmface.clip import model

    torch.manual_seed(0)
    vision = {"image_size": 32, "patch_size": 8, "width": 32, "layers": 2, "head_width": 16}
    text = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
    shape = {"embed_dim": 24, "vision_cfg": vision, "text_cfg": text}
    config = {"model_cfg": shape, "preprocess_cfg": {"size": 32, "resize_mode": "squash"}}
    built = model.Clip(open_clip.CLIP(**shape), open_clip.SimpleTokenizer(), config, "small")
    model.save_clip(built, folder)
    return folder


def processed(
    processor: Any, messages: Sequence[Any], images: Sequence[Any], target: str | None = None
) -> Any:
    """The processor's own batch of one conversation, answered if there is a target."""
    if not processor.chat_template:  # PaliGemma, whose processor writes the conversation itself
        question = messages[-1]["content"][-1]["text"]
        return processor(
            text=[processor.image_token * len(images) + question],
            images=[list(images)],
            suffix=None if target is None else [target],
            return_tensors="pt",
        )
    turns = list(messages)
    if target is not None:
        turns.append({"role": "assistant", "content": [{"type": "text", "text": target}]})
    text = processor.apply_chat_template(turns, add_generation_prompt=target is None)
    special = not text.startswith(processor.tokenizer.bos_token or "\0")
    return processor(
        text=[text], images=[list(images)], return_tensors="pt", add_special_tokens=special
    )


def log_likelihoods(predictor: Any, images: Any, rationale: str = "") -> dict[str, float]:
    """Log-likelihoods of the labels by one full forward pass for each."""
    scores = {}
    for label in predictor.prompt.space.labels:
        text = predictor.prompt.completion(rationale, label)
        row = encode.encode(predictor.processor, predictor.family, predictor.messages, images, text)
        batch = encode.Collator(predictor.processor, predictor.family)([row])
        labels = batch.pop("labels")[0, 1:]
        with torch.no_grad():
            log_p = predictor.model(**batch, use_cache=False).logits[0, :-1].log_softmax(-1)
        supervised = labels != encode.IGNORED
        scores[label] = float(log_p[supervised].gather(-1, labels[supervised, None]).sum())
    return scores


def probabilities(scores: dict[str, float]) -> dict[str, float]:
    """The label probabilities of log-likelihoods."""
    values = torch.tensor(list(scores.values())).softmax(0).tolist()
    return dict(zip(scores, values, strict=True))


def write_script(monkeypatch: Any, predictor: Any, texts: Sequence[str]) -> None:
    """Let generation write the given answers, a row each, through the real cache."""
    tokenizer, generate = predictor.processor.tokenizer, predictor.model.generate
    stop = predictor.family.stop_token_ids(predictor.processor)[0]
    script = [[*tokenizer(t, add_special_tokens=False)["input_ids"], stop] for t in texts]

    def scripted(**inputs: Any) -> Any:
        start = inputs["input_ids"].shape[1]

        def only_the_script(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            scores = torch.full_like(scores, -1e9)
            for row, answer in enumerate(script):
                scores[row, answer[min(ids.shape[1] - start, len(answer) - 1)]] = 0
            return scores

        return generate(**inputs, logits_processor=[only_the_script])

    monkeypatch.setattr(predictor.model, "generate", scripted)
    predictor.max_new_tokens = max(map(len, script))
