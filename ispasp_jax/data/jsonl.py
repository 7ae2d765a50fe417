"""Texts in a file, `jsonl:FILE`: an object a line, with "text", "label" (a whole
number, or a name), where two texts are compared "second", and "split": "train" or
"test".
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32

from ispasp_jax.data import tokens
from ispasp_jax.data.splits import MOST_CLASSES, Source
from ispasp_jax.data.tokens import Text, Words
from ispasp_jax.errors import InputError


class TextSplit:
    """Labelled texts in a fixed order.

    Attributes:
      texts: one, or two, an example.
      labels: their classes.
    """

    def __init__(
        self, texts: Sequence[Words], labels: Int32[np.ndarray, " n"], origin: str
    ):
        self.texts, self.labels = texts, labels
        self._origin = origin

    def __len__(self) -> int:
        return len(self.texts)

    def read(self, i: int) -> tuple[Words, int]:
        return self.texts[i], int(self.labels[i])

    def where(self, i: int) -> str:
        return f"text {i} of {self._origin}"


def open_jsonl(place: str) -> Source:
    """The texts of a file; where no line says of which split it is, a fifth of them,
    drawn once and for all, is the test split.

    Raises:
      InputError: it is missing, or a line is no object with text and label.
    """
    rows = _rows(Path(place))
    labels, names = _labels([label for _, label, _ in rows], place)
    tests = np.array([split == "test" for *_, split in rows], bool)
    if not any(split for *_, split in rows):
        order = np.random.default_rng(0).permutation(len(rows))
        tests[order[: len(rows) // 5]] = True
    train, test = (
        TextSplit(
            [rows[i][0] for i in np.flatnonzero(which)],
            labels[which],
            f"{place} ({name})",
        )
        for name, which in (("train", ~tests), ("test", tests))
    )
    if len({len(text) for text, *_ in rows}) > 1:
        raise InputError(
            f'{place} has "second" texts in some lines only; give one in all or none.'
        )
    tokenizer = tokens.learned(train.texts) if len(train) else ""
    prep = Text(tokens.fitting(tokenizer, train.texts), tokenizer)
    count = len(names) or int(labels.max(initial=0)) + 1
    notes = (f"classes are numbered by name: {', '.join(names[:8])}",) if names else ()
    return Source("jsonl", count, train, test, prep, "none", notes)


def _rows(file: Path) -> list[tuple[Words, Any, str]]:
    """Texts, label and split of every line."""
    if not file.is_file():
        raise InputError(
            f"{file} is no file; expected one JSON object a line, with text and label."
        )
    result = []
    with open(file, encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                result.append(_row(json.loads(line)))
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise InputError(
                    f"{file}, line {number}: {_said(error)}; expected an object with "
                    '"text", "label" and perhaps "second" and "split".'
                ) from error
    return result


def _said(error: Exception) -> str:
    text = str(error).splitlines()[0][:100] if str(error) else type(error).__name__
    return f"{text} is missing" if isinstance(error, KeyError) else text


def _row(said: Any) -> tuple[Words, Any, str]:
    if not isinstance(said, dict):
        raise TypeError("it is no object")
    texts = (said["text"], *([said["second"]] if "second" in said else []))
    split, label = said.get("split", ""), said["label"]
    if not all(isinstance(text, str) for text in texts):
        raise TypeError("a text is no string")
    if split not in ("", "train", "test"):
        raise ValueError(f"split {split!r} is neither train nor test")
    if type(label) not in (int, str):
        raise TypeError(f"label {label!r} is no whole number or name")
    return texts, label, split


def _labels(given: list[Any], place: str) -> tuple[Int32[np.ndarray, " n"], list[str]]:
    """Classes from 0, and their names where they have any."""
    kinds = {type(label) for label in given}
    if len(kinds) > 1:
        raise InputError(
            f"{place} has labels that are numbers and labels that are names; give one "
            "kind."
        )
    names = sorted(set(given)) if kinds == {str} else []
    numbers = [names.index(label) for label in given] if names else given
    if numbers and not 0 <= min(numbers) <= max(numbers) < MOST_CLASSES:
        raise InputError(
            f"{place} has labels from {min(numbers)} to {max(numbers)}; expected "
            f"classes counted from 0, {MOST_CLASSES} at most."
        )
    return np.array(numbers, np.int32), names
