"""Batches of a split: in order for evaluation, shuffled and augmented for training."""

import dataclasses
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Int, Int32

from ispasp_jax.data import preprocessing as pixels
from ispasp_jax.data.preprocessing import Inputs, Preprocessing
from ispasp_jax.data.splits import ArraySplit, Split
from ispasp_jax.data.tokens import Text, tokens
from ispasp_jax.errors import InputError

#: Batches that are decoded ahead of the one in use; more would only cost memory.
_AHEAD = 2


class Batch(NamedTuple):
    """Images ready for a network.

    Attributes:
      image: preprocessed; zeros where padded. float32, until somebody casts it; of a
        text its tokens.
      label: classes; 0 where padded.
      weight: 1, and 0 where padded.
    """

    image: Float[np.ndarray, "n h w c"] | Int32[np.ndarray, "n t"]
    label: Int32[np.ndarray, " n"]
    weight: Float32[np.ndarray, " n"]


#: A batch that is being filled, and the jobs that fill it.
_Pending = tuple[Batch, list[Future]]


def batches(
    split: Split,
    preprocessing: Inputs,
    batch_size: int,
    *,
    indices: Int[np.ndarray, " m"] | None = None,
    recipe: str | None = None,
    seed: int = 0,
    epoch: int = 0,
    workers: int | None = None,
) -> Iterator[Batch]:
    """One pass over a split in batches of one size, decoded by threads ahead of use.

    Args:
      split: where images come from.
      preprocessing: what to make of them.
      batch_size: images a batch.
      indices: which images; None is all of them.
      recipe: None evaluates: images in order, the last batch padded with weight 0. The
        name of an augmentation trains: images shuffled by (seed, epoch), each augmented
        by (seed, epoch, index) whatever the number of workers, an incomplete last batch
        left out.
      seed: see recipe.
      epoch: see recipe.
      workers: threads; None is one a processor, at most 16.

    Returns:
      Batches of one shape, as they are due.

    Raises:
      InputError: the arguments do not fit the split (at once), or an image cannot be
        read (when its batch is due).
    """
    indices = _order(split, indices, batch_size, recipe, [seed, epoch])
    chunks = [indices[i : i + batch_size] for i in range(0, len(indices), batch_size)]
    workers = min(os.cpu_count() or 1, 16) if workers is None else max(workers, 1)
    reader = _Reader(split, preprocessing, batch_size, recipe, (seed, epoch))
    return _ahead(reader.start, chunks, workers)


@dataclasses.dataclass(frozen=True)
class _Reader:
    """Fills batches; the fields are those of `batches`."""

    split: Split
    preprocessing: Inputs
    batch_size: int
    recipe: str | None
    seeds: tuple[int, int]

    def start(self, chunk: Int[np.ndarray, " m"], pool: ThreadPoolExecutor) -> _Pending:
        """A batch of these images, which the pool fills."""
        prep = self.preprocessing
        kind = np.int32 if isinstance(prep, Text) else np.float32
        batch = Batch(
            np.zeros((self.batch_size, *prep.shape), kind),
            np.zeros(self.batch_size, np.int32),
            (np.arange(self.batch_size) < len(chunk)).astype(np.float32),
        )
        if isinstance(prep, Text):
            return batch, [pool.submit(self._texts, prep, batch, chunk)]
        arrays = _as_they_are(self.split, prep, self.recipe)
        if arrays is not None:
            return batch, [pool.submit(self._whole, prep, arrays, batch, chunk)]
        rows = enumerate(chunk.tolist())
        return batch, [pool.submit(self._one, prep, batch, row, i) for row, i in rows]

    def _chance(self, i: int) -> np.random.Generator:
        return np.random.default_rng([*self.seeds, i])

    def _texts(self, prep: Text, batch: Batch, chunk: Int[np.ndarray, " m"]) -> None:
        pairs = [self.split.read(i) for i in chunk.tolist()]
        batch.image[: len(chunk)] = tokens(prep, [text for text, _ in pairs])
        batch.label[: len(chunk)] = [label for _, label in pairs]

    def _one(self, prep: Preprocessing, batch: Batch, row: int, i: int) -> None:
        image, batch.label[row] = self.split.read(i)
        try:
            if self.recipe is None:
                new = pixels.evaluate(image, prep)
            else:
                chance = self._chance(i)
                new = pixels.augment(image, prep, chance, self.recipe)
        except InputError as error:
            raise InputError(f"{self.split.where(i)}: {error}") from error
        batch.image[row] = new

    def _whole(
        self,
        prep: Preprocessing,
        split: ArraySplit,
        batch: Batch,
        chunk: Int[np.ndarray, " m"],
    ) -> None:
        images, count = split.images[chunk], len(chunk)
        if self.recipe is not None and self.recipe != "none":
            shifts = pixels.SHIFTS[self.recipe]
            for row, i in enumerate(chunk.tolist()):
                images[row] = pixels.shifted(images[row], self._chance(i), *shifts)
        batch.image[:count] = pixels.normalise(images, prep)
        batch.label[:count] = split.labels[chunk]


def calibration_indices(split: Split, count: int, seed: int) -> Int[np.ndarray, " m"]:
    """`count` images drawn without replacement, ascending; all of them if fewer.

    Raises:
      InputError: count is below 1.
    """
    if count < 1:
        raise InputError(
            f"{count} calibration images are too few; expected at least 1."
        )
    rng = np.random.default_rng(seed)
    return np.sort(rng.choice(len(split), min(count, len(split)), replace=False))


def _order(
    split: Split,
    indices: Int[np.ndarray, " m"] | None,
    batch_size: int,
    recipe: str | None,
    seed: list[int],
) -> Int[np.ndarray, " used"]:
    """The images to use, one batch after the other."""
    indices = np.arange(len(split)) if indices is None else np.asarray(indices, int)
    if batch_size < 1:
        raise InputError(f"batch size {batch_size} is too small; expected at least 1.")
    if indices.size and not 0 <= indices.min() <= indices.max() < len(split):
        raise InputError(
            f"indices {indices.min()} to {indices.max()} do not fit a split of "
            f"{len(split)} images; expected them from 0."
        )
    if recipe is not None:
        pixels.known_recipe(recipe)
        if len(indices) < batch_size:
            raise InputError(
                f"{len(indices)} images do not fill one batch of {batch_size}; use a "
                f"batch size of at most {len(indices)}."
            )
        indices = np.random.default_rng(seed).permutation(indices)
        indices = indices[: len(indices) // batch_size * batch_size]
    return indices


def _as_they_are(
    split: Split, wanted: Preprocessing, recipe: str | None
) -> ArraySplit | None:
    """The split, if its images are an array of the size wanted: no PIL is needed."""
    if (
        isinstance(split, ArraySplit)
        and split.images.dtype == np.uint8
        and split.images.shape[1:] == wanted.shape
        and wanted.resize in (None, wanted.image_size)
        and (recipe is None or recipe in pixels.SHIFTS)
    ):
        return split
    return None


def _ahead(
    start: Callable[[Int[np.ndarray, " _"], ThreadPoolExecutor], _Pending],
    chunks: list[Int[np.ndarray, " _"]],
    workers: int,
) -> Iterator[Batch]:
    """The batches in order; the threads end with the iterator, however it ends."""
    pool = ThreadPoolExecutor(workers, thread_name_prefix="ispasp-data")
    pending: deque[_Pending] = deque()

    def finish() -> Batch:
        batch, jobs = pending.popleft()
        for job in jobs:
            job.result()
        return batch

    try:
        for chunk in chunks:
            pending.append(start(chunk, pool))
            if len(pending) > _AHEAD:
                yield finish()
        while pending:
            yield finish()
    finally:
        pool.shutdown(cancel_futures=True)
