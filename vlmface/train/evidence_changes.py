"""Random changes of the evidence of training rows, other ones in each epoch: it is withheld, it has
wrong action units, or the picture next to it is that of another row and counts as a photograph.

What is done to a row depends on the seed, the epoch and the row's number alone, as in
`augmentation`. `rows.encode_rows` encodes a row with its own evidence and keeps in column SOURCE
what it was encoded from; `Rewriter` encodes it with another one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from vlmface import encode, evidence
from vlmface.errors import SkippedSampleError
from vlmface.families.base import Family
from vlmface.prompts import Prompt
from vlmface.train.augmentation import mirror_text

if TYPE_CHECKING:
    import datasets

    from vlmface.train.settings import SFTSettings

SOURCE = encode.SOURCE_COLUMN
_STREAM = 1  # tells these random numbers from those of `augmentation`
_SLOT = "\x00evidence\x00"  # stands for the evidence in stored messages

EncodeText = Callable[[str], dict[str, Any]]


# --- what a row is encoded from -------------------------------------------------------------------


@dataclass(frozen=True)
class Target:
    """What a row learns.

    Args:
        text: The completion.
        before_label: The completion without its label, where a rationale stands before it.
        weight: Of the label in the loss; None if the run has no weights.
    """

    text: str
    before_label: str | None = None
    weight: float | None = None

    def encode(self, encode_text: EncodeText) -> dict[str, Any]:
        """The columns of the row, without the attention mask, which the collator adds.

        Args:
            encode_text: `encode.encode_text` of a completion.

        Raises:
            SkippedSampleError: The row cannot be trained on.
        """
        row = encode_text(self.text)
        if self.weight is not None:
            before = None
            if self.before_label is not None:
                before = encode_text(self.before_label)["input_ids"]
            row["token_weights"] = token_weights(row["labels"], self.weight, before)
        del row["attention_mask"]
        return row


def token_weights(
    labels: Sequence[int], weight: float, before_label: Sequence[int] | None
) -> list[float]:
    """The weight of each token of a row in the loss.

    Args:
        labels: The row's targets; IGNORED for the prompt.
        weight: Of the label and what follows it; a rationale before it has weight 1.
        before_label: The token ids of the same row without its label; None if its answer starts
            with the label.
    """
    start = next(i for i, label in enumerate(labels) if label != encode.IGNORED)
    label_start = start
    if before_label is not None:
        pairs = zip(labels[start:], before_label[start:], strict=False)
        label_start += next((i for i, (a, b) in enumerate(pairs) if a != b), 0)
    return [1.0] * label_start + [weight] * (len(labels) - label_start)


def source_of(prompt: Prompt, text: str, targets: Sequence[Target], sizes: Any) -> str:
    """Column SOURCE of a row.

    Args:
        prompt: With evidence.
        text: The evidence of the row.
        targets: What it learns, and what its mirror image does where that is another text.
        sizes: As `image_size` of `encode.encode_text`.
    """
    source = {
        "messages": prompt.messages(_SLOT),
        "evidence": text,
        "targets": [asdict(target) for target in targets],
        "sizes": sizes,
    }
    return json.dumps(source)


# --- changes --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EvidenceChanges:
    """What is changed.

    Args:
        dropout: Share of the rows of an epoch whose evidence is withheld.
        picture_noise: Share of the rows of rendered faces with the picture of another row.
        noise: Share of a row's action units that are removed, and of those of another row that are
            added.
        seed: Of the run.
    """

    dropout: float
    picture_noise: float
    noise: float
    seed: int

    @property
    def marks_photographs(self) -> bool:
        """Whether evidence next to another picture counts as that of a photograph: a mark in all
        rows would tell nothing."""
        return self.picture_noise < 1

    def draw(self, epoch: int, row: int) -> tuple[bool, bool, np.random.Generator]:
        """(whether the evidence of a row is withheld in an epoch; whether its picture is that of
        another row, never both; the random numbers of its noise)."""
        rng = np.random.default_rng((self.seed, epoch, row, _STREAM))
        value = rng.random()
        is_withheld = value < self.dropout
        is_swapped = not is_withheld and value < self.dropout + self.picture_noise
        return bool(is_withheld), bool(is_swapped), rng


@dataclass(frozen=True)
class Rewriter:
    """Encodes rows with another evidence.

    Args:
        changes: What is changed.
        processor: Of the model.
        family: Of the model.
        max_length: Tokens of a row.
        sources: Column SOURCE of all rows.
    """

    changes: EvidenceChanges
    processor: Any
    family: Family
    max_length: int
    sources: Sequence[str | None]

    @classmethod
    def of_rows(
        cls, rows: datasets.Dataset, settings: SFTSettings, processor: Any, family: Family
    ) -> Rewriter | None:
        """That of a run; None if its rows have no evidence."""
        if SOURCE not in rows.column_names:
            return None
        changes = EvidenceChanges(
            dropout=settings.evidence_dropout,
            picture_noise=settings.picture_noise,
            noise=settings.evidence_noise,
            seed=settings.seed,
        )
        return cls(changes, processor, family, settings.max_length, rows[SOURCE][:])

    def change(
        self, epoch: int, number: int, *, is_mirrored: bool, is_corrupted: bool
    ) -> tuple[dict[str, Any], int]:
        """The changes of a row in an epoch.

        Args:
            epoch: The epoch.
            number: Of the row.
            is_mirrored: Its picture is; left and right are swapped in its texts.
            is_corrupted: Its picture is; evidence was measured in another picture, so it is
                withheld.

        Returns:
            (columns that replace those of the row, the number of the row whose picture is shown).
        """
        source = self._source(number)
        if source is None:
            return {}, number
        is_withheld, is_swapped, rng = self.changes.draw(epoch, number)
        own = source["evidence"]
        # What is learnt must follow from the evidence where the picture is another one.
        is_shown = not is_corrupted and own != evidence.NOT_MEASURED
        is_swapped = is_swapped and is_shown and not evidence.is_of_photograph(own)
        picture_row = int(rng.integers(len(self.sources))) if is_swapped else number
        other = self._source(picture_row)
        if other is None:  # of another prompt, or without a picture
            picture_row, other = number, source
        text = evidence.NOT_MEASURED
        if not (is_withheld or is_corrupted):
            text = self._with_noise(own, rng)
            if picture_row != number and self.changes.marks_photographs:
                text = evidence.of_photograph(text)
        source |= {"sizes": other["sizes"]}
        if (
            text == own
            and not is_mirrored
            and (picture_row == number or not self.family.NEEDS_SIZE)
        ):
            return {}, picture_row
        target = Target(**source["targets"][-1 if is_mirrored else 0])
        if is_mirrored:
            own, text = mirror_text(own), mirror_text(text)
        try:
            return target.encode(self._encoder(source, text, self.max_length)), picture_row
        except SkippedSampleError:  # longer than max_length, which the row's own text is not
            source = self._source(number) or source
            return target.encode(self._encoder(source, own, None)), number

    def _source(self, number: int) -> dict[str, Any] | None:
        stored = self.sources[number]
        return None if stored is None else json.loads(stored)

    def _with_noise(self, own: str, rng: np.random.Generator) -> str:
        if not self.changes.noise:
            return own
        donor = self._source(int(rng.integers(len(self.sources))))
        other = own if donor is None else donor["evidence"]
        return evidence.mixed(own, other, lambda: bool(rng.random() < self.changes.noise))

    def _encoder(self, source: Mapping[str, Any], text: str, limit: int | None) -> EncodeText:
        messages = _filled(source["messages"], text)

        def encode_text(completion: str) -> dict[str, Any]:
            return encode.encode_text(
                self.processor,
                self.family,
                messages,
                completion,
                max_length=limit,
                image_size=source["sizes"],
            )

        return encode_text


def _filled(messages: Sequence[Mapping[str, Any]], text: str) -> list[dict[str, Any]]:
    """Stored messages with an evidence."""
    return [
        {
            **message,
            "content": [
                block | {"text": block["text"].replace(_SLOT, text)} if "text" in block else block
                for block in message["content"]
            ],
        }
        for message in messages
    ]
