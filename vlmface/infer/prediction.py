"""What a model predicts for one task and one face."""

from __future__ import annotations

from dataclasses import dataclass

from vlmface.answers import Answer
from vlmface.errors import UserError

NORMS = ("sum", "mean", "prior")  # how likelihoods become probabilities: LabelScores


@dataclass(frozen=True)
class Prediction:
    """The prediction of one task for one face.

    Attributes:
        text: What the model generated.
        answer: The parsed text: label, aus, rationale, status (see `vlmface.answers`).
        probabilities: {label: 0..1, summing to 1}, or None. Of a prompt for several labels, each
            label's own probability; they need not sum to 1.
        latency_s: Seconds of the image's batch, divided by its images.
        complete: Whether generation ended by itself, and not at the token limit.
        face_found: Whether a face was detected and cropped; None if detection was not run.
        affect: {"valence", "arousal"}, -1..1, of a model that predicts them.
    """

    text: str
    answer: Answer
    probabilities: dict[str, float] | None
    latency_s: float
    complete: bool
    face_found: bool | None = None
    affect: dict[str, float] | None = None

    @property
    def expected(self) -> float | None:
        """The mean of the numbers of a scale, weighted with their probabilities; None for labels
        that are words, and without probabilities."""
        scale = self.answer.scale
        return scale.expected(self.probabilities) if scale and self.probabilities else None

    @property
    def label_text(self) -> str | None:
        """The labels for people, a number with the range of its scale; None if there are none."""
        text, scale = self.answer.text_labels, self.answer.scale
        return text if text is None or scale is None else f"{text} ({scale.range_text})"


# The result for an image without a face: no text, so no label.
NO_PREDICTION = Prediction("", Answer(None, (), "none", ""), None, 0.0, False)


@dataclass(frozen=True)
class LabelScores:
    """How likely the model finds each label's text.

    Attributes:
        log_likelihood: {label: nats}, summed over the label's own tokens and those that end it. Of
            a prompt for several labels: of the label as the first one, without an end, since others
            may follow.
        tokens: {label: number of tokens}.
        latency_s: Seconds of the image's batch, divided by its images.
        prior: The log-likelihoods after a grey picture, None if they were not computed.
    """

    log_likelihood: dict[str, float]
    tokens: dict[str, int]
    latency_s: float
    prior: dict[str, float] | None = None

    def probabilities(self, norm: str = "sum") -> dict[str, float]:
        """The softmax over the labels.

        Args:
            norm: "sum": of the log-likelihoods; "mean": of the log-likelihoods per token, so that
                long labels are not at a disadvantage; "prior": of the log-likelihoods minus those
                after a grey picture (Holtzman et al. 2021, arXiv:2104.08315).

        Returns:
            {label: 0..1, summing to 1}.

        Raises:
            UserError: `norm` is "prior" and the prior was not computed.
        """
        import torch

        values = list(self.log_likelihood.values())
        if norm == "mean":
            values = [v / n for v, n in zip(values, self.tokens.values(), strict=True)]
        elif norm == "prior":
            if self.prior is None:
                raise UserError("the likelihoods without a picture were not computed: prior=True")
            values = [v - p for v, p in zip(values, self.prior.values(), strict=True)]
        elif norm != "sum":
            raise ValueError(f"norm {norm!r}: use one of {', '.join(NORMS)}")
        shares = torch.tensor(values, dtype=torch.float64).softmax(0).tolist()
        return dict(zip(self.log_likelihood, shares, strict=True))
