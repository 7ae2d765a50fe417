"""The judge of benchmarks/fidelity.py: agreement, divergence and paired differences
against plain arithmetic, and its results against themselves.
"""

import io

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from benchmarks.benchmark import RESULTS, read
from benchmarks.networks import fidelity, judge
from benchmarks.networks.judge import Mean, Outcome


def test_agreement_and_divergence_are_the_textbooks():
    rng = np.random.default_rng(0)
    dense, own = 3 * rng.normal(size=(2, 50, 4))
    labels = rng.integers(4, size=50)
    found = judge.outcome(own.astype(np.float32), dense.astype(np.float32), labels)
    for i in range(50):
        p, q = (np.exp(z[i]) / np.exp(z[i]).sum() for z in (dense, own))
        assert found.divergence[i] == pytest.approx(stats.entropy(p, q), rel=1e-4)
        assert found.agrees[i] == (p.argmax() == q.argmax())
        assert found.right[i] == (q.argmax() == labels[i])


def test_a_network_is_like_itself():
    logits = 500 * np.random.default_rng(1).normal(size=(20, 3)).astype(np.float32)
    found = judge.outcome(logits, logits + 7, np.zeros(20, int))
    np.testing.assert_allclose(found.divergence, 0, atol=1e-6)
    assert found.agrees.all()
    alone = judge.differences(found, found)
    assert all(one == (0, 0) for one in alone.values())


def test_means_have_the_standard_errors_of_a_proportion_and_of_a_paired_test():
    rng = np.random.default_rng(2)
    n, hard = 4000, rng.uniform(size=4000)
    first, second = (
        Outcome(hard < share, hard < share, rng.normal(hard, 0.1))
        for share in (0.9, 0.88)
    )
    p = first.agrees.mean()
    one = judge.means(first)["agrees"]
    assert one.mean == p
    assert one.error == pytest.approx(np.sqrt(p * (1 - p) / n), rel=1e-3)
    found = judge.differences(first, second)
    t = stats.ttest_rel(first.divergence, second.divergence)
    by_hand = found["divergence"].mean / found["divergence"].error
    assert by_hand == pytest.approx(t.statistic)
    # The same images: far less than the two errors together.
    assert found["agrees"].error < one.error
    assert judge.verdict(found["agrees"], larger_is_better=True) == "better"


@pytest.mark.parametrize(
    ("difference", "larger", "said"),
    [
        ((0.5, 0.3), True, "open"),
        ((0.7, 0.3), True, "better"),
        ((0.7, 0.3), False, "worse"),
        ((-0.7, 0.3), False, "better"),
        ((0.0, 0.0), True, "open"),
    ],
)
def test_verdicts(difference, larger, said):
    assert judge.verdict(Mean(*difference), larger) == said


def test_cifars_images_are_the_files_in_their_order(tmp_path, monkeypatch):
    files, colours = [], [(250, 3, 3), (3, 250, 3), (3, 3, 250)]
    for colour in colours:
        Image.new("RGB", (32, 32), colour).save(file := io.BytesIO(), "JPEG")
        files.append(file.getvalue())
    (tmp_path / "cifar10").mkdir()
    np.savez(
        tmp_path / "cifar10" / "cifar10_jpeg75.npz",
        test_jpeg=np.frombuffer(b"".join(files), np.uint8),
        test_offsets=np.cumsum([0, *map(len, files)]),
        y_test=np.array([4, 9, 1]),
    )
    monkeypatch.setenv("ISPASP_DATA", str(tmp_path))
    split = judge.cifar.__wrapped__()
    for i, (colour, label) in enumerate(zip(colours, (4, 9, 1), strict=True)):
        image, its = split.read(i)
        assert its == label and np.abs(image - np.array(colour)).max() < 10


def test_the_results_differences_are_those_of_their_means():
    rows = {row["row"]: row for row in read(RESULTS / "fidelity.jsonl")}
    for name, row in rows.items():
        assert row["against"] == fidelity.ROWS[name].against
        if row["against"] is None:
            continue
        base = rows[row["against"]]
        for what, found in row["difference"].items():
            apart = row[what]["mean"] - base[what]["mean"]
            assert found["mean"] == pytest.approx(apart, abs=1e-12)
            assert found["error"] <= row[what]["error"] + base[what]["error"]
    assert len(fidelity.columns([*rows.values()])) == 1 + len(rows)
