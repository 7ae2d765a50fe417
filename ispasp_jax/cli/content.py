"""Identity is what the bytes say: fingerprints of arrays, files and images. A result is
answered from an older one only where these agree, whatever lies at which path.
"""

import functools
import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ispasp_jax.data import Source, Split

#: Images that are read where a split is neither arrays nor files.
_READ = 256


def of_text(text: str) -> str:
    """Of a file's text."""
    return _of([text.encode()])


def of_arrays(arrays: Iterable[Any]) -> str:
    """Of arrays, with their types and shapes."""
    return _of(part for array in arrays for part in _parts(array))


def of_tree(tree: Any) -> str:
    """Of a tree's arrays and their paths, such as a network's variables."""
    result = jax.tree_util.tree_leaves_with_path(jax.device_get(tree))
    parts = ((jax.tree_util.keystr(path).encode(), *_parts(a)) for path, a in result)
    return _of(part for pair in parts for part in pair)


def of_batches(batches: Iterable[np.ndarray]) -> str:
    """Of images, however they are cut into batches."""
    rows = (np.ascontiguousarray(row) for batch in batches for row in batch)
    return _of(part for row in rows for part in _parts(row))


def of_training(source: Source, used: np.ndarray | None = None) -> str:
    """Of a data set's training images and labels, or those of them that are used."""
    result = of_split(source.train) if used is None else _used(source.train, used)
    return of_text(f"{source.num_classes} {result}")


@functools.lru_cache(maxsize=8)  # by the object: a split's content is read once
def of_split(split: Split) -> str:
    """Of a split's images and labels."""
    return _used(split, np.arange(len(split)))


def _used(split: Split, used: np.ndarray) -> str:
    """Arrays: all bytes. Files: name, size and time of change, since to read them all
    may take hours. Anything else: some of the images, evenly spread.
    """
    labels = getattr(split, "labels", None)
    start = [] if labels is None else [*_parts(np.asarray(labels)[used])]
    if (images := getattr(split, "images", None)) is not None:
        whole = len(used) == len(split)
        return _of([*start, *_parts(images if whole else images[used])])
    if (texts := getattr(split, "texts", None)) is not None:
        return _of([*start, *(repr(texts[i]).encode() for i in used)])
    if (files := getattr(split, "files", None)) is not None:
        return _of([*start, *(_file(Path(files[i])) for i in used)])
    some = used[:: -(-len(used) // _READ)]
    images = (split.read(int(i)) for i in some)
    parts = (part for image, label in images for part in (*_parts(image), _int(label)))
    return _of([*start, _int(len(used)), *parts])


def _file(path: Path) -> bytes:
    try:
        about = path.stat()
    except OSError:  # whoever reads it will say so
        return str(path).encode()
    name = "/".join(path.parts[-2:])
    return f"{name} {about.st_size} {about.st_mtime_ns}\n".encode()


def _parts(array: Any) -> tuple[bytes, Any]:
    array = np.ascontiguousarray(array)
    return f"{array.dtype} {array.shape}".encode(), array.reshape(-1).view(
        np.uint8
    ).data


def _int(number: int) -> bytes:
    return f"{number} ".encode()


def _of(parts: Iterable[Any]) -> str:
    result = hashlib.sha256()
    for part in parts:
        result.update(part)
    return result.hexdigest()[:32]
