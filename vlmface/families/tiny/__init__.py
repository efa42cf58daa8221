"""Small, complete checkpoints built in code: no download, the real processor classes, random
weights.

The built-in base model vlmface-tiny starts here, and so do the random checkpoints of the tests.
`Family.build_tiny` builds one and saves it. Each family has a module here.
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

    def vision_sizes(self, head: int) -> dict[str, Any]:
        """The fields of a tower's configuration that its sizes decide.

        Args:
            head: Size of an attention head.
        """
        return {
            "hidden_size": self.vision_width,
            "intermediate_size": self.mlp,
            "num_hidden_layers": self.vision_layers,
            "num_attention_heads": self.vision_width // head,
            "patch_size": self.patch_size,
        }

    def text_sizes(self, tokenizer: Any, head: int) -> dict[str, Any]:
        """The fields of a language model's configuration that its sizes and tokenizer decide.

        Args:
            tokenizer: The processor's.
            head: Size of an attention head.
        """
        return {
            "hidden_size": self.hidden,
            "intermediate_size": self.mlp,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.hidden // head,
            "max_position_embeddings": self.max_length,
            "vocab_size": len(tokenizer),
            **special_ids(tokenizer),
        }

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
