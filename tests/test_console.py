"""What a person sees of the commands: help that tells every default, and a terminal
that shows this project's words alone.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ispasp_jax import models
from ispasp_jax.cli import doubts, prune, train
from ispasp_jax.data import Preprocessing
from ispasp_jax.weights.folders import Model

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("command", [prune, train])
def test_help_tells_every_default_and_two_examples(command, capsys):
    with pytest.raises(SystemExit):
        command.main(["--help"])
    said = capsys.readouterr().out
    flags = re.split(r"\n  (?=-)", said.partition("\nexamples:")[0])[1:]
    assert len(flags) > 18
    for flag in flags:
        assert flag.startswith("-h") or "default:" in " ".join(flag.split()), flag
    examples = said.partition("\nexamples:\n")[2].splitlines()
    assert len(examples) == 2
    for example in examples:  # they parse
        words = example.split()
        command.parser().parse_args(words[2:])
    assert "%" not in said.replace("50%", "").replace("60%", "")


@pytest.mark.parametrize(
    ("called", "name", "example"),
    [
        ("/usr/bin/ispasp-prune", "ispasp-prune", "  ispasp-prune --model"),
        ("ispasp-prune.exe", "ispasp-prune", "  ispasp-prune --model"),
        ("prune.py", "prune.py", "  python prune.py --model"),
        ("pytest", "prune.py", "  python prune.py --model"),
    ],
)
def test_a_command_goes_by_the_name_it_was_called_by(
    called, name, example, monkeypatch, capsys
):
    monkeypatch.setattr(sys, "argv", [called])
    with pytest.raises(SystemExit):
        prune.main(["--help"])
    said = capsys.readouterr().out
    assert said.startswith(f"usage: {name} ") and example in said
    assert prune.main(["--seed=x"]) == 2
    assert f"(see {name} --help)" in capsys.readouterr().err


#: A model of the user's whose libraries are talkative.
TALKATIVE = """
import logging, sys, warnings
from absl import logging as absl_logging
from ispasp_jax import models

def make(num_classes):
    absl_logging.warning("Waiting for previous save to complete")
    logging.getLogger("orbax").warning("took 0.2 seconds")
    logging.getLogger("jax._src.xla_bridge").warning("a GPU may be present")
    warnings.warn("donated buffers were not usable")
    logging.getLogger("other").error("the disk is on fire")
    return models.create("mlp", num_classes, hidden=(32,))
"""

#: What a run says, line by line; whatever else is on the terminal is not ours.
OURS = [
    r"(ERROR:other:)?the disk is on fire",  # an error stays
    r"no --weights: training \S+ on digits first",
    r"training \S+: epoch \d+/\d+, loss [\d.]+",
    r"fine-tuning: epoch \d+/\d+, loss [\d.]+",
    r"  [\w\s:-]+: \d+/\d+, [\d.]+ s(, [\d.]+ s left)?",  # on a slow machine
    r"\S+ on digits: top-1 [\d.]+ % on the test split after .*",
    r"(dense|pruned|repaired|finetuned): top-1 [\d.]+ %",
    r"the pruned network is slower .*",
    r"fine-tuning lowered top-1 .*",
    r"saved in .*",
    r"\S+ on digits, ispasp, seed 0, .*",
    r"(group|hidden\.0|multiply-adds|parameters|ms for 32 images|stage) .*",
    r"(dense|pruned|repaired|finetuned) [\d. ]+",
    r" +dense +pruned +pruned/dense",
    r"residual as cut: .*",
    r"share of its norm, before any repair",
    r"(seconds|in dense passes, compilation apart): .*",
    r"-*",
]


def run(folder, *flags, environment=()):
    return subprocess.run(
        [sys.executable, ROOT / "prune.py", *flags],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{folder}", **dict(environment)},
        capture_output=True,
        text=True,
        timeout=240,
    )


def test_a_run_shows_our_words_alone(tmp_path):
    (tmp_path / "talkative.py").write_text(TALKATIVE)
    flags = ["--model=talkative:make", "--calibration-images=64"]
    ended = run(tmp_path, *flags, "--finetune-epochs=1", "--out=out")
    assert ended.returncode == 0, ended.stderr
    said = [*ended.stdout.splitlines(), *ended.stderr.splitlines()]
    strange = [s for s in said if not any(re.fullmatch(own, s) for own in OURS)]
    assert not strange
    assert "the disk is on fire" in ended.stderr and len(said) > 30


def test_a_quiet_run_prints_its_result_alone(tmp_path):
    flags = ["--model=mlp", "--calibration-images=64", "--finetune-epochs=0"]
    ended = run(tmp_path, *flags, "--out=out", "--quiet")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.startswith("mlp on digits, ispasp, seed 0")


def test_warnings_are_there_for_who_asks(tmp_path):
    (tmp_path / "talkative.py").write_text(TALKATIVE)
    flags = ["--model=talkative:make", "--dry-run"]
    told = run(tmp_path, *flags, environment={"PYTHONWARNINGS": "default"}.items())
    for words in ("donated buffers", "Waiting for previous save", "may be present"):
        assert words in told.stderr


def for_images(size, channels, resize=None):
    return Preprocessing(size, resize, (0.5,) * channels, (0.5,) * channels)


@pytest.mark.parametrize(
    ("own", "wanted", "words"),
    [
        ((28, 1), (28, 1), None),
        ((224, 3, 256), (28, 1), None),  # each has a size of its own
        (
            (32, 3),
            (28, 1),
            "are 32 × 32 × 3 and the weights are for 28 × 28 × 1: they ",
        ),
        ((32, 3), (28, 1), "they are cropped at the centre and made grey"),
        ((8, 1), (28, 1), "they are enlarged"),
        ((28, 1), (28, 3), "they are made three equal channels"),
        ((32, 3), (224, 3, 256), "they are resized to 256 and cropped to 224"),
    ],
)
def test_images_that_the_weights_are_not_for_are_said(own, wanted, words):
    said = doubts.of_images(for_images(*own), for_images(*wanted))
    assert said is None if words is None else words in said


def test_a_grey_perceptron_takes_colour_with_a_word(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rng, y = np.random.default_rng(0), np.arange(80) % 10
    for name, shape in (("grey", (80, 6, 6)), ("colour", (80, 8, 8, 3))):
        x = rng.integers(0, 256, shape, dtype=np.uint8)
        np.savez(f"{name}.npz", x_train=x, y_train=y, x_test=x[:20], y_test=y[:20])
    run = ["--model=mlp", "--batch-size=40"]
    assert train.main([*run, "--data=npz:grey.npz", "--epochs=1", "--out=m"]) == 0
    assert "the weights are for" not in capsys.readouterr().err
    run += ["--weights=m", "--data=npz:colour.npz"]
    word = "the images are 8 × 8 × 3 and the weights are for 6 × 6 × 1"
    assert prune.main([*run, "--repair=none", "--method=l1", "--out=p"]) == 0
    assert word in capsys.readouterr().err
    assert any(
        word in note for note in json.loads(Path("p/report.json").read_text())["notes"]
    )


@pytest.mark.parametrize(
    ("images", "limit", "said"),
    [(1000, None, True), (1000, 2**31, True), (1000, 2**20, False), (8, None, False)],
)
def test_memory_is_said_where_it_is_much(images, limit, said):
    network = models.create("mobilenetv2", 10)
    prep = Preprocessing(224, 256, (0.5,) * 3, (0.5,) * 3)
    variables = models.shapes(network, prep.shape)
    model = Model("mobilenetv2", network, variables, prep, {})
    sentence = doubts.of_memory(model, images, limit, half=False, least_squares=False)
    assert bool(sentence) == said
    if said:
        (gigabytes,) = re.findall(r"about ([\d.]+) GiB", sentence)
        assert 1 < float(gigabytes) <= (limit or 2**36) / 2**30
