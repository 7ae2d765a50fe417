"""Image folders, good and broken."""

import csv

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
        lambda path: path.unlink(),
    ],
    ids=["cut", "text", "empty", "zeros", "gone"],
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
