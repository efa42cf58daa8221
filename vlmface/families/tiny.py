"""Small, complete checkpoints built in code: no download, the real processor classes, random
weights.

The built-in base model vlmface-tiny starts here, and so do the random checkpoints of the tests.
`Family.build_tiny` builds one and saves it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

PAD, BOS, EOS, IMAGE = "<pad>", "<s>", "</s>", "<image>"


@dataclass(frozen=True, kw_only=True)
class TinyCheckpoint(ABC):
    """The parts of a small random checkpoint. Each family has a subclass.

    Attributes:
        model_type: The `model_type` of config.json: one of `Family.MODEL_TYPES`.
        patch_size: Pixels on each side of a patch.
        vision_width: Width of the tower.
        vision_layers: Layers of the tower.
        hidden: Width of the language model.
        layers: Layers of the language model.
        mlp: Inner width of the feed-forward layers of both.
        vocab_size: Tokens of the tokenizer, before the special tokens of the family. Fewer if the
            corpus does not have that many merges.
        max_length: Longest conversation in tokens.
        seed: Seed of the weights.
    """

    model_type: str
    patch_size: int = 8
    vision_width: int = 32
    vision_layers: int = 2
    hidden: int = 64
    layers: int = 2
    mlp: int = 64
    vocab_size: int = 700
    max_length: int = 1024
    seed: int = 0

    def tokenizer(self, corpus: Iterable[str]) -> Any:
        """A PreTrainedTokenizerFast trained on `corpus`."""
        return build_tokenizer(corpus, vocab_size=self.vocab_size, max_length=self.max_length)

    @abstractmethod
    def processor(self, tokenizer: Any) -> Any:
        """The family's processor around a tokenizer."""

    @abstractmethod
    def config(self, processor: Any) -> Any:
        """The configuration of the model."""

    def init_weights(self, model: Any) -> None:  # noqa: B027
        """Change weights after their random initialisation; called with the seed set."""

    def build(self, corpus: Iterable[str]) -> tuple[Any, Any]:
        """(model, processor), the model with random weights and in eval mode."""
        import torch
        from transformers import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

        processor = self.processor(self.tokenizer(corpus))
        config = self.config(processor)
        model_class: Any = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            model = model_class(config)
            self.init_weights(model)
        return model.eval(), processor


def build_tokenizer(corpus: Iterable[str], *, vocab_size: int = 1024, max_length: int = 512) -> Any:
    """Train a byte-level BPE tokenizer: every digit is one token, nothing is unknown.

    Args:
        corpus: The texts.
        vocab_size: The most tokens; fewer if the corpus does not have that many merges.
        max_length: The tokenizer's `model_max_length`.

    Returns:
        A PreTrainedTokenizerFast with <pad>, <s>, </s> and <image> as ids 0..3.
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


def special_ids(tokenizer: Any) -> dict[str, Any]:
    """The ids of the special tokens as configurations name them."""
    names = ("pad_token_id", "bos_token_id", "eos_token_id")
    return {name: getattr(tokenizer, name) for name in names}


# --- LLaVA ----------------------------------------------------------------------------------------

# LLaVA-1.5's conversation ("USER: <image>\n... ASSISTANT: ..."). Unlike the published template it
# writes <s> itself, so that servers which never add special tokens agree with the processor, closes
# the assistant's turn with </s>, and accepts plain strings as content besides lists of blocks.
LLAVA_TEMPLATE = """\
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


@dataclass(frozen=True, kw_only=True)
class TinyLlava(TinyCheckpoint):
    """A LLaVA: `(image_size / patch_size)^2` image tokens.

    The CLIP tower's last layer feeds the projector (all layers are used, the class token is
    dropped). `vision_width` and `hidden` must be multiples of 32, the size of an attention head.
    The language model's embeddings and head are tied.

    Attributes:
        image_size: Pixels on each side of every image. There is no center crop: a crop of a face
            image may cut the brow or the chin off.
    """

    model_type: str = "llava"
    max_length: int = 512
    image_size: int = 32

    def processor(self, tokenizer: Any) -> Any:
        """A LlavaProcessor: bicubic resizing, values -1..1."""
        from transformers import CLIPImageProcessor, LlavaProcessor

        square = {"height": self.image_size, "width": self.image_size}
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
            patch_size=self.patch_size,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
            chat_template=LLAVA_TEMPLATE,
        )

    def config(self, processor: Any) -> Any:
        """A LlavaConfig."""
        from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

        special = special_ids(processor.tokenizer)
        vision = CLIPVisionConfig(
            hidden_size=self.vision_width,
            intermediate_size=self.mlp,
            num_hidden_layers=self.vision_layers,
            num_attention_heads=self.vision_width // 32,
            image_size=self.image_size,
            patch_size=self.patch_size,
            projection_dim=self.vision_width,
        )
        text = LlamaConfig(
            hidden_size=self.hidden,
            intermediate_size=self.mlp,
            num_hidden_layers=self.layers,
            num_attention_heads=self.hidden // 32,
            num_key_value_heads=self.hidden // 32,
            head_dim=32,
            max_position_embeddings=self.max_length,
            vocab_size=len(processor.tokenizer),
            tie_word_embeddings=True,
            **special,
        )
        return LlavaConfig(
            vision_config=vision,
            text_config=text,
            image_token_index=processor.image_token_id,
            image_seq_length=(self.image_size // self.patch_size) ** 2,
            vision_feature_select_strategy="default",
            vision_feature_layer=-1,
            tie_word_embeddings=True,
            **special,
        )


# --- PaliGemma ------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class TinyPaliGemma(TinyCheckpoint):
    """A PaliGemma. `vision_width` and `hidden` must be multiples of 32, the size of a head.

    Attributes:
        version: 1 (Gemma) or 2 (Gemma 2: soft-capped logits, and a layer with a sliding window for
            each without).
        image_size: Pixels on each side of every image.
    """

    model_type: str = "paligemma"
    version: int = 2
    image_size: int = 32

    def processor(self, tokenizer: Any) -> Any:
        """A PaliGemmaProcessor: values -1..1. It adds the 1152 <loc> and <seg> tokens to the
        tokenizer."""
        from transformers import PaliGemmaProcessor, SiglipImageProcessor

        image_processor: Any = SiglipImageProcessor(
            size={"height": self.image_size, "width": self.image_size},
            image_mean=[0.5] * 3,
            image_std=[0.5] * 3,
        )
        image_processor.image_seq_length = (self.image_size // self.patch_size) ** 2
        return PaliGemmaProcessor(image_processor=image_processor, tokenizer=tokenizer)

    def config(self, processor: Any) -> Any:
        """A PaliGemmaConfig."""
        from transformers import Gemma2Config, GemmaConfig, PaliGemmaConfig, SiglipVisionConfig

        special = special_ids(processor.tokenizer)
        vision = SiglipVisionConfig(
            hidden_size=self.vision_width,
            intermediate_size=self.mlp,
            num_hidden_layers=self.vision_layers,
            num_attention_heads=self.vision_width // 32,
            image_size=self.image_size,
            patch_size=self.patch_size,
            vision_use_head=False,
        )
        gemma: dict[str, Any] = {
            "hidden_size": self.hidden,
            "intermediate_size": self.mlp,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.hidden // 32,
            "num_key_value_heads": 1,
            "head_dim": 32,
            "max_position_embeddings": self.max_length,
            "vocab_size": len(processor.tokenizer),
            **special,
        }
        if self.version == 2:
            gemma |= {"query_pre_attn_scalar": 32, "sliding_window": self.max_length}
        return PaliGemmaConfig(
            vision_config=vision,
            text_config=Gemma2Config(**gemma) if self.version == 2 else GemmaConfig(**gemma),
            image_token_index=processor.image_token_id,
            vocab_size=len(processor.tokenizer),
            projection_dim=self.hidden,
            hidden_size=self.hidden,
            **special,
        )


# --- Qwen2.5-VL and Qwen3-VL ----------------------------------------------------------------------

QWEN_TOKENS = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    *("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"),
)

# ChatML as both models use it, images and videos between <|vision_start|> and <|vision_end|>.
# Qwen2.5-VL's conversation begins with a default system message if there is none.
QWEN_TEMPLATE = """\
{%- for message in messages -%}
  {%- if loop.first and message['role'] != 'system' and SYSTEM -%}
    {{- '<|im_start|>system\\n' + SYSTEM + '<|im_end|>\\n' -}}
  {%- endif -%}
  {{- '<|im_start|>' + message['role'] + '\\n' -}}
  {%- if message['content'] is string -%}{{- message['content'] -}}
  {%- else -%}
    {%- for block in message['content'] -%}
      {%- if block['type'] in ('image', 'image_url') -%}
        {{- '<|vision_start|><|image_pad|><|vision_end|>' -}}
      {%- elif block['type'] == 'video' -%}
        {{- '<|vision_start|><|video_pad|><|vision_end|>' -}}
      {%- elif block['type'] == 'text' -%}{{- block['text'] -}}{%- endif -%}
    {%- endfor -%}
  {%- endif -%}
  {{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""
QWEN_SYSTEM = {"qwen2_5_vl": "You are a helpful assistant.", "qwen3_vl": ""}


@dataclass(frozen=True, kw_only=True)
class TinyQwenVL(TinyCheckpoint):
    """A Qwen2.5-VL or Qwen3-VL ("qwen3_vl"): a token is 2 x 2 patches.

    Qwen2.5-VL's tower attends within windows of 2 x 2 tokens except in its last layer; Qwen3-VL's
    gives the output of its first layer to the language model, too. Embeddings and output layer are
    tied.

    Attributes:
        min_pixels: The least pixels that an image has after resizing.
        max_pixels: The most.
        head: The size of an attention head, of which `hidden` and `vision_width` must be multiples
            (vLLM has kernels from 32 on).
    """

    model_type: str = "qwen2_5_vl"
    patch_size: int = 4
    vision_layers: int = 3
    max_length: int = 4096
    min_pixels: int = 1024
    max_pixels: int = 1024
    head: int = 16

    def tokenizer(self, corpus: Iterable[str]) -> Any:
        """`build_tokenizer` with Qwen's special tokens after the others; there is no BOS."""
        from transformers import PreTrainedTokenizerFast

        backend = build_tokenizer(corpus, vocab_size=self.vocab_size).backend_tokenizer
        backend.add_special_tokens(list(QWEN_TOKENS))
        return PreTrainedTokenizerFast(
            tokenizer_object=backend,
            pad_token="<|endoftext|>",
            eos_token="<|im_end|>",
            extra_special_tokens={
                "vision_start_token": "<|vision_start|>",
                "vision_end_token": "<|vision_end|>",
                "image_token": "<|image_pad|>",
                "video_token": "<|video_pad|>",
            },
            model_max_length=self.max_length,
            clean_up_tokenization_spaces=False,
        )

    def processor(self, tokenizer: Any) -> Any:
        """A Qwen2_5_VLProcessor or Qwen3VLProcessor."""
        import transformers

        if self.model_type == "qwen2_5_vl":
            processor_class: Any = transformers.Qwen2_5_VLProcessor
            video_class: Any = transformers.Qwen2VLVideoProcessor
            normalisation: dict[str, Any] = {}
        else:
            processor_class = transformers.Qwen3VLProcessor
            video_class = transformers.Qwen3VLVideoProcessor
            normalisation = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
        system = f"{{%- set SYSTEM = {QWEN_SYSTEM[self.model_type]!r} -%}}\n"
        return processor_class(
            image_processor=transformers.Qwen2VLImageProcessor(
                patch_size=self.patch_size,
                size={"shortest_edge": self.min_pixels, "longest_edge": self.max_pixels},
                **normalisation,
            ),
            tokenizer=tokenizer,
            video_processor=video_class(patch_size=self.patch_size),
            chat_template=system + QWEN_TEMPLATE,
        )

    def config(self, processor: Any) -> Any:
        """A Qwen2_5_VLConfig or Qwen3VLConfig."""
        import transformers

        tokenizer = processor.tokenizer
        # The 0.02 of wide layers would leave attention in layers as narrow as these so even that a
        # wrong position moved a label's probability by less than a thousandth.
        scale = {"initializer_range": 0.15}
        vision: dict[str, Any] = scale | {
            "depth": self.vision_layers,
            "hidden_size": self.vision_width,
            "intermediate_size": self.mlp,
            "num_heads": self.vision_width // self.head,
            "patch_size": self.patch_size,
            "out_hidden_size": self.hidden,
        }
        rope: dict[str, Any] = {"rope_type": "default", "rope_theta": 1e4}
        text: dict[str, Any] = scale | {
            "vocab_size": len(tokenizer),
            "hidden_size": self.hidden,
            "intermediate_size": self.mlp,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.hidden // self.head,
            "num_key_value_heads": self.hidden // (2 * self.head) or 1,
            "max_position_embeddings": self.max_length,
            "rope_parameters": rope
            | {"mrope_section": [self.head // 4, self.head // 8, self.head // 8]},
            "tie_word_embeddings": True,
            **special_ids(tokenizer),
        }
        tokens = {
            "image_token_id": "<|image_pad|>",
            "video_token_id": "<|video_pad|>",
            "vision_start_token_id": "<|vision_start|>",
            "vision_end_token_id": "<|vision_end|>",
        }
        top: dict[str, Any] = {
            name: tokenizer.convert_tokens_to_ids(token) for name, token in tokens.items()
        }
        top["tie_word_embeddings"] = True
        if self.model_type == "qwen2_5_vl":
            vision |= {
                "window_size": 4 * self.patch_size,
                "fullatt_block_indexes": [self.vision_layers - 1],
            }
            return transformers.Qwen2_5_VLConfig(vision_config=vision, text_config=text, **top)
        vision |= {"deepstack_visual_indexes": [0], "num_position_embeddings": 64}
        text |= {"head_dim": self.head}
        text["rope_parameters"] |= {"mrope_interleaved": True}
        return transformers.Qwen3VLConfig(vision_config=vision, text_config=text, **top)


# --- SmolVLM and Idefics3 -------------------------------------------------------------------------

SMOLVLM_END = "<end_of_utterance>"
_TILE_SIDES = range(1, 7)  # markers of rows and columns that published tokenizers know
SMOLVLM_TOKENS = (
    *("<fake_token_around_image>", "<global-img>"),
    *(f"<row_{row}_col_{column}>" for row in _TILE_SIDES for column in _TILE_SIDES),
)

# The published conversation ("<|im_start|>User:<image>...<end_of_utterance>\nAssistant:"), except
# that it also reads plain strings as content. `BOS` takes the place of <|im_start|>.
SMOLVLM_TEMPLATE = """\
{{- bos_token -}}
{%- for message in messages -%}
  {{- message['role'] | capitalize + ':' -}}
  {%- if message['content'] is string -%}{{- ' ' + message['content'] -}}
  {%- else -%}
    {%- if message['content'][0]['type'] != 'image' -%}{{- ' ' -}}{%- endif -%}
    {%- for block in message['content'] -%}
      {%- if block['type'] == 'text' -%}{{- block['text'] -}}
      {%- elif block['type'] == 'image' -%}{{- '<image>' -}}{%- endif -%}
    {%- endfor -%}
  {%- endif -%}
  {{- '<end_of_utterance>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- 'Assistant:' -}}{%- endif -%}
"""


@dataclass(frozen=True, kw_only=True)
class TinySmolVLM(TinyCheckpoint):
    """A SmolVLM, or Idefics3 ("idefics3").

    A tile takes (tile_size / patch_size / scale_factor)^2 image tokens; a square image has
    (longest_edge / tile_size)^2 tiles and one of the whole. `vision_width` and `hidden` must be
    multiples of 16, the size of an attention head in both. As in published checkpoints, the head
    is a matrix of its own.

    Attributes:
        tile_size: Pixels on each side of a tile.
        longest_edge: Pixels on the longer side of every image.
        scale_factor: Patches on each side of the square that becomes one token.
        splitting: Whether images are cut into tiles.
    """

    model_type: str = "smolvlm"
    tile_size: int = 32
    longest_edge: int = 64
    scale_factor: int = 2
    splitting: bool = True

    def tokenizer(self, corpus: Iterable[str]) -> Any:
        """`build_tokenizer` with the markers of tiles and turns; an answer's end is the EOS."""
        tokenizer = super().tokenizer(corpus)
        tokenizer.add_special_tokens({"eos_token": SMOLVLM_END})
        tokenizer.add_tokens(list(SMOLVLM_TOKENS), special_tokens=True)
        return tokenizer

    def processor(self, tokenizer: Any) -> Any:
        """A SmolVLMProcessor or Idefics3Processor: values -1..1."""
        import transformers

        images: dict[str, Any] = {
            "size": {"longest_edge": self.longest_edge},
            "max_image_size": {"longest_edge": self.tile_size},
            "do_image_splitting": self.splitting,
        }
        common: dict[str, Any] = {
            "tokenizer": tokenizer,
            "image_seq_len": (self.tile_size // self.patch_size // self.scale_factor) ** 2,
            "chat_template": SMOLVLM_TEMPLATE,
        }
        if self.model_type == "idefics3":
            return transformers.Idefics3Processor(
                transformers.Idefics3ImageProcessor(**images), **common
            )
        size = {"longest_edge": self.tile_size}
        return transformers.SmolVLMProcessor(
            transformers.SmolVLMImageProcessor(**images),
            video_processor=transformers.SmolVLMVideoProcessor(size=size, max_image_size=size),
            **common,
        )

    def config(self, processor: Any) -> Any:
        """A SmolVLMConfig or Idefics3Config."""
        import transformers

        config_class: Any = {
            "smolvlm": transformers.SmolVLMConfig,
            "idefics3": transformers.Idefics3Config,
        }[self.model_type]
        return config_class(
            vision_config={
                "hidden_size": self.vision_width,
                "intermediate_size": self.mlp,
                "num_hidden_layers": self.vision_layers,
                "num_attention_heads": self.vision_width // 16,
                "image_size": self.tile_size,
                "patch_size": self.patch_size,
            },
            text_config={
                "model_type": "llama",
                "hidden_size": self.hidden,
                "intermediate_size": self.mlp,
                "num_hidden_layers": self.layers,
                "num_attention_heads": self.hidden // 16,
                "num_key_value_heads": self.hidden // 32,
                "head_dim": 16,
                "max_position_embeddings": self.max_length,
                "vocab_size": len(processor.tokenizer),
                **special_ids(processor.tokenizer),
            },
            scale_factor=self.scale_factor,
            image_token_id=processor.image_token_id,
            pad_token_id=processor.tokenizer.pad_token_id,
            tie_word_embeddings=False,
        )

    def init_weights(self, model: Any) -> None:
        """A head with larger weights: adapters cannot change it, and with weights as small as a
        fresh head's they could not make any answer likely."""
        import torch

        torch.nn.init.normal_(model.lm_head.weight, std=0.25)
