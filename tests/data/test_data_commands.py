"""What the commands make of data that does not quite fit."""

import numpy as np
import pytest
from pictures import noise

from ispasp_jax.cli import prune, train


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def npz(name, count, classes, shape=(8, 8)):
    images, labels = noise(count, *shape), np.arange(count) % classes
    np.savez(name, x_train=images, y_train=labels, x_test=images, y_test=labels)
    return f"--data=npz:{name}"


def test_data_without_the_last_class_and_with_less_than_a_batch(here, capsys):
    ten, nine, eleven = (npz(f"{n}.npz", count, n) for n, count in SIZES.items())
    assert train.main(["--model=mlp", ten, "--epochs=1", "--out=dense"]) == 0
    flags = ["--model=mlp", "--weights=dense"]
    assert prune.main([*flags, nine, "--out=out"]) == 0
    assert (
        "dense knows 10 classes, and npz:9.npz the first 9" in capsys.readouterr().err
    )
    assert (
        train.main([*flags, nine, "--num-classes=10", "--batch-size=8", "--epochs=1"])
        == 0
    )
    assert "knows" not in capsys.readouterr().err
    for bad, words in (
        ([nine, "--finetune-epochs=1"], "20 training images, fewer than a batch of 64"),
        ([eleven], "dense knows 10 classes, npz:11.npz has 11"),
        ([nine, "--num-classes=11"], "knows 10 classes, --num-classes asks for 11"),
        ([eleven, "--num-classes=10"], "--num-classes 10 is less than npz:11.npz has"),
    ):
        assert prune.main([*flags, *bad]) == 2
        assert words in capsys.readouterr().err


#: Images of data by its number of classes.
SIZES = {10: 80, 9: 20, 11: 80}


def test_what_the_data_has_to_say_is_said(here, capsys):
    wide = npz("wide.npz", 64, 3, (8, 12))
    assert train.main(["--model=mlp", wide, "--epochs=1", "--out=dense"]) == 0
    assert "npz:wide.npz: the images are 8 pixels high" in capsys.readouterr().err


def test_mean_and_std_in_0_to_255(here, capsys):
    assert prune.main(["--model=mlp", "--mean=123.7", "--std=58.4"]) == 2
    assert "divide those for 0..255 by 255" in capsys.readouterr().err
