"""Checkpoints as others publish them: generation settings, chat templates, processor files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.checkpoints import llava, qwen_vl
from helpers.samples import picture
from helpers.training import save_manifest, sft_settings
from PIL import Image

from vlmface import encode, families, manifest, prompts
from vlmface.errors import SkippedSampleError, UserError
from vlmface.infer import remote, sampling
from vlmface.infer.local import LocalModel
from vlmface.serving import parity
from vlmface.serving import plan as serve_plan
from vlmface.train import text_only
from vlmface.train.rows import encode_rows

PROMPT = prompts.load("face_cot")
TARGET = PROMPT.completion("The lip corners are pulled up (AU12).", "happiness")
PICTURES = [picture(seed) for seed in range(3)]


@pytest.fixture
def copy(base: Path, tmp_path: Path) -> Path:
    """A copy of the small LLaVA, to be changed."""
    return Path(shutil.copytree(base, tmp_path / "copy"))


def change(path: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def as_run(folder: Path) -> Path:
    """The folder of a checkpoint as that of a run that trained all of it."""
    full = dict.fromkeys(("vision_tower", "projector", "language_model"), "full")
    save_manifest(folder, sft_settings(folder, folder, max_new_tokens=24, **full))
    return folder


# --- greedy means greedy --------------------------------------------------------------------------

PENALTIES: list[dict[str, Any]] = [
    {"repetition_penalty": 1.3, "top_k": 20, "do_sample": True, "temperature": 0.7},
    {"no_repeat_ngram_size": 1, "suppress_tokens": list(range(4, 300)), "min_length": 400},
    {"num_beams": 3, "bad_words_ids": [[i] for i in range(4, 300)], "length_penalty": 5.0},
    {"forced_eos_token_id": 2, "begin_suppress_tokens": list(range(2, 300)), "max_time": 0.0},
    {"exponential_decay_length_penalty": [1, 9.0], "renormalize_logits": True, "top_h": 0.3},
]


@pytest.mark.parametrize("penalties", PENALTIES)
def test_a_generation_config_changes_no_answer(
    base: Path, copy: Path, penalties: dict[str, Any]
) -> None:
    content = json.loads((copy / "generation_config.json").read_text())
    (copy / "generation_config.json").write_text(json.dumps(content | penalties))
    how: dict[str, Any] = {"prompt": PROMPT, "max_new_tokens": 16}
    plain, changed = LocalModel.load(base, **how), LocalModel.load(copy, **how)
    expected, found = plain.predict(PICTURES), changed.predict(PICTURES)
    assert [p.text for p in found] == [p.text for p in expected]
    assert [p.probabilities for p in found] == [p.probabilities for p in expected]
    assert list(changed.stream(PICTURES[0]))[-2] == expected[0].text
    assert changed.sample(PICTURES, 2, seed=1) == plain.sample(PICTURES, 2, seed=1)


def test_settings_in_an_old_config_json_change_no_answer(base: Path, copy: Path) -> None:
    (copy / "generation_config.json").unlink()
    change(copy / "config.json", lambda c: c.update(PENALTIES[0], no_repeat_ngram_size=2))
    how: dict[str, Any] = {"prompt": PROMPT, "max_new_tokens": 16}
    plain, changed = LocalModel.load(base, **how), LocalModel.load(copy, **how)
    assert [p.text for p in changed.predict(PICTURES)] == [p.text for p in plain.predict(PICTURES)]


def test_the_answers_that_a_server_is_held_against_are_greedy(
    base: Path, copy: Path, tmp_path: Path
) -> None:
    change(copy / "generation_config.json", lambda c: c.update(PENALTIES[0]))
    run, plain = as_run(copy), as_run(Path(shutil.copytree(base, tmp_path / "plain")))
    found, expected = (parity.generate_local(one, PICTURES, "float32") for one in (run, plain))
    assert [one.ids for one in found] == [one.ids for one in expected]
    assert all(0 < len(one.rounding) <= len(one.ids) and min(one.rounding) > 0 for one in found)
    # Nearly greedy draws of a rollout are the same tokens.
    model = LocalModel.load(run)
    batch = encode.Collator(model.processor, model.family)(model.prompt_rows(PICTURES[:1]))
    drawn = sampling.sample(
        model.model,
        llava,
        encode.to_model(batch, model.model),
        sampling.SamplingOptions(
            max_new_tokens=24, stops=llava.stop_token_ids(model.processor), temperature=1e-5
        ),
        group=2,
        generator=torch.Generator(),
    )
    assert drawn.ids == [expected[0].ids] * 2


def test_a_server_is_told_to_ignore_the_generation_config(copy: Path) -> None:
    run = as_run(copy)
    plan = serve_plan.make_plan([str(run)], serve_plan.ServeOptions("vllm", "127.0.0.1", 1))
    at = plan.command.index("--generation-config")
    assert plan.command[at + 1] == "vllm"
    # Also one that somebody else started without that.
    request = remote.request_fields(run)
    assert {k: request[k] for k in remote.NEUTRAL_SAMPLING} == {
        "repetition_penalty": 1.0,
        "top_k": 0,
        "top_p": 1.0,
        "min_p": 0.0,
    }


def test_what_is_saved_carries_no_penalty(copy: Path, tmp_path: Path) -> None:
    change(copy / "generation_config.json", lambda c: c.update(PENALTIES[0], eos_token_id=[2, 0]))
    model = llava.load_model(copy)
    llava.save_checkpoint(model, llava.load_processor(copy), tmp_path / "saved")
    content = json.loads((tmp_path / "saved/generation_config.json").read_text())
    content.pop("transformers_version", None)
    assert content.pop("_from_model_config", False) is False
    assert content == {"bos_token_id": 1, "eos_token_id": [2, 0], "pad_token_id": 0}


# --- chat templates -------------------------------------------------------------------------------

# What Qwen3-VL-Thinking's template does, without tools: `<think>` ends the prompt, the last turn's
# thoughts are framed anew, those of earlier turns are dropped.
THINKING = """\
{%- macro write(content) -%}
  {%- if content is string -%}{{- content -}}
  {%- else -%}
    {%- for block in content -%}
      {%- if block.type in ('image', 'image_url') -%}
        {{- '<|vision_start|><|image_pad|><|vision_end|>' -}}
      {%- else -%}{{- block.text -}}{%- endif -%}
    {%- endfor -%}
  {%- endif -%}
{%- endmacro -%}
{%- set ns = namespace(last=messages | length) -%}
{%- for message in messages -%}
  {%- if message.role == 'user' -%}{%- set ns.last = loop.index0 -%}{%- endif -%}
{%- endfor -%}
{%- for message in messages -%}
  {%- set content = write(message.content) -%}
  {%- if message.role == 'assistant' -%}
    {%- set thoughts = '' -%}
    {%- if '</think>' in content -%}
      {%- set thoughts = content.split('</think>')[0].split('<think>')[-1].strip('\\n') -%}
      {%- set content = content.split('</think>')[-1].lstrip('\\n') -%}
    {%- endif -%}
    {%- if loop.index0 > ns.last -%}
      {%- set content = '<think>\\n' + thoughts + '\\n</think>\\n\\n' + content -%}
    {%- endif -%}
  {%- endif -%}
  {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' + OPEN -}}{%- endif -%}
"""
OPENINGS = {
    "qwen3_vl_thinking": "<think>\\n",
    "qwen3": "",
    "qwen3_without_thinking": "<think>\\n\\n</think>\\n\\n",
}


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("qwen")
    corpus = [str(PROMPT.messages()), TARGET] * 20
    qwen_vl.build_tiny(folder, corpus, model_type="qwen3_vl")
    return qwen_vl.load_processor(folder)


def learnt(processor: Any, family: Any, prompt: prompts.Prompt, target: str) -> str:
    """The supervised text of a row."""
    row = encode.encode_text(
        processor, family, prompt.messages(), target, image_size=[(40, 40)] * prompt.images
    )
    ids = [token for token in row["labels"] if token != encode.IGNORED]
    return processor.tokenizer.decode(ids)


@pytest.mark.parametrize("opening", OPENINGS)
def test_a_thinking_template_rewrites_no_answer(qwen: Any, opening: str) -> None:
    qwen.chat_template = f"{{%- set OPEN = '{OPENINGS[opening]}' -%}}\n" + THINKING
    ids = (
        "face_cot",
        "expllm",
        "expllm_label",
        "facescan_gender",
        "facial_r1",
        "r1_omni",
        "context_both",
        "emotic",
    )
    for prompt in map(prompts.load, ids):
        for label in prompt.space.labels:
            target = prompt.completion("The lip corners are pulled up (AU12).", label)
            assert learnt(qwen, qwen_vl, prompt, target) == target + "<|im_end|>"
            assert prompt.parse(target).status == "strict"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("{{- text -}}", "{{- text | trim -}}"),
        ("{{- eos_token -}}", "{{- eos_token + eos_token -}}"),
        ("{{- eos_token -}}", "{{- eos_token + '\\n' + eos_token + '\\n' -}}"),
        ("{{- eos_token -}}", "{{- ' ' -}}"),
    ],
)
def test_answers_end_once_and_are_not_trimmed(base: Path, old: str, new: str) -> None:
    processor = llava.load_processor(base)
    assert old in processor.chat_template
    expected = " " + TARGET + "</s>"
    assert learnt(processor, llava, PROMPT, TARGET) == expected
    processor.chat_template = processor.chat_template.replace(old, new)
    assert learnt(processor, llava, PROMPT, TARGET) == expected
    spaced = TARGET + " \n"
    assert learnt(processor, llava, PROMPT, spaced) == f" {spaced}</s>"


STRINGS = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] }}{% endfor %}"
PRINTED = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{% endfor %}<image>"
DATED = "{{ 'Today is ' + strftime_now('%d %b %Y') + '. ' }}"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (lambda t: STRINGS, "cannot write a conversation of user"),
        (lambda t: PRINTED, "does not write a question given as a list of blocks"),
        (lambda t: t.replace("<image>", ""), "does not write a picture given as a list of blocks"),
        (lambda t: t.replace("{{- text -}}", ""), "does not write a question given"),
        (lambda t: DATED + t, "writes today's date"),
        (
            lambda t: t.replace("'assistant'", "'model'").replace(
                "{{- text -}}", "{{- text if message['role'] != 'assistant' -}}"
            ),
            "does not write an answer",
        ),
        (lambda t: "{{ raise_exception('no pictures') }}" + t, "no pictures"),
        (lambda t: "{% if %}", "cannot write a conversation of user"),
    ],
)
def test_a_template_that_cannot_be_used_is_refused_at_load(
    copy: Path, template: Callable[[str], str], message: str
) -> None:
    path = copy / "chat_template.jinja"
    path.write_text(template(path.read_text()))
    with pytest.raises(UserError, match=message):
        llava.load_processor(copy)


def test_a_date_that_is_written_into_the_template_is_fine(copy: Path) -> None:
    path = copy / "chat_template.jinja"
    path.write_text("{{ 'Today is 1 May. ' }}" + path.read_text())
    assert llava.prompt_text(llava.load_processor(copy), PROMPT.messages()).startswith("Today is")


def test_a_system_text_that_a_template_drops_is_an_error(base: Path) -> None:
    processor = llava.load_processor(base)
    skip = "{%- for message in messages if message['role'] != 'system' -%}"
    loop = "{%- for message in messages -%}"
    processor.chat_template = processor.chat_template.replace(loop, skip)
    llava.prompt_text(processor, PROMPT.messages())
    system = {"role": "system", "content": [{"type": "text", "text": "Look closely."}]}
    with pytest.raises(UserError, match="leaves out or rewrites the text of the system"):
        llava.prompt_text(processor, [system, *PROMPT.messages()])


def test_a_tokenizer_that_ends_every_text_is_refused(copy: Path) -> None:
    from tokenizers import processors

    path = copy / "chat_template.jinja"
    path.write_text(path.read_text().replace("{{- bos_token -}}", ""))
    tokenizer = llava.load_processor(copy).tokenizer
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    tokenizer.save_pretrained(copy)
    with pytest.raises(UserError, match="adds </s> behind every text"):
        llava.load_processor(copy)


def test_an_answer_that_joins_with_the_prompt_costs_its_row(base: Path, tmp_path: Path) -> None:
    """The prompt ends with a letter that the tokenizer joins with the letters behind it."""
    processor = llava.load_processor(base)
    processor.chat_template = processor.chat_template.replace("'ASSISTANT:'", "'ASSISTANT:\\n th'")
    processor.chat_template = processor.chat_template.replace("'ASSISTANT: '", "'ASSISTANT:\\n th'")
    with pytest.raises(SkippedSampleError) as refused:
        text_only.encode_row(processor, llava, "Who?", "e brows are lowered")
    assert refused.value.reason == "joined"
    from helpers.samples import rows

    path = tmp_path / "texts.jsonl"
    lines = [{"question": "Who?", "answer": text} for text in ("e brows are lowered", " 4 men")]
    path.write_text("\n".join(map(json.dumps, lines)))
    faces, _ = encode_rows(
        rows(2), llava.load_processor(base), llava, PROMPT, max_length=512, seed=0
    )
    texts, skipped = text_only.encode_file(
        path, processor, llava, 512, features=faces.features, row=2
    )
    assert len(texts) == 1 and skipped == {"joined": 1}


# --- pictures -------------------------------------------------------------------------------------


def stripes(width: int, height: int) -> Image.Image:
    """White at both ends of its longer side, black between."""
    image = Image.new("RGB", (width, height))
    for at in ((0, 0), (width - width // 8, 0) if width > height else (0, height - height // 8)):
        size = (width // 8, height) if width > height else (width, height // 8)
        image.paste((255, 255, 255), (*at, at[0] + size[0], at[1] + size[1]))
    return image


@pytest.fixture
def cropping(copy: Path) -> Path:
    """The small LLaVA with the processor files of LLaVA-1.5: shorter side, then the middle."""

    def crop(content: dict[str, Any]) -> None:
        content["image_processor"] |= {
            "size": {"shortest_edge": 32},
            "do_center_crop": True,
            "image_mean": [0.48145466, 0.4578275, 0.40821073],
        }

    change(copy / "processor_config.json", crop)
    return copy


@pytest.mark.parametrize("size", [(160, 40), (40, 160), (41, 97)])
def test_llava_pads_to_a_square_instead_of_cutting(cropping: Path, size: tuple[int, int]) -> None:
    from transformers import AutoProcessor

    published = AutoProcessor.from_pretrained(cropping)
    image = stripes(*size)
    cut = published.image_processor([image], return_tensors="pt")["pixel_values"]
    processor = llava.load_processor(cropping)
    (pixels,) = llava.image_inputs(processor, [image])["pixel_values"]
    assert pixels.max() > 1 and cut.max() < pixels.max()  # the ends are there, and were not
    assert llava.describe_image(processor) == {
        "height": 32,
        "width": 32,
        "tokens": 16,
        "pad_to_square": 1,
    }
    # A server that has the base's processor alone is sent squares.
    sent = families.padded(image, llava.padding(processor))
    assert sent.size == (max(size), max(size))
    there = published.image_processor([sent], return_tensors="pt")["pixel_values"][0]
    assert torch.equal(there, pixels)
    # A square stays what it was, to the bit.
    face = picture(1, (77, 77))
    (ours,) = llava.image_inputs(processor, [face])["pixel_values"]
    theirs = published.image_processor([face], return_tensors="pt")["pixel_values"][0]
    assert torch.equal(ours, theirs)


def test_a_run_keeps_the_padding_and_says_so(cropping: Path) -> None:
    run = as_run(cropping)
    found, _ = manifest.load(run)
    assert found.image["pad_to_square"] == 1
    colour = tuple(int(x * 255) for x in (0.48145466, 0.4578275, 0.40821073))
    assert remote.padding_colour(run) == colour
    messages = remote._messages(PROMPT, stripes(160, 40), colour, None)
    uri = next(b for b in messages[-1]["content"] if b["type"] == "image_url")["image_url"]["url"]
    import base64
    import io

    sent = Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))
    assert sent.size == (160, 160) and sent.getpixel((0, 0)) == colour
    # transformers alone pads, too.
    from transformers import AutoProcessor

    theirs = AutoProcessor.from_pretrained(run).image_processor
    ours = llava.load_processor(run)
    wide = stripes(160, 40)
    assert torch.equal(
        theirs([wide], return_tensors="pt")["pixel_values"],
        llava.image_inputs(ours, [wide])["pixel_values"],
    )


def test_a_processor_that_squeezes_is_left_alone(base: Path) -> None:
    processor = llava.load_processor(base)
    assert llava.padding(processor) is None
    assert type(processor.image_processor).__name__.startswith("CLIPImageProcessor")
    assert llava.describe_image(processor) == {"height": 32, "width": 32, "tokens": 16}
    wide = stripes(160, 40)
    assert families.padded(wide, None) is wide


@pytest.mark.parametrize("strategy", ["default", "full"])
@pytest.mark.parametrize("lacking", [("num_additional_image_tokens",), ("patch_size",), ()])
def test_the_tokens_of_a_picture_follow_from_the_models_config(
    copy: Path, lacking: tuple[str, ...], strategy: str
) -> None:
    def edit(content: dict[str, Any]) -> None:
        content["num_additional_image_tokens"] = 0  # transformers' default
        for name in lacking:
            content.pop(name, None)

    change(copy / "processor_config.json", edit)
    change(copy / "config.json", lambda c: c.update(vision_feature_select_strategy=strategy))
    processor = llava.load_processor(copy)
    assert llava.image_tokens(processor) == (16 if strategy == "default" else 17)
    model = llava.load_model(copy)
    row = encode.encode(processor, llava, PROMPT.messages(), PICTURES[0])
    batch = encode.to_model(encode.Collator(processor, llava)([row]), model)
    assert torch.isfinite(model(**batch).logits).all()


def test_a_processor_of_another_size_is_refused(copy: Path) -> None:
    side = {"height": 48, "width": 48}
    change(
        copy / "processor_config.json",
        lambda c: c["image_processor"].update(size=side, crop_size=side),
    )
    with pytest.raises(UserError, match=r"makes pictures of 48 x 48 pixels, but .* takes 32 x 32"):
        llava.load_processor(copy)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"merge_size": 1}, r"reserves \d+ tokens for a picture, but the model makes \d+ of it"),
        ({"patch_size": 8}, "patches of 384 values, but the vision tower takes 96"),
        ({"temporal_patch_size": 1}, "patches of 48 values, but the vision tower takes 96"),
    ],
)
def test_a_qwen_processor_of_another_model_is_refused(
    tmp_path: Path, fields: dict[str, Any], message: str
) -> None:
    qwen_vl.build_tiny(tmp_path, [str(PROMPT.messages())] * 5)
    change(tmp_path / "processor_config.json", lambda c: c["image_processor"].update(fields))
    with pytest.raises(UserError, match=message):
        qwen_vl.load_processor(tmp_path)


def test_the_built_in_model_loads_as_before() -> None:
    folder = manifest.resolve(manifest.TINY_MODEL)
    processor = llava.load_processor(folder)
    assert llava.describe_image(processor) == {"height": 96, "width": 96, "tokens": 64}
    assert type(processor.image_processor).__name__.startswith("CLIPImageProcessor")
