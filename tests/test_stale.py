"""Identity is what the bytes say: nothing is answered from the results of other weights
or images under the same path, and no file that was damaged gives another result.
"""

import json
import os
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import NETWORKS, images_of, variables_of
from PIL import Image

import ispasp_jax
from ispasp_jax import budget, data, json_text
from ispasp_jax.cli import (
    budgets,
    content,
    curve_files,
    prune,
    sizes,
    train,
    walk_store,
    widths,
    workspace,
)
from ispasp_jax.cli.prune_config import configuration
from ispasp_jax.errors import InputError
from ispasp_jax.graph import plans
from ispasp_jax.graph.by_hand import leaves
from ispasp_jax.selection import criteria
from ispasp_jax.training import States
from ispasp_jax.walk import Options, curves, walk
from ispasp_jax.weights import folders


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty present folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def npz(path, seed=0, shuffled=False):
    """Images whose classes are easy to learn."""
    rng = np.random.default_rng(seed)
    labels = np.arange(128) % 4
    images = rng.integers(0, 60, (128, 8, 8, 1), np.uint8)
    images[np.arange(128), labels * 2] += 180
    labels = (labels + 1) % 4 if shuffled else labels
    np.savez(path, x_train=images, y_train=labels, x_test=images, y_test=labels)


def stop(*_, **__):
    raise KeyboardInterrupt


def shake(folder):
    """Other weights under the same path."""
    model = folders.load(folder)
    changed = jax.tree.map(lambda a: a * 1.1 + 0.01, model.variables)
    folders.write(folder, model.replace(model.network, changed))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with images, and a network trained on them."""
    folder = tmp_path_factory.mktemp("made")
    npz(folder / "d.npz")
    source = f"--data=npz:{folder / 'd.npz'}"
    flags = ["--model=mlp", source, "--batch-size=64", "--epochs=3"]
    assert train.main([*flags, f"--out={folder / 'w'}"]) == 0
    return folder


@pytest.fixture
def flags(made, here, monkeypatch):
    """How to prune what was made, in the present folder, to a budget."""
    shutil.copytree(made, here, dirs_exist_ok=True)
    monkeypatch.setattr(budgets, "draw", lambda *_: True)
    more = ["--batch-size=64", "--calibration-images=100", "--latency-batch-size=1"]
    what = ["--model=mlp", "--data=npz:d.npz", "--weights=w", "--target=macs=50%"]
    return [*what, "--repair=none", *more]


#: What is changed under the same path, and whether it matters to curves and to a walk.
CHANGES = {
    "time alone": (lambda: os.utime("d.npz"), True, True),
    "weights": (lambda: shake(Path("w")), False, False),
    "images": (lambda: npz("d.npz", seed=1), False, False),
    "labels": (lambda: npz("d.npz", shuffled=True), True, False),
}


@pytest.mark.parametrize(
    "change, curves_stay, walk_stays",
    [
        pytest.param(*change, id=name, marks=[pytest.mark.slow] * (name == "images"))
        for name, change in CHANGES.items()
    ],
)
def test_curves_and_walks_are_of_these_weights_and_images(
    change, curves_stay, walk_stays, flags, monkeypatch, capsys
):
    flags = [*flags, "--out=out"]
    assert prune.main(flags) == 0
    with monkeypatch.context() as patch:
        patch.setattr(plans, "verify", stop)
        assert prune.main([*flags[:-1], "--out=stopped"]) == 130
    change()
    capsys.readouterr()
    assert prune.main(flags) == 0
    report = json.loads(Path("out/report.json").read_text())
    found = "kept from an earlier run" if curves_stay else "measured"
    assert report["budget"]["curves"] == found
    assert prune.main([*flags[:-1], "--out=stopped", "--resume"]) == 0
    text = capsys.readouterr().err
    assert ("are not the stopped run's, starting anew" in text) is not walk_stays
    same = ("plan.json", "model/model.safetensors", "curves.json")
    for name in same:
        assert Path("out", name).read_bytes() == Path("stopped", name).read_bytes()


def test_given_curves_of_other_weights_are_named(flags, capsys):
    assert prune.main([*flags, "--out=out"]) == 0
    given = [*flags, "--curves=out/curves.json", "--out=b"]
    assert prune.main(given) == 0
    assert "measured on these weights" not in capsys.readouterr().out
    shake(Path("w"))
    assert prune.main(given) == 0
    assert "does not say that it was measured on these weights" in (
        capsys.readouterr().out
    )


KEPT = {
    "nothing": (lambda folder: None, 0),
    "data": (lambda folder: npz("d.npz", seed=1), 2),
    "labels": (lambda folder: npz("d.npz", shuffled=True), 2),
    "weights": (shake, 2),
    "record": (lambda folder: (folder / "training.json").write_text("{"), 2),
    "list": (lambda folder: (folder / "training.json").write_text("[]"), 2),
    "deep": (lambda folder: (folder / "training.json").write_text("[" * 10**5), 2),
}


def test_the_dense_network_is_kept_for_these_images_and_settings(here, capsys):
    npz("d.npz")
    flags = ["--model=mlp", "--data=npz:d.npz", "--batch-size=64", "--out=out"]
    flags += ["--finetune-epochs=0", "--latency-batch-size=1"]
    assert prune.main(flags) == 0
    (folder,) = Path("runs").iterdir()
    shutil.copytree("runs", "good")
    for name, (change, code) in KEPT.items():
        npz("d.npz")
        shutil.rmtree("runs")
        shutil.copytree("good", "runs")
        change(folder)
        before = {p: p.read_bytes() for p in folder.iterdir()}
        capsys.readouterr()
        assert prune.main(flags) == code, name
        text = capsys.readouterr().err.strip().splitlines()
        wanted = "kept from an earlier run" if code == 0 else "delete it, or name the"
        assert any(wanted in line for line in text), name
        assert code == 0 or len(text) == 1 or text[-1].startswith(str(folder)), name
        assert {p: p.read_bytes() for p in folder.iterdir()} == before, name


def test_training_goes_on_with_the_same_images_alone(here, monkeypatch, capsys):
    monkeypatch.setattr("ispasp_jax.cli.learning.SECONDS_BETWEEN_STATES", 0)
    npz("d.npz")
    flags = ["--model=mlp", "--data=npz:d.npz", "--batch-size=64", "--epochs=2"]
    with monkeypatch.context() as patch:
        patch.setattr(workspace, "written", stop)
        assert train.main([*flags, "--out=out"]) == 130
    npz("d.npz", seed=1)
    assert train.main([*flags, "--out=out", "--resume"]) == 0
    assert "the training images are not the stopped run's" in capsys.readouterr().err
    assert train.main([*flags, "--out=b"]) == 0
    ours, whole = (Path(f, "model.safetensors").read_bytes() for f in ("out", "b"))
    assert ours == whole


def folder_of_images(root, seed=0):
    rng = np.random.default_rng(seed)
    for split in ("train", "val"):
        for kind in "ab":
            (root / split / kind).mkdir(parents=True)
            for i in range(3):
                pixels = rng.integers(0, 256, (8, 8, 3), np.uint8)
                Image.fromarray(pixels).save(root / split / kind / f"{i}.png")


def test_a_folder_is_known_by_its_files(tmp_path):
    folder_of_images(tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "two")  # and the files' times

    def identity(name):
        content.of_split.cache_clear()
        return content.of_training(data.open_source(f"folder:{tmp_path / name}"))

    same = identity("one")
    assert identity("two") == same
    pixels = np.zeros((8, 8, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "two/train/a/1.png")
    assert identity("two") != same
    used = np.array([0, 2])  # not the one that was changed
    one, two = (data.open_source(f"folder:{tmp_path / n}") for n in ("one", "two"))
    assert content.of_training(one, used) == content.of_training(two, used)


def test_fingerprints_tell_apart_what_differs():
    a = np.arange(6, dtype=np.float32)
    found = [
        content.of_arrays(arrays)
        for arrays in (
            *([a], [a.reshape(2, 3)], [a.astype(np.float64)], [a[::-1]], [a, a]),
            *([a + 0.0], [-a], [a[:5]], [np.float32(1)], [np.zeros(0)]),
        )
    ]
    assert len(set(found)) == len(found) - 1 and found[0] == found[5]
    images = np.arange(24.0).reshape(6, 2, 2)
    cut = content.of_batches([images[:4], images[4:]])
    assert cut == content.of_batches([images]) != content.of_batches([images[::-1]])


# Files that were damaged.


def damaged(text):
    """The text with bytes flipped, cut off, doubled, or numbers and words replaced."""
    words = ("NaN", "-1", "1e999", '"x"', "null", "[]", "{}", "true", "9" * 30, "0.5")
    place = st.integers(0, max(len(text) - 1, 0))
    cut = place.map(lambda i: text[:i])
    doubled = place.map(lambda i: text[:i] + text[i // 2 :])
    byte = st.tuples(place, st.characters(max_codepoint=255)).map(
        lambda pair: text[: pair[0]] + pair[1] + text[pair[0] + 1 :]
    )
    tokens = [t for t in text.replace(",", " , ").split(" ") if t.strip(" ,\n[]{}:")]
    replaced = st.tuples(st.sampled_from(sorted(set(tokens))), st.sampled_from(words))
    return st.one_of(
        cut, doubled, byte, replaced.map(lambda pair: text.replace(*pair, 1))
    )


def good_curves():
    found = {
        name: curves.Curve(
            np.linspace(1, 0, d + 1),
            np.linspace(0.3, 0, d + 1) ** 2,
            np.arange(d)[::-1],
        )
        for name, d in (("a", 3), ("b", 2))
    }
    return curve_files.CurveFile({"model": "mlp"}, found)


CURVES = json.dumps(curve_files.to_json(good_curves()))
WITHOUT_SUM = json.dumps(
    {k: v for k, v in json.loads(CURVES).items() if k != "sum"}, indent=1
)


@settings(max_examples=150)
@given(damaged(CURVES))
def test_damaged_curves_are_the_same_or_an_error(text):
    try:
        held = curve_files.from_json(json_text.parse(text))
    except InputError:
        return
    assert curve_files.to_json(held)["groups"] == json.loads(CURVES)["groups"]


@settings(max_examples=150)
@given(damaged(WITHOUT_SUM))
def test_curves_that_are_read_can_be_used(text):
    """Of a file that does not name its sum: any budget can be solved from it."""
    try:
        found = curve_files.from_json(json_text.parse(text)).curves
    except InputError:
        return
    widths = {name: len(curve.order) for name, curve in found.items()}
    asked = budget.Asked(tolerance=0.6)
    chosen = budget.solve(found, {}, widths, asked)
    assert all(
        found[name].relative[s] <= 0.6 or s == widths[name]
        for name, s in chosen.items()
    )


BAD_CURVES = {
    "no dict": ([], "not curves of format 1"),
    "format": ({"format": 2}, "not curves of format 1"),
    "no identity": ({"identity": 3}, "what they were measured on"),
    "no groups": ({"groups": 3}, "not curves"),
    "text": ({"groups": "abc"}, "not curves"),
    "name": ({"groups": [{"name": 3}]}, "not curves"),
    "twice": ({"groups": json.loads(CURVES)["groups"][:1] * 2}, "named twice"),
    "latency": ({"latency": {"widths": {}, "full": "x"}}, "latencies are damaged"),
}
BAD_GROUP = {
    "nan": ("relative", [float("nan"), 0, 0, 0], "not finite"),
    "infinite": ("damage", [float("inf"), 0, 0, 0], "not finite"),
    "negative": ("damage", [1, 1, 1, -1e-9], "negative"),
    "short": ("relative", [1, 0], "expected 4 numbers"),
    "strings": ("relative", ["1", "0", "0", "0"], "expected 4 numbers"),
    "flags": ("relative", [True, False, False, False], "expected 4 numbers"),
    "nested": ("damage", [[1], [1], [1], [1]], "expected 4 numbers"),
    "huge": ("damage", [10**400, 0, 0, 0], "too large"),
    "twice": ("order", [0, 0, 1], "no permutation"),
    "outside": ("order", [0, 1, 3], "no permutation"),
    "below": ("order", [-1, 0, 1], "no permutation"),
    "fractions": ("order", [0.0, 1.0, 2.0], "the order of group 'a'"),
    "empty": ("order", [], "the order of group 'a'"),
    "number": ("order", 3, "not curves"),
}


@pytest.mark.parametrize("change, words", BAD_CURVES.values(), ids=BAD_CURVES)
def test_what_is_no_curves_file_is_one_sentence(change, words):
    good = json.loads(WITHOUT_SUM)
    with pytest.raises(InputError, match=words):
        curve_files.from_json({**good, **change} if change else change)


@pytest.mark.parametrize("key, value, words", BAD_GROUP.values(), ids=BAD_GROUP)
def test_what_is_no_curve_is_one_sentence(key, value, words):
    groups = json.loads(CURVES)["groups"]
    groups[0][key] = value
    with pytest.raises(InputError, match=words):
        curves.from_json(groups)


PLAN = {"a": plans.Cut(5, np.array([0, 2, 3])), "b": plans.Cut(4, np.array([1]))}


@settings(max_examples=150)
@given(damaged(json.dumps(plans.to_json(PLAN, "mlp"))))
def test_a_damaged_plan_is_a_plan_or_an_error(text):
    try:
        model, found = plans.from_json(json_text.parse(text))
    except InputError:
        return
    assert plans.from_json(plans.to_json(found, model))[0] == model
    for cut in found.values():
        assert cut.kept.dtype == np.int64 and type(cut.width) is int


@pytest.mark.parametrize(
    "text, words",
    {
        "": "is not JSON",
        "{": "is not JSON",
        "\xff": "is not JSON",
        "[" * 10**5: "nested too deep",
        '{"format": NaN}': "NaN is no number",
        "[]": "is not a plan of format 1",
    }.items(),
    ids=range(6),
)
@pytest.mark.parametrize("flag", ["--plan", "--curves"])
def test_files_that_are_given_are_read_or_refused(flag, text, words, here, capsys):
    Path("f.json").write_bytes(text.encode("latin1"))
    more = ["--target=macs=50%", "--dry-run"] if flag == "--curves" else []
    assert prune.main(["--model=mlp", f"{flag}=f.json", *more]) == 2
    said = capsys.readouterr().err
    words = "not curves of format 1" if text == "[]" and more else words
    assert words in said and len(said.strip().splitlines()) == 1
    assert {p.name for p in here.iterdir()} == {"f.json"}


SETTINGS, GIVEN = {"keep": [["0.4"]], "seed": 0}, {"weights": "ab"}


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A stopped run's folder, and its files."""
    out = tmp_path_factory.mktemp("begun") / "out"
    work = workspace.Workspace(out, SETTINGS, False)
    work.begin(GIVEN)
    work.write("sizes.json", {"sizes": {"a": 3}, "budget": {"reached": 0.25}})
    return out, {p: p.read_text() for p in work.folder.iterdir()}


@settings(max_examples=150)
@given(st.data())
def test_a_damaged_run_goes_on_the_same_or_is_an_error(begun, chosen):
    out, files = begun
    for path, text in files.items():
        path.write_bytes(text.encode())
    path = chosen.draw(st.sampled_from(sorted(files)))
    text = chosen.draw(damaged(files[path]))
    path.write_bytes(text.encode("latin1"))
    try:
        work = workspace.Workspace(out, SETTINGS, True)
        work.begin(GIVEN)
        found = work.read("sizes.json")
    except InputError as error:
        assert "delete" in str(error)
        return
    assert work.resumed and found["sizes"] == {"a": 3}


@pytest.fixture(scope="module")
def walked(tmp_path_factory):
    """A network, what the walk makes of it, and the folder that the walk has left."""
    network, variables = NETWORKS["mlp"], variables_of(NETWORKS["mlp"])
    folder = tmp_path_factory.mktemp("walked") / "walk"
    store, _ = walk_store.open_store(folder, resumed=False)
    criterion, images = criteria.create("l1"), [images_of(8)]
    traced = ispasp_jax.trace(network, variables, images[0])

    def again(store):
        wanted = budget.sizes(traced.groups, 0.5)
        return walk(
            traced, variables, images, wanted, criterion, options=Options(store=store)
        )

    whole = again(store)
    return again, whole, folder, {p: p.read_bytes() for p in folder.iterdir()}


@settings(max_examples=25)
@given(st.data())
def test_a_damaged_walk_is_walked_again(walked, chosen):
    again, whole, folder, files = walked
    for path, good in files.items():
        path.write_bytes(good)
    path = chosen.draw(st.sampled_from(sorted(files)))
    length = len(files[path])
    place = chosen.draw(
        st.integers(0, length - 1) | st.integers(0, min(length, 900) - 1)
    )
    change = chosen.draw(st.sampled_from(["flip", "cut", "insert"]))
    data = bytearray(files[path])
    if change == "flip":
        data[place] ^= 1 << chosen.draw(st.integers(0, 7))
    elif change == "cut":
        del data[place:]
    else:
        data[place:place] = b"7"
    path.write_bytes(bytes(data))
    store, count = walk_store.open_store(folder, resumed=True)
    assert count <= len(files)
    found = again(store)
    for (name, a), (_, b) in zip(
        leaves(found.variables), leaves(whole.variables), strict=True
    ):
        np.testing.assert_array_equal(a, b, err_msg=name)


@pytest.fixture(scope="module")
def state(tmp_path_factory):
    """A training's state, and the file that it is kept in."""
    found = {"step": np.int32(7), "w": np.arange(12.0, dtype=np.float32).reshape(3, 4)}
    folder = tmp_path_factory.mktemp("states")
    States(folder).save(3, found)
    return found, folder, (folder / "3").read_bytes()


@settings(max_examples=150)
@given(st.data())
def test_a_damaged_state_is_the_same_or_an_error(state, chosen):
    expected, folder, good = state
    data, place = bytearray(good), chosen.draw(st.integers(0, len(good) - 1))
    if chosen.draw(st.booleans()):
        data[place] ^= 1 << chosen.draw(st.integers(0, 7))
    else:
        del data[place : place + chosen.draw(st.integers(0, 50))]
    (folder / "3").write_bytes(bytes(data))
    try:
        found = States(folder).latest(expected)
    except InputError:
        return
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_a_state_of_another_training_is_not_taken(state):
    expected, folder, good = state
    (folder / "3").write_bytes(good)
    for change in ({"w": np.zeros((4, 4), np.float32)}, {"step": np.float32(0)}):
        with pytest.raises(InputError, match="of another training"):
            States(folder).latest({**expected, **change})
    with pytest.raises(InputError, match="of another training"):
        States(folder).latest({"step": expected["step"]})


def test_no_curves_of_other_widths_are_read(tmp_path):
    """Of a group that the network does not have, or has with other channels."""
    network = NETWORKS["mlp"]
    prep = data.Preprocessing(8, None, (0.5,), (0.5,))
    variables = variables_of(network, prep.shape)
    model = folders.Model("mlp", network, variables, prep)
    config = configuration(["--model=mlp", "--target=macs=50%"])
    held = good_curves()
    held.identity["widths"] = widths.scope(config.pruning, model)
    path = tmp_path / curve_files.CURVES
    path.write_text(json.dumps(curve_files.to_json(held)))
    with pytest.raises(InputError, match="a curve of group 'a' with 3 channels"):
        curve_files.beside(tmp_path, config.pruning, model)
    assert sizes._kept(tmp_path, config, model, held.identity) is None
