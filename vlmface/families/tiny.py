"""Small, complete LLaVA checkpoints built in code: no download, the real processor classes.

The built-in base model vlmface-tiny starts here, and so do the tests' random checkpoints.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmface.families import llava

if TYPE_CHECKING:
    from transformers import LlavaForConditionalGeneration, LlavaProcessor

PAD, BOS, EOS, IMAGE = "<pad>", "<s>", "</s>", "<image>"

# LLaVA-1.5's conversation ("USER: <image>\n... ASSISTANT: ..."). Unlike the published template it
# writes <s> itself, so that servers which never add special tokens agree with the processor, closes
# the assistant's turn with </s>, and accepts plain strings as content besides lists of blocks.
CHAT_TEMPLATE = """\
{{- bos_token -}}
{%- for message in messages -%}
  {%- if message['role'] == 'user' -%}{{- 'USER: ' -}}
  {%- elif message['role'] == 'assistant' -%}{{- 'ASSISTANT: ' -}}{%- endif -%}
  {%- if message['content'] is string -%}{%- set text = message['content'] -%}
  {%- else -%}
    {%- for block in message['content'] if block['type'] in ('image', 'image_url') -%}
      {{- '<image>\\n' -}}
    {%- endfor -%}
    {%- set text = message['content'] | selectattr('type', 'equalto', 'text')
        | map(attribute='text') | join(' ') -%}
  {%- endif -%}
  {{- text -}}
  {%- if message['role'] == 'assistant' -%}{{- eos_token -}}{%- else -%}{{- ' ' -}}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- 'ASSISTANT:' -}}{%- endif -%}
"""


def build_tokenizer(corpus: Iterable[str], *, vocab_size: int = 1024, max_length: int = 512) -> Any:
    """Train a byte-level BPE tokenizer on `corpus`: every digit is one token, nothing is unknown.

    Returns a PreTrainedTokenizerFast with <pad>, <s>, </s> and <image> as ids 0..3. The vocabulary
    is smaller than `vocab_size` if the corpus does not hold that many merges.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, BOS, EOS, IMAGE],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        extra_special_tokens={"image_token": IMAGE},
        model_max_length=max_length,
        padding_side="right",
        clean_up_tokenization_spaces=False,
    )


def build_processor(
    tokenizer: Any, *, image_size: int = 96, patch_size: int = 12
) -> LlavaProcessor:
    """LLaVA's processor: the image becomes exactly `image_size` squared (bicubic), values -1..1.

    There is no centre crop: a crop of a face image may cut the brow or the chin off.
    """
    from transformers import CLIPImageProcessor, LlavaProcessor

    square = {"height": image_size, "width": image_size}
    image_processor = CLIPImageProcessor(
        size=square,
        crop_size=square,
        do_center_crop=False,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    return LlavaProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        patch_size=patch_size,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


def build_llava(
    out_dir: str | Path,
    corpus: Iterable[str],
    *,
    image_size: int = 96,
    patch_size: int = 12,
    vision_width: int = 192,
    vision_layers: int = 6,
    hidden: int = 192,
    layers: int = 4,
    mlp: int = 512,
    vocab_size: int = 1024,
    max_length: int = 512,
    seed: int = 0,
) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """Build a randomly initialised LLaVA, save it in `out_dir` and return (model, processor).

    The CLIP tower's last layer feeds the projector (all layers are used, the class token is
    dropped): (image_size / patch_size)^2 image tokens. `vision_width` and `hidden` must be
    multiples of 32, the size of an attention head in both towers; `mlp` is the inner width of
    the feed-forward layers of both. The language model's embeddings and head are tied.
    The folder is a complete checkpoint (config, safetensors, tokenizer, processor, chat template)
    that AutoProcessor, LlavaForConditionalGeneration and vLLM load.
    """
    import torch
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
    )

    tokenizer = build_tokenizer(corpus, vocab_size=vocab_size, max_length=max_length)
    processor = build_processor(tokenizer, image_size=image_size, patch_size=patch_size)
    special = {
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    vision = CLIPVisionConfig(
        hidden_size=vision_width,
        intermediate_size=mlp,
        num_hidden_layers=vision_layers,
        num_attention_heads=vision_width // 32,
        image_size=image_size,
        patch_size=patch_size,
        projection_dim=vision_width,
    )
    text = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 32,
        num_key_value_heads=hidden // 32,
        head_dim=32,
        max_position_embeddings=max_length,
        vocab_size=len(tokenizer),
        tie_word_embeddings=True,
        **special,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=processor.image_token_id,
        image_seq_length=(image_size // patch_size) ** 2,
        vision_feature_select_strategy="default",
        vision_feature_layer=-1,
        tie_word_embeddings=True,
        **special,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlavaForConditionalGeneration(config)
    model.eval()
    llava.save_checkpoint(model, processor, out_dir)
    return model, processor
