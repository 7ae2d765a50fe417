"""Image folders: DIR/train and DIR/val, each with a folder a class or a labels.csv."""

import csv
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ispasp_jax.data.splits import (
    MOST_CLASSES,
    FileSplit,
    Source,
    class_count,
    defaults,
)
from ispasp_jax.errors import InputError

_SUFFIXES = frozenset(
    ".jpg .jpeg .png .bmp .gif .webp .tif .tiff .ppm .pgm .pbm .jp2".split()
)

#: What archives, servers and systems leave behind; all that is hidden likewise.
_LITTER = frozenset(
    ("__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "lost+found")
    + ("System Volume Information",)
)

_TABLE = "labels.csv"
_COLUMNS = ("file", "class_index")

#: File and class of every image.
_Rows = list[tuple[str, int]]


def open_folder(place: str) -> Source:
    """A folder of images.

    Class folders are numbered in the order of their names, as text, in DIR/train;
    DIR/val (or DIR/test) may lack some of them. A labels.csv has columns file (relative
    to it) and class_index (from 0); other columns are ignored, and so are folders
    beside it. EXIF orientation is not applied.

    Raises:
      InputError: a split is missing, has no images, an unknown or empty class, a link
        that leads back, or a bad labels.csv.
    """
    root = Path(place)
    parts = [p for p in (root / "train", root / "val", root / "test") if p.is_dir()]
    if len(parts) < 2 or parts[0].name != "train":
        raise InputError(
            f"{place} does not hold the folders train and val (or test); put the "
            "images there, in one folder a class or with a labels.csv."
        )
    train, test = parts[:2]
    listed, tested = ((part / _TABLE).is_file() for part in (train, test))
    classes = [] if listed else _class_names(train)
    if listed and not tested:
        raise InputError(
            f"{train} has a labels.csv, which does not number the folders of {test}; "
            "write a labels.csv for both."
        )
    rows = _from_csv(train) if listed else _from_folders(train, classes)
    _known(train, classes, rows)
    last = None if listed else len(classes) - 1
    others = _from_csv(test, last) if tested else _from_folders(test, classes)
    split, tests = _split(train, rows), _split(test, others)
    count = max(len(classes), class_count(split.labels, tests.labels))
    preprocessing, recipe, _ = defaults(None, None, 3)
    notes = _numbered(classes)
    return Source("folder", count, split, tests, preprocessing, recipe, notes)


def _split(part: Path, rows: _Rows) -> FileSplit:
    if not rows:
        raise InputError(
            f"{part} holds no images; put them in one folder a class, or list them in "
            "a labels.csv with columns file, class_index."
        )
    files, labels = zip(*rows, strict=True)
    return FileSplit(files, np.array(labels, np.int32))


def _known(part: Path, classes: list[str], rows: _Rows) -> None:
    """Raises InputError where a class to be trained has no image, but others have."""
    empty = sorted(set(range(len(classes))) - {label for _, label in rows})
    if rows and empty:
        raise InputError(
            f"{part / classes[empty[0]]} is a class without an image (of "
            f"{' '.join(sorted(_SUFFIXES))}); add some, or remove the folder."
        )


def _numbered(classes: list[str]) -> tuple[str, ...]:
    """What to say where names that are numbers come in another order than theirs."""
    if not all(name.isascii() and name.isdigit() for name in classes):
        return ()
    if classes == sorted(classes, key=lambda name: (len(name.lstrip("0")), name)):
        return ()
    first = ", ".join(classes[:4])
    return (
        f"the class folders are numbers, and numbered as text ({first}, …), as "
        "torchvision does; for another order write a labels.csv",
    )


def _wanted(name: str) -> bool:
    return name[0] != "." and name not in _LITTER


def _class_names(part: Path) -> list[str]:
    """Sub-folders by name; hidden ones (.git, .cache) and litter are no classes."""
    with os.scandir(part) as entries:
        return sorted(e.name for e in entries if e.is_dir() and _wanted(e.name))


def _from_folders(part: Path, classes: list[str]) -> _Rows:
    index = {name: i for i, name in enumerate(classes)}
    above = [part, *part.resolve().parents]
    seen, rows = {_place(folder) for folder in above}, []
    for name in _class_names(part):
        if name not in index:
            raise InputError(
                f"{part / name} is a class that {part.parent / 'train'} does not have; "
                "name the class folders alike."
            )
        rows += [(file, index[name]) for file in _images(part / name, seen)]
    return rows


def _place(folder: str | os.PathLike) -> tuple[int, int]:
    """What is the same for all paths to one folder."""
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _images(top: str | os.PathLike, seen: set[tuple[int, int]]) -> Iterator[str]:
    """The image files in a folder and below, each folder once: those of `seen`, which
    grows, must not come again.
    """
    folders = [os.fspath(top)]
    while folders:
        folder = folders.pop()
        here = _place(folder)
        if here in seen:
            raise InputError(
                f"{folder} leads to a folder that is read already; remove the link."
            )
        seen.add(here)
        with os.scandir(folder) as entries:
            images = [entry for entry in entries if _wanted(entry.name)]
        images.sort(key=lambda entry: entry.name)
        folders += [e.path for e in reversed(images) if e.is_dir()]
        for entry in images:
            suffix = os.path.splitext(entry.name)[1].lower()
            if suffix not in _SUFFIXES or entry.is_dir():
                continue
            if not entry.is_file():
                raise InputError(
                    f"{entry.path} is no file (a broken link?); remove it or fetch it "
                    "again."
                )
            yield entry.path


def _from_csv(part: Path, last: int | None = None) -> _Rows:
    """What a labels.csv lists; `last` is the last class there is, if that is known."""
    table, rows, classes = part / _TABLE, [], {}
    for number, (file, label) in enumerate(_entries(table), 1):
        where = f"{table}, entry {number}"
        path = os.path.normpath(part / file)
        shown = _shown(path)
        if not (label.isascii() and label.isdigit() and len(label) < 20):
            raise InputError(
                f"{where}: class_index {label[:40]!r} is not a class; expected an "
                "integer from 0."
            )
        if int(label) >= MOST_CLASSES:
            raise InputError(
                f"{where}: class_index {label} is not one of {MOST_CLASSES} "
                "classes at most; number them from 0."
            )
        if last is not None and int(label) > last:
            raise InputError(
                f"{where}: class_index {label} is not a class of "
                f"{part.parent / 'train'}, whose folders are classes 0 to {last}; "
                "correct the entry."
            )
        if not Path(path).is_relative_to(os.path.normpath(part)):
            raise InputError(
                f"{where}: {_shown(file)} lies outside {part}; move it there, and name "
                "it relative to the table."
            )
        if not os.path.isfile(path):
            raise InputError(
                f"{where}: {shown} does not exist; remove the entry or fetch the file."
            )
        if classes.setdefault(path, int(label)) != int(label):
            raise InputError(
                f"{where}: {shown} is of class {label} here and {classes[path]} "
                "before; remove one entry."
            )
        rows.append((path, int(label)))
    return rows


def _shown(text: str) -> str:
    """The text in one line: where a quote is lost, a name holds whole lines."""
    return text if text.isprintable() else repr(text)


def _entries(table: Path) -> Iterator[tuple[str, str]]:
    """File and class_index of every line below the first, unchecked."""
    try:
        with open(table, newline="", encoding="utf-8-sig") as lines:
            result = list(csv.reader(lines, skipinitialspace=True, strict=True))
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(
            f"{table} cannot be read ({error}); write it as UTF-8 text with columns "
            "file, class_index."
        ) from error
    names, *entries = [line for line in result if line] or [[]]
    names = [name.strip() for name in names]
    wrong = [name for name in sorted(_COLUMNS) if names.count(name) != 1]
    if wrong:
        raise InputError(
            f"{table} has no column {' or '.join(wrong)}, or has it twice; its first "
            "line has to name the columns file and class_index."
        )
    columns = [names.index(name) for name in _COLUMNS]
    for number, entry in enumerate(entries, 1):
        if len(entry) != len(names):
            raise InputError(
                f"{table}, entry {number}: {len(entry)} values for the {len(names)} "
                f"columns {_shown(', '.join(names))[:80]}; write as many, in quotes "
                "where one holds a comma."
            )
        file, label = (entry[i] for i in columns)
        yield file, label.strip()
