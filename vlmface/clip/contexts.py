"""Learnt contexts in front of each label's text (CoOp, arXiv:2109.01134).

With contexts of its own for each text, and texts that describe what is seen, they are the learnable
descriptors of DFER-CLIP (arXiv:2308.13382) and CLIP-CAER (arXiv:2507.00586): [contexts][text].
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from vlmface.clip.model import Clip
from vlmface.errors import UserError
from vlmface.label_texts import lengths

START = "a photo of a face that shows"  # the first of shared vectors are its words'
_SPREAD = 0.02


class Contexts(nn.Module):
    """`count` vectors between a text's beginning and its words, the same for all `texts`, or
    (`class_specific`) of its own for each. Returns the texts' features (texts, width)."""

    tokens: torch.Tensor

    def __init__(
        self, clip: Clip, texts: Sequence[str], count: int, *, class_specific: bool
    ) -> None:
        super().__init__()
        if not clip.reads_embedded:
            raise UserError(
                f"text_tower is prompts, but the text tower of {clip.base} is a model of "
                "transformers that takes no learnt contexts: use text_tower: frozen or full"
            )
        token_counts = lengths(clip.tokenizer, texts)
        limit = clip.tokenizer.context_length
        if count < 1 or max(token_counts) + count > limit:
            raise UserError(
                f"num_context_tokens is {count}, but the longest text has {max(token_counts)} "
                f"of the {limit} tokens that this model reads: shorten the texts or set "
                "num_context_tokens lower"
            )
        self.clip = [clip]  # a list: its weights are the classifier's
        tokens = clip.tokens(texts)
        # The vectors' places hold a token that does not end a text; it is never read.
        filler = tokens[:, 1:2].expand(-1, count)
        moved = torch.cat([tokens[:, :1], filler, tokens[:, 1 : limit - count]], 1)
        self.register_buffer("tokens", moved, persistent=False)
        table = clip.text_tower.token_embedding.weight
        start = torch.randn(len(texts) if class_specific else 1, count, table.shape[1]) * _SPREAD
        if not class_specific:  # those of one text alone start at random in all three papers
            words = clip.tokens([START])[0, 1 : lengths(clip.tokenizer, [START])[0] - 1]
            embeddings = table[words[:count]].detach().cpu().float()
            start[0, : len(embeddings)] = embeddings
        self.vectors = nn.Parameter(start)

    def forward(self) -> torch.Tensor:
        (clip,) = self.clip
        tokens, count = self.tokens, self.vectors.shape[1]
        if clip._causal:
            tokens = tokens[:, : int(tokens.argmax(-1).max()) + 1]
        embedded = clip.text_tower.token_embedding(tokens)
        vectors = self.vectors.to(embedded).expand(len(tokens), -1, -1)
        embedded = torch.cat([embedded[:, :1], vectors, embedded[:, 1 + count :]], 1)
        return clip.read_embedded(embedded, tokens)
