"""TensorFlow data sets: mocked, prepared, missing, broken."""

import importlib.util
import io
import struct

import numpy as np
import pytest
from pictures import IMAGENET, PLAIN, noise, raises
from PIL import Image

from ispasp_jax import data
from ispasp_jax.data.crc32c import checksum


@pytest.fixture
def tfds(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    return pytest.importorskip("tensorflow_datasets")


def test_mocked_data_sets_are_read_without_tensorflow(tfds):
    with tfds.testing.mock_data(num_examples=5):
        source = data.open_source("tfds:mnist")
        assert (len(source.train), len(source.test), source.num_classes) == (5, 5, 10)
        assert source.preprocessing.shape == (28, 28, 1)
        found = list(data.batches(source.test, source.preprocessing, 3))
        assert [b.weight.tolist() for b in found] == [[1, 1, 1], [1, 1, 0]]
        labels = np.concatenate([b.label for b in found])[:5]
        assert labels.tolist() == [source.test.read(i)[1] for i in range(5)]

        colour = data.open_source("tfds:cifar10:train[:50%],train[50%:]")
        assert colour.recipe == "shift" and colour.preprocessing.image_size == 32
        mixed = data.open_source("tfds:imagenet2012:train,validation")
        assert mixed.num_classes == 1000 and mixed.preprocessing == IMAGENET
        (batch,) = data.batches(mixed.train, IMAGENET, 5, recipe="crop")
        assert batch.image.shape == (5, 224, 224, 3)


def test_an_unprepared_data_set_is_described_and_refused_at_once(tfds):
    assert data.describe("tfds:imagenet2012") == (1000, IMAGENET)
    if importlib.util.find_spec("tensorflow"):
        pytest.skip("TensorFlow is installed and would start a download")
    with raises("tfds:mnist is not prepared in", "TensorFlow", "tfds build mnist"):
        data.open_source("tfds:mnist")


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("tfds:no_such_data", "no_such_data cannot be opened .*not found"),
        ("tfds:mnist/no_config", "mnist/no_config cannot be opened"),
        ("tfds:ag_news_subset", "not a data set of labelled images .*description"),
        ("tfds:div2k", "not a data set of labelled images .*lr, hr"),
        ("tfds:mnist:train", "not understood"),
        ("tfds:mnist:train,test,validation", "not understood"),
        ("tfds:mnist:train,", "not understood"),
    ],
)
def test_data_sets_that_do_not_fit_are_refused(tfds, spec, words):
    with tfds.testing.mock_data(num_examples=1), raises(words):
        data.open_source(spec)


def prepare(tfds, root, labels=(0, 1, -1)):
    """A data set on disk as ArrayRecord; encoded images need no TensorFlow."""

    class TinyPictures(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {
                "image": tfds.features.Image(shape=(12, 12, 3)),
                "label": tfds.features.ClassLabel(num_classes=4),
            }
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(features),
                supervised_keys=("image", "label"),
            )

        def _split_generators(self, dl_manager):
            names = ("train", "validation", "test")
            return {n: self._generate_examples(i) for i, n in enumerate(names)}

        def _generate_examples(self, split):
            for i in range(7):
                stream = io.BytesIO()
                Image.fromarray(noise(12, 12, 3, seed=i)).save(stream, "PNG")
                label = -1 if labels[split] < 0 else i % 4
                yield i, {"image": stream.getvalue(), "label": label}

    builder = TinyPictures(data_dir=root, file_format="array_record")
    builder.download_and_prepare()


@pytest.mark.filterwarnings("default")  # of TFDS's own making, while it prepares
def test_a_prepared_data_set(tfds, tmp_path):
    pytest.importorskip("array_record")
    prepare(tfds, tmp_path)
    source = data.open_source("tfds:tiny_pictures")
    assert source.num_classes == 4 and len(source.train) == 7
    assert "(validation)" in source.test.where(0)  # test has no labels
    seen = {source.train.read(i)[0].tobytes() for i in range(7)}
    assert seen == {noise(12, 12, 3, seed=i).tobytes() for i in range(7)}
    assert sorted(source.train.read(i)[1] for i in range(7)) == [0, 0, 1, 1, 2, 2, 3]

    part = data.open_source("tfds:tiny_pictures:1.0.0:train[:3],train[3:]")
    assert (len(part.train), len(part.test)) == (3, 4)
    with raises("no split 'extra'", "train"):
        data.open_source("tfds:tiny_pictures:train,extra")
    unlabelled = data.open_source("tfds:tiny_pictures:train,test").test
    with raises(r"item 0 of tfds:tiny_pictures \(test\) has no label"):
        next(data.batches(unlabelled, PLAIN, 2))


def frame(record):
    parts = struct.pack("<Q", len(record)), record
    return b"".join(part + struct.pack("<I", checksum(part)) for part in parts)


def as_tfrecord(tfds, root):
    """Writes the prepared data set again as TFRecord."""
    builder = tfds.builder("tiny_pictures", data_dir=root)
    raw = tfds.decode.DeserializeMethod.RAW_BYTES
    for part in builder.info.splits:
        records = builder.as_data_source(part, deserialize_method=raw)
        framed = [frame(r) for r in records]
        (file,) = builder.data_path.glob(f"*-{part}.array_record-*")
        name = file.name.replace("array_record", "tfrecord")
        (builder.data_path / name).write_bytes(b"".join(framed))
        file.unlink()
    about = builder.data_path / "dataset_info.json"
    about.write_text(about.read_text().replace("array_record", "tfrecord"))
    return builder.data_path


@pytest.mark.filterwarnings("default")
def test_a_data_set_prepared_as_tfrecord_reads_the_same(tfds, tmp_path):
    pytest.importorskip("array_record")
    prepare(tfds, tmp_path)
    spec = "tfds:tiny_pictures:train[2:]+validation[:2],train[:3]"
    before = data.open_source(spec)
    expected = [before.train.read(i) for i in range(7)]
    as_tfrecord(tfds, tmp_path)
    after = data.open_source(spec)
    assert (len(after.train), len(after.test)) == (7, 3)
    for i, (image, label) in enumerate(expected):
        np.testing.assert_array_equal(after.train.read(i)[0], image)
        assert after.train.read(i)[1] == label
    with raises("no split 'extra'"):
        data.open_source("tfds:tiny_pictures:train,extra")


@pytest.mark.filterwarnings("default")
def test_a_cut_tfrecord_file_is_named(tfds, tmp_path):
    pytest.importorskip("array_record")
    prepare(tfds, tmp_path)
    (file,) = as_tfrecord(tfds, tmp_path).glob("*-train.tfrecord-*")
    file.write_bytes(file.read_bytes()[:-9])
    source = data.open_source("tfds:tiny_pictures")
    with raises("item 0 of tfds:tiny_pictures", "6 whole records of 7", "again"):
        source.train.read(0)
