"""Measures of words and texts: hit rate, ROUGE-L, REGE. See `measures` for what they share."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from vlmface.errors import UserError


def hit_rate(
    answers: Sequence[Collection[str]],
    truth: Sequence[str],
    groupings: Sequence[Mapping[str, str]] = ({},),
) -> float:
    """Share of the rows whose true word is among the words of the answer, 0..1.

    `answers` holds the words of each row, none for an answer without any, and `truth` one word for
    each. A grouping {word: group} makes words of one group the same; a word that is not in it is
    its own group. The rate is the mean over the groupings. Capitals and outer white space do not
    count.

    This is the hit rate of MER-UniBench (Lian et al., ICML 2025, section 4). Its groupings are
    those of several emotion wheels after inflected forms and synonyms are merged, and a language
    model takes the words from the text; neither is part of this function. More words never harm.
    """
    if len(answers) != len(truth):
        raise UserError(f"answers has {len(answers)} rows and truth {len(truth)}: give one of each")
    if not truth:
        raise UserError("answers has no rows: there is nothing to measure")
    if not groupings:
        raise UserError("groupings is empty: give one at least, {} if every word is its own group")
    for words in answers:
        if isinstance(words, str):
            raise UserError(f"an answer is the text {words!r}: give a list of its words")
    answer_words = [{_plain(word) for word in words} for words in answers]
    true = [_plain(word) for word in truth]
    rates = []
    for grouping in groupings:
        group = {_plain(word): _plain(name) for word, name in grouping.items()}
        hits = sum(
            group.get(word, word) in {group.get(synonym, synonym) for synonym in words}
            for words, word in zip(answer_words, true, strict=True)
        )
        rates.append(hits / len(true))
    return sum(rates) / len(rates)


def rouge_l(candidate: str, reference: str, beta: float = 1.0) -> dict[str, float]:
    """ROUGE-L of a text, {"precision", "recall", "f"}, 0..1: the longest common subsequence of
    words as a share of the candidate's words, of the reference's words, and their F measure,
    (1 + beta²) P R / (R + beta² P). Lin, ACL workshop 2004, sentence level.

    Words are runs of letters and digits in lower case, without stemming. A candidate without words
    scores 0.
    """
    candidate_words, reference_words = _words(candidate), _words(reference)
    if not reference_words:
        raise UserError(f"the reference {reference!r} has no words: leave its row out")
    if not beta > 0:
        raise UserError(f"beta of ROUGE-L is {beta}: use 1, or more to weigh recall more")
    common = longest_common_subsequence(candidate_words, reference_words)
    precision = common / len(candidate_words) if candidate_words else 0.0
    recall = common / len(reference_words)
    below = recall + beta**2 * precision
    f = (1 + beta**2) * precision * recall / below if below else 0.0
    return {"precision": precision, "recall": recall, "f": f}


def longest_common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    """How many words the two have in the same order, gaps allowed."""
    codes = {word: i for i, word in enumerate(dict.fromkeys(second))}
    columns = np.array([codes[word] for word in second], dtype=int)
    # length[j]: of the words of `first` so far and the first j of `second`.
    length = np.zeros(len(second) + 1, dtype=int)
    for word in first:
        extended = length[:-1] + (columns == codes.get(word, -1))
        length[1:] = np.maximum.accumulate(np.maximum(length[1:], extended))
    return int(length[-1])


def rege(recognition: float, texts: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """{"recognition", "generation", "rege"}: REGE, the sum of what a model recognises and of how it
    says so, 0..2. Li et al., ECCV 2024, "Facial Affective Behavior Analysis with Instruction
    Tuning"; they give per cent, 0..200.

    `recognition` is the accuracy of the emotion or the mean F1 of the AUs, 0..1. The generation
    score is the mean ROUGE-L F1 of the `texts`. The authors' script takes it from the `rouge`
    package, which counts each word of a text once, joins the matches of single sentences and keeps
    capitals, and it skips the texts that the package refuses: their figures are near this one, not
    the same.
    """
    if not 0 <= recognition <= 1:
        raise UserError(f"the recognition score is {recognition}: give an accuracy or F1 in 0..1")
    if len(texts) != len(references):
        raise UserError(
            f"there are {len(texts)} texts and {len(references)} references: give one of each"
        )
    if not texts:
        raise UserError("texts is empty: there is nothing to measure")
    pairs = zip(texts, references, strict=True)
    generation = float(np.mean([rouge_l(text, reference)["f"] for text, reference in pairs]))
    return {
        "recognition": float(recognition),
        "generation": generation,
        "rege": float(recognition) + generation,
    }


def _plain(word: str) -> str:
    return word.strip().lower()


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.lower())
