"""Texts: a file of lines, their tokens, and both commands on them."""

import json

import numpy as np
import pytest

import ispasp_jax
from ispasp_jax import data
from ispasp_jax.cli import prune, train
from ispasp_jax.data import Text, tokens
from ispasp_jax.errors import InputError

pytest.importorskip("tokenizers")

#: Words of two kinds of texts.
KINDS = {"animals": ["dog", "cat", "cow", "hen"], "plants": ["oak", "fern", "rose"]}


def lines(count: int = 240, seed: int = 0):
    draw = np.random.default_rng(seed)
    for _ in range(count):
        label = str(draw.choice([*KINDS]))
        length = draw.integers(1, 9)
        yield {"text": " ".join(draw.choice(KINDS[label], length)), "label": label}


def write(path, rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"jsonl:{path}"


def test_a_file_is_two_splits_of_texts(tmp_path):
    spec = write(tmp_path / "a.jsonl", lines())
    source, again = data.open_source(spec), data.open_source(spec)
    assert len(source.train) + len(source.test) == 240 and len(source.test) == 48
    assert source.num_classes == 2 and "animals, plants" in source.notes[0]
    for i in range(48):
        assert source.test.read(i) == again.test.read(i)
    rows = [{"text": "a b", "second": "c", "label": 1, "split": "test"}]
    rows += [{"text": "d", "second": "e", "label": 0, "split": "train"}] * 3
    source = data.open_source(write(tmp_path / "b.jsonl", rows))
    assert source.test.read(0) == (("a b", "c"), 1) and len(source.train) == 3


def test_tokens_are_berts():
    prep = Text(12, tokens.learned([("red hat", "blue hat"), ("hat red", "a blue")]))
    known = tokens.special(prep)
    assert known["padding"] == 0
    cls, sep = (tokens.SPECIAL.index(name) for name in ("[CLS]", "[SEP]"))
    assert known["separator"] == sep
    first, second = tokens.tokens(prep, [("red",), ("red", "blue")])
    assert first[0] == cls and first[2] == sep and not first[3:].any()
    assert [*second].count(sep) == 2
    real = tokens.real(prep, np.stack([first, second]))
    assert real.sum(1).tolist() == [3, 5]
    short = tokens.tokens(prep._replace(length=4), [("red hat", "blue hat red")])
    assert short.shape == (1, 4) and short[0, 0] == cls and short[0, -1] == sep
    assert tokens.fitting(prep.tokenizer, [("red",)]) == 8


@pytest.mark.parametrize(
    "line, said",
    [
        ("[1]", "it is no object"),
        ('{"text": "a"}', "'label' is missing"),
        ('{"text": 1, "label": 0}', "a text is no string"),
        ('{"text": "a", "label": 0.5}', "no whole number or name"),
        ('{"text": "a", "label": 0, "split": "dev"}', "neither train nor test"),
        ("{", "line 1"),
        ('{"text": "a", "label": -1}', "labels from -1"),
        ('{"text": "a", "label": 0}\n{"text": "a", "label": "b"}', "one kind"),
        ('{"text": "a", "label": 0}\n{"text": "a", "second": "", "label": 0}', "some"),
    ],
)
def test_a_line_that_is_none_is_refused(line, said, tmp_path):
    (tmp_path / "a.jsonl").write_text(line)
    with pytest.raises(InputError, match=said):
        data.open_source(f"jsonl:{tmp_path}/a.jsonl")


def test_models_are_for_texts_or_for_images(tmp_path, capsys):
    texts = write(tmp_path / "a.jsonl", lines())
    out = f"--out={tmp_path}/out"
    assert train.main(["--model=resnet20", f"--data={texts}", out]) == 2
    assert "is for images, and the data are texts" in capsys.readouterr().err
    assert train.main(["--model=bert_tiny", out]) == 2
    assert "is for texts, and the data are images" in capsys.readouterr().err
    flags = ["--model=bert_tiny", f"--data={texts}", "--image-size=8", out]
    assert train.main(flags) == 2
    assert "are for images" in capsys.readouterr().err


def test_bert_is_trained_pruned_and_loaded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shared = ["--model=bert_tiny", f"--data={write(tmp_path / 'a.jsonl', lines())}"]
    dense, small = tmp_path / "dense", tmp_path / "small"
    learned = ["--epochs=3", "--learning-rate=1e-3", f"--out={dense}"]
    assert not train.main([*shared, *learned])
    asked = ["--keep=0.5", "--scope=all", f"--weights={dense}", f"--out={small}"]
    less = ["--finetune-epochs=0", "--calibration-images=96", "--torch"]
    assert not prune.main([*shared, *asked, *less])
    report = json.loads((small / "report.json").read_text())
    stages = {stage["stage"]: stage["top1"] for stage in report["stages"]}
    assert stages["dense"] > 0.9 and stages["repaired"] > 0.8
    assert report["pruned"]["macs"] < 0.7 * report["dense"]["macs"]
    model = ispasp_jax.load(small / "model")
    assert isinstance(model.images, Text)
    logits = model(tokens.tokens(model.images, [("dog cat",), ("rose oak fern",)]))
    assert np.argmax(logits, -1).tolist() == [0, 1]
    (small / "model" / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match="tokenizer.json is not as it was written"):
        ispasp_jax.load(small / "model")
