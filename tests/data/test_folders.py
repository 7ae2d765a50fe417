"""Image folders, good and broken."""

import csv
import itertools
import os
import re
from pathlib import Path

import numpy as np
import pytest
from pictures import IMAGENET, data_threads, noise, raises
from PIL import Image

from ispasp_jax import data


def save(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)


def folders(root, test="val"):
    for i, name in enumerate(("zebra", "ant", "bee")):
        for k in range(3):
            save(root / "train" / name / f"{k}.png", noise(20, 30, 3, seed=9 * i + k))
    save(root / test / "bee" / "deep" / "0.JPG", noise(20, 30, 3))
    save(root / test / "zebra" / "1.png", noise(20, 30))
    (root / "train" / "ant" / "notes.txt").write_text("not an image")
    (root / "train" / "ant" / "._0.png").write_text("not an image either")
    (root / "train" / ".cache").mkdir()
    return f"folder:{root}"


@pytest.mark.parametrize("test", ["val", "test"])
def test_class_folders(tmp_path, test):
    source = data.open_source(folders(tmp_path, test))
    assert source.num_classes == 3 and source.recipe == "crop"
    assert source.preprocessing == IMAGENET
    assert source.train.labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3
    assert source.test.labels.tolist() == [1, 2]
    assert source.train.where(7) == str(tmp_path / "train" / "zebra" / "1.png")
    assert np.array_equal(source.train.read(7)[0], noise(20, 30, 3, seed=1))
    assert data.describe(f"folder:{tmp_path}") == (3, IMAGENET)


def table(path, rows, columns=("file", "class_index", "wnid")):
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])


def test_labels_csv(tmp_path):
    for part in ("train", "val"):
        save(tmp_path / part / "a, b.png", noise(9, 9, 3))
        save(tmp_path / part / "deep" / "c.png", noise(9, 9, 3))
        table(
            tmp_path / part / "labels.csv",
            [("a, b.png", 7, "n"), ("deep/c.png", 0, "")],
        )
    source = data.open_source(f"folder:{tmp_path}")
    assert source.num_classes == 8 and source.test.labels.tolist() == [7, 0]
    assert source.test.where(1) == str(tmp_path / "val" / "deep" / "c.png")


@pytest.mark.parametrize(
    ("rows", "columns", "words"),
    [
        ([("0.png", 1)], ("name", "class_index"), "no column file"),
        ([("0.png", 1)], ("a", "b"), "no column class_index or file"),
        ([], ("file", "class_index"), "holds no images"),
        ([("0.png", "n01440764")], None, "entry 1: class_index 'n01440764'"),
        ([("0.png", -1)], None, "entry 1: class_index '-1'"),
        ([("0.png", 1), ("0.png",)], None, "entry 2: 1 values for the 2 columns"),
        ([("0.png", 1), ("9.png", 1)], None, "entry 2: .*9.png does not exist"),
    ],
)
def test_a_bad_labels_csv_is_refused(tmp_path, rows, columns, words):
    folders(tmp_path)
    save(tmp_path / "val" / "0.png", noise(9, 9, 3))
    table(tmp_path / "val" / "labels.csv", rows, columns or ("file", "class_index"))
    with raises("labels.csv", words) if rows else raises(words, "labels.csv"):
        data.open_source(f"folder:{tmp_path}")


TABLES = {
    "empty": ("", "no column class_index or file"),
    "twice": ("file,file,class_index\n0.png,0.png,1\n", "no column file, or .*twice"),
    "short": ("file,class_index,wnid\n0.png,1\n", "entry 1: 2 values for the 3"),
    "long": ("file,class_index\n0.png,1,2\n", "entry 1: 3 values for the 2"),
    "turned": ("class_index,file\n1\n", "entry 1: 1 values for the 2"),
    "quote": ('file,class_index\n"0.png,1\n', "cannot be read"),
    "wordnet": ("file,class_index\n0.png,1440764\n", "1440764 is not one of 250000"),
    "huge": ("file,class_index\n0.png,100000000000\n", "is not one of 250000"),
    "digits": (f"file,class_index\n0.png,{'1' * 5000}\n", "is not a class"),
    "NUL": ("file,class_index\n0\0.png,1\n", "labels.csv.*(exist|read)"),
    "long name": (f"file,class_index\n{'a' * 5000},1\n", "does not exist"),
    "above": ("file,class_index\n../train/ant/0.png,1\n", "lies outside .*val"),
    "deep": ("file,class_index\na/../../x.png,1\n", "lies outside .*val"),
    "absolute": ("file,class_index\n/etc/passwd,1\n", "lies outside .*val"),
    "folder": ("file,class_index\nbee,1\n", "does not exist"),
    "two classes": ("file,class_index\n0.png,1\n0.png,2\n", "of class 2 here and 1"),
    "not trained": ("file,class_index\n0.png,3\n", "folders are classes 0 to 2"),
}


@pytest.mark.parametrize(("text", "words"), TABLES.values(), ids=TABLES)
def test_a_spoilt_labels_csv_is_refused(tmp_path, text, words):
    folders(tmp_path)
    save(tmp_path / "val" / "0.png", noise(9, 9, 3))
    (tmp_path / "val" / "labels.csv").write_text(text)
    with raises("labels.csv", words):
        data.open_source(f"folder:{tmp_path}")


def test_folders_beside_a_labels_csv_are_no_classes(tmp_path):
    for part in ("train", "val"):
        for i in range(3):
            save(tmp_path / part / f"shard{i}" / "0.png", noise(9, 9, 3))
        (tmp_path / part / "thumbnails").mkdir()
        rows = [(f"shard{i}/0.png", i % 2) for i in range(3)]
        table(tmp_path / part / "labels.csv", rows, ("file", " class_index"))
    source = data.open_source(f"folder:{tmp_path}")
    assert source.num_classes == 2 and source.train.labels.tolist() == [0, 1, 0]


LITTER = ("__MACOSX", "@eaDir", ".git", "#recycle", "$RECYCLE.BIN", "lost+found")


@pytest.mark.parametrize("name", LITTER)
def test_litter_is_neither_class_nor_image(tmp_path, name):
    before = data.open_source(folders(tmp_path))
    for place in ("train", "train/bee", "val", "val/bee"):
        save(tmp_path / place / name / "0.png", noise(9, 9, 3))
        save(tmp_path / place / name / "bee" / "0.png", noise(9, 9, 3))
    after = data.open_source(f"folder:{tmp_path}")
    assert after.num_classes == 3
    assert [s.files for s in (after.train, after.test)] == [
        s.files for s in (before.train, before.test)
    ]


FOLDERS = {
    "no image": (lambda root: (root / "train" / "cow").mkdir(), "cow is a class with"),
    "no image known": (
        lambda root: folder_of(root / "train" / "cow").joinpath("0.heic").touch(),
        "train/cow is a class without an image .*jpg",
    ),
    "loop": (
        lambda root: (root / "train" / "bee" / "all").symlink_to(root / "train"),
        "bee/all leads to a folder that is read already",
    ),
    "loop to itself": (
        lambda root: (root / "train" / "bee" / "more").symlink_to("."),
        "bee/more leads to",
    ),
    "one folder twice": (
        lambda root: (root / "train" / "wasp").symlink_to("bee"),
        "train/wasp leads to",
    ),
    "above": (
        lambda root: (root / "train" / "bee" / "up").symlink_to(root.parent),
        "bee/up leads to",
    ),
    "broken link": (
        lambda root: (root / "train" / "bee" / "9.png").symlink_to("nowhere"),
        "bee/9.png is no file .*broken link",
    ),
    "link to itself": (
        lambda root: (root / "train" / "bee" / "9.png").symlink_to("9.png"),
        "bee/9.png",
    ),
    "pipe": (lambda root: os.mkfifo(root / "train" / "bee" / "9.png"), "is no file"),
    "half a table": (
        lambda root: table(root / "train" / "labels.csv", [("bee/0.png", 0)]),
        "train has a labels.csv, which does not number the folders of .*val",
    ),
}


def folder_of(path):
    path.mkdir()
    return path


@pytest.mark.parametrize(("spoil", "words"), FOLDERS.values(), ids=FOLDERS)
def test_spoilt_folders_are_refused(tmp_path, spoil, words):
    folders(tmp_path)
    spoil(tmp_path)
    with raises(words):
        data.open_source(f"folder:{tmp_path}")


def test_links_to_images_elsewhere_are_followed(tmp_path):
    folders(tmp_path / "data")
    save(tmp_path / "store" / "0.png", noise(9, 9, 3))
    (tmp_path / "data" / "train" / "cow").symlink_to(tmp_path / "store")
    source = data.open_source(f"folder:{tmp_path}/data")
    assert source.train.labels.tolist() == [0] * 3 + [1] * 3 + [2] + [3] * 3


@pytest.mark.parametrize(
    ("names", "note"),
    [
        (("0", "1", "2"), ""),
        (("00", "02", "10"), ""),
        (("1", "a", "10"), ""),
        (("1", "2", "10"), r"numbered as text \(1, 10, 2, …\), as torchvision"),
    ],
)
def test_folders_that_are_numbers_are_in_the_order_of_text(tmp_path, names, note):
    for part, name in itertools.product(("train", "val"), names):
        save(tmp_path / part / name / "0.png", noise(9, 9, 3))
    source = data.open_source(f"folder:{tmp_path}")
    found = [Path(file).parent.name for file in source.train.files]
    assert found == sorted(names) and source.train.labels.tolist() == [0, 1, 2]
    assert re.search(note, *source.notes) if note else not source.notes


def test_a_tilde_is_the_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    folders(tmp_path / "mine")
    assert len(data.open_source("folder:~/mine").train) == 9
    assert data.located("folder:~/mine") == f"folder:{tmp_path}/mine"
    with raises("no-such-user"):
        data.open_source("folder:~no-such-user/mine")


def test_a_labels_csv_that_is_no_text_is_refused(tmp_path):
    folders(tmp_path)
    (tmp_path / "val" / "labels.csv").write_bytes(b"\xff\xfe\x00file")
    with raises("labels.csv cannot be read", "UTF-8"):
        data.open_source(f"folder:{tmp_path}")


def test_folders_that_do_not_fit_are_refused(tmp_path):
    with raises("none does not hold the folders train and val"):
        data.open_source(f"folder:{tmp_path}/none")
    (tmp_path / "train").mkdir()
    with raises("does not hold the folders train and val"):
        data.open_source(f"folder:{tmp_path}")
    (tmp_path / "val").mkdir()
    with raises("train holds no images", "labels.csv"):
        data.open_source(f"folder:{tmp_path}")
    folders(tmp_path)
    save(tmp_path / "val" / "cow" / "1.png", noise(9, 9))
    with raises("val/cow is a class that .*train does not have"):
        data.open_source(f"folder:{tmp_path}")


def cut_jpeg(path):
    save(path, noise(64, 64, 3), quality=90)
    path.write_bytes(path.read_bytes()[:1500])


@pytest.mark.parametrize(
    "spoil",
    [
        cut_jpeg,
        lambda path: path.write_text("not an image"),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(50)),
        lambda path: path.write_bytes(
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9"
        ),
        lambda path: path.unlink(),
    ],
    ids=["cut", "text", "empty", "zeros", "program", "gone"],
)
@pytest.mark.parametrize("recipe", [None, "crop"])
def test_an_image_that_cannot_be_read_is_named(tmp_path, spoil, recipe):
    folders(tmp_path)
    save(tmp_path / "train" / "bee" / "1.jpg", noise(9, 9, 3))
    source = data.open_source(f"folder:{tmp_path}")
    spoil(tmp_path / "train" / "bee" / "1.jpg")
    small = IMAGENET._replace(image_size=8, resize=8)
    with raises("bee/1.jpg is not an image that can be read", "remove it or fetch"):
        list(data.batches(source.train, small, 5, recipe=recipe))
    assert not data_threads()
