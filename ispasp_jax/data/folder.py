"""Image folders: DIR/train and DIR/val, each with a folder a class or a labels.csv."""

import csv
import os
from pathlib import Path

import numpy as np

from ispasp_jax.data.splits import FileSplit, Source, defaults
from ispasp_jax.errors import InputError

_SUFFIXES = frozenset(
    ".jpg .jpeg .png .bmp .gif .webp .tif .tiff .ppm .pgm .pbm .jp2".split()
)


def open_folder(place: str) -> Source:
    """A folder of images.

    Class folders are numbered in the order of their names in DIR/train; DIR/val (or
    DIR/test) may lack some of them. A labels.csv has columns file (relative to it) and
    class_index (from 0); other columns are ignored. EXIF orientation is not applied.

    Raises:
      InputError: a split is missing, has no images, an unknown class or a bad
        labels.csv.
    """
    root = Path(place)
    parts = [p for p in (root / "train", root / "val", root / "test") if p.is_dir()]
    if len(parts) < 2 or parts[0].name != "train":
        raise InputError(
            f"{place} does not hold the folders train and val (or test); put the "
            "images there, in one folder a class or with a labels.csv."
        )
    classes = _class_names(parts[0])
    train, test = (_read_split(part, classes) for part in parts[:2])
    listed = 1 + max(int(split.labels.max()) for split in (train, test))
    num_classes = max(len(classes), listed)
    return Source("folder", num_classes, train, test, *defaults(None, None, 3))


def _read_split(part: Path, classes: list[str]) -> FileSplit:
    if (part / "labels.csv").is_file():
        rows = _from_csv(part / "labels.csv")
    else:
        rows = _from_folders(part, classes)
    if not rows:
        raise InputError(
            f"{part} holds no images; put them in one folder a class, or list them in "
            "a labels.csv with columns file, class_index."
        )
    files, labels = zip(*rows, strict=True)
    return FileSplit(files, np.array(labels, np.int32))


def _class_names(part: Path) -> list[str]:
    """Sub-folders by name; those with a dot in front (.git, .cache) are no classes."""
    with os.scandir(part) as entries:
        return sorted(e.name for e in entries if e.is_dir() and e.name[0] != ".")


def _from_folders(part: Path, classes: list[str]) -> list[tuple[str, int]]:
    index = {name: i for i, name in enumerate(classes)}
    rows = []
    for name in _class_names(part):
        if name not in index:
            raise InputError(
                f"{part / name} is a class that {part.parent / 'train'} does not have; "
                "name the class folders alike."
            )
        for folder, subfolders, files in os.walk(part / name, followlinks=True):
            subfolders.sort()
            rows += [
                (os.path.join(folder, file), index[name])
                for file in sorted(files)
                if Path(file).suffix.lower() in _SUFFIXES and file[0] != "."
            ]
    return rows


def _from_csv(table: Path) -> list[tuple[str, int]]:
    with open(table, newline="", encoding="utf-8-sig") as lines:
        reader = csv.DictReader(lines, skipinitialspace=True)
        try:
            entries = list(reader)
        except (csv.Error, UnicodeDecodeError) as error:
            raise InputError(
                f"{table} cannot be read ({error}); write it as UTF-8 text with "
                "columns file, class_index."
            ) from error
    missing = {"file", "class_index"} - set(reader.fieldnames or ())
    if missing:
        raise InputError(
            f"{table} has no column {' or '.join(sorted(missing))}; its first line has "
            "to name the columns file and class_index."
        )
    rows = []
    for number, entry in enumerate(entries, 2):
        label, file = (entry["class_index"] or "").strip(), entry["file"]
        if not (label.isascii() and label.isdigit()):
            raise InputError(
                f"{table}, entry {number - 1}: class_index {label!r} is not a class; "
                "expected an integer from 0."
            )
        if not (table.parent / file).is_file():
            raise InputError(
                f"{table}, entry {number - 1}: {table.parent / file} does not exist; "
                "remove the entry or fetch the file."
            )
        rows.append((str(table.parent / file), int(label)))
    return rows
