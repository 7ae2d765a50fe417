"""Plans as things of their own: composed, applied to other weights, refused."""

import json
from pathlib import Path

import graph_models as models
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

import ispasp_jax
from ispasp_jax import graph
from ispasp_jax.cli import prune, train
from ispasp_jax.errors import InputError
from ispasp_jax.graph import plans
from ispasp_jax.graph.check import random_plan

#: Ordinary groups, concatenated ones, and layers of a scan, each with its own.
MODELS = {m.__name__: m for m in (models.Flatten, models.UNet, models.Scanned)}


def a_model(name):
    model, x, rng = MODELS[name](), models.images(), np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, jax.random.key(0), x)
    variables = jax.tree.map(lambda a: rng.normal(size=a.shape), shapes)
    return graph.trace(model, shapes, x), variables, x


def a_plan(traced, seed, share=0.7, leave_out=None):
    """Random channels of every group but one."""
    drawn = random_plan(traced, share, seed)
    return {name: cut for name, cut in drawn.items() if name != leave_out}


def assert_same_plan(one, two):
    assert one.keys() == two.keys()
    for name, cut in one.items():
        assert cut.width == two[name].width
        np.testing.assert_array_equal(cut.kept, two[name].kept)


@pytest.mark.parametrize("name", MODELS)
def test_plans_compose(name):
    """Cutting twice is cutting once by the composed plan; three compose either way."""
    traced, variables, x = a_model(name)
    one = a_plan(traced, 1, leave_out=[*traced][0])
    variables_1 = plans.apply(one, traced, variables)
    traced_1 = graph.trace(graph.narrow(traced.function, traced, one), variables_1, x)
    two = a_plan(traced_1, 2, leave_out=[*traced][-1])
    variables_2 = plans.apply(two, traced_1, variables_1)
    composed = plans.compose(one, two)
    plans.check(composed, traced)
    jax.tree.map(
        np.testing.assert_array_equal,
        plans.apply(composed, traced, variables),
        variables_2,
    )
    left = graph.narrow(traced.function, traced, composed)
    three = a_plan(graph.trace(left, variables_2, x), 3)
    assert_same_plan(
        plans.compose(plans.compose(one, two), three),
        plans.compose(one, plans.compose(two, three)),
    )


@pytest.mark.parametrize("name", MODELS)
def test_plans_survive_json(name):
    traced, variables, _ = a_model(name)
    known = a_plan(traced, 3)
    text = json.dumps(plans.to_json(known, "a model"))
    model, again = plans.from_json(json.loads(text))
    assert model == "a model"
    assert_same_plan(again, known)
    jax.tree.map(
        np.testing.assert_array_equal,
        plans.mask(again, traced, variables),
        plans.mask(known, traced, variables),
    )


def test_plans_that_do_not_follow_each_other_are_refused():
    first = {"a": plans.Cut(6, np.array([0, 1, 5]))}
    second = {"a": plans.Cut(4, np.array([0]))}
    with pytest.raises(InputError, match="expects 4 channels in group 'a'.*leaves 3"):
        plans.compose(first, second)
    assert_same_plan(plans.compose(first, {}), first)
    assert_same_plan(plans.compose({}, second), second)


def test_plans_of_layers_and_of_none_do_not_follow_each_other():
    layers = {"a": plans.Cut(6, np.array([[0, 1, 5], [1, 2, 3]]))}
    one = {"a": plans.Cut(3, np.array([0, 2]))}
    with pytest.raises(InputError, match="of no layers in group 'a', .* of 2 layers"):
        plans.compose(layers, one)
    (cut,) = plans.compose(
        layers, {"a": plans.Cut(3, np.array([[0, 2], [0, 1]]))}
    ).values()
    np.testing.assert_array_equal(cut.kept, [[0, 5], [1, 2]])


@pytest.mark.parametrize(
    "groups",
    [
        [{"name": "a", "width": 4, "kept": [0, 1.5]}],
        [{"name": "a", "width": 4, "kept": [False, True]}],
        [{"name": "a", "width": 4.5, "kept": [0]}],
        [{"name": "a", "width": 4, "kept": [[0], [1, 2]]}],
        [{"name": "a", "width": 4, "kept": [[0], [4]]}],
        [{"name": "a", "width": 4, "kept": [[0], 1]}],
        [{"name": "a", "width": 4, "kept": [0, [1]]}],
        [{"name": "a", "width": 4, "kept": [[[0]]]}],
        [{"name": "a", "width": 4, "kept": [[], []]}],
        [{"name": "a", "width": 4, "kept": 3}],
        [{"name": "a", "width": 4, "kept": [10**30]}],
        [{"name": "a", "width": 4, "kept": [0]}] * 2,
        [{"name": ["a"], "width": 4, "kept": [0]}],
    ],
)
def test_a_plan_with_odd_numbers_is_refused(groups):
    with pytest.raises(InputError, match="not a plan of format 1"):
        plans.from_json({"format": 1, "model": "x", "groups": groups})


SOUND = {"format": 1, "model": "x", "groups": [{"name": "a", "width": 4, "kept": [0]}]}
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["format", "model", "groups", "name", "width", "kept"]),
            inner,
        )
    ),
    max_leaves=8,
)


@settings(max_examples=150)
@given(
    json_values,
    st.sampled_from([*SOUND, "name", "width", "kept", "none"]),
    st.booleans(),
)
def test_any_json_is_a_plan_or_refused(value, place, leave_out):
    data = json.loads(json.dumps(SOUND))
    holder = data if place in data else data["groups"][0]
    if leave_out:
        holder.pop(place, None)
    elif place != "none":
        holder[place] = value
    for anything in (data, value):
        try:
            _, read = plans.from_json(anything)
        except InputError as error:
            assert "not a plan of format 1" in str(error) and "\n" not in str(error)
            continue
        for name, cut in read.items():
            assert isinstance(name, str) and cut.kept.dtype == np.int64
            assert 0 <= cut.kept.min() and cut.kept.max() < cut.width
            assert (np.diff(cut.kept) > 0).all()


def two_layers():
    rng = np.random.default_rng(0)
    variables = {name: rng.normal(size=(24, 24)) for name in ("a", "b")}
    x = rng.normal(size=(4, 24)).astype(np.float32)
    traced = graph.trace(lambda v, x: jnp.tanh(x @ v["a"]) @ v["b"], variables, x)
    return traced, variables, x


def test_a_plan_is_verified_on_a_few_examples():
    traced, variables, x = two_layers()
    known = a_plan(traced, 0)
    assert plans.verify(known, traced, variables, x) < 1e-5
    with pytest.raises(AssertionError, match="cut and masked outputs differ by"):
        plans.verify(known, traced, variables, x, tolerance=-1.0)


@pytest.mark.parametrize(
    "cut, words",
    {
        "a list": ([0, 1], "must be a Cut"),
        "a mask": (plans.Cut(24, np.ones(24, bool)), "must be a Cut"),
        "none kept": (plans.Cut(24, np.array([], int)), "lies in no branch"),
        "descending": (plans.Cut(24, np.array([3, 1])), "must be ascending"),
        "twice": (plans.Cut(24, np.array([1, 1])), "must be ascending"),
        "negative": (plans.Cut(24, np.array([-1, 1])), "must be ascending"),
        "too many": (plans.Cut(24, np.array([0, 24])), r"in \[0, 24\)"),
        "rounded": (plans.Cut(24, np.array([0.0, 1.0])), "must be ascending"),
        "width": (plans.Cut(25, np.array([0])), "expects 25 channels"),
    }.values(),
)
def test_plans_made_by_hand_are_checked(cut, words, unchecked):
    traced, variables, _ = two_layers()
    for use in (plans.apply, plans.mask):
        with pytest.raises(InputError, match=words):
            use({"a": cut}, traced, variables)
    with pytest.raises(InputError, match=words):
        plans.check({"a": cut}, traced)


# The command.


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Two perceptrons trained on digits from different seeds."""
    folder = tmp_path_factory.mktemp("weights")
    for name, seed in (("a", 0), ("b", 1)):
        flags = ["--model=mlp", "--epochs=1", f"--seed={seed}"]
        assert train.main([*flags, f"--out={folder / name}"]) == 0
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty present folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*flags, out):
    return prune.main(["--model=mlp", *flags, f"--out={out}"])


def arrays(folder):
    return load_file(Path(folder) / "model" / "model.safetensors")


def read_plan(path):
    return plans.from_json(json.loads(Path(path).read_text()))[1]


def test_the_command_applies_a_plan_to_any_weights(weights, here, capsys):
    tuning = "--finetune-epochs=1"
    assert run(f"--weights={weights / 'a'}", tuning, out="selected") == 0
    given = "--plan=selected/plan.json"
    assert run(f"--weights={weights / 'a'}", tuning, given, out="given") == 0
    for path, array in arrays("selected").items():
        np.testing.assert_array_equal(array, arrays("given")[path], err_msg=path)
    assert_same_plan(read_plan("selected/plan.json"), read_plan("given/plan.json"))
    report = json.loads(Path("given/report.json").read_text())
    assert report["method"] == "plan" and report["plan"] == "selected/plan.json"
    stages = [stage["stage"] for stage in report["stages"]]
    assert stages == ["dense", "pruned", "repaired", "finetuned"]

    assert run(f"--weights={weights / 'b'}", given, "--repair=none", out="other") == 0
    other = ispasp_jax.load(weights / "b")
    expected = plans.apply(
        read_plan("selected/plan.json"), other.traced, other.variables
    )
    found = ispasp_jax.load("other").variables
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert not Path("other/plan_from_dense.json").exists()

    capsys.readouterr()
    assert prune.main(["--model=mlp", "--dry-run", given]) == 0
    assert "39.8%" in capsys.readouterr().out


def test_pruning_again_leaves_the_plan_from_the_dense_network(weights, here):
    """Of two runs and of three, each on the folder that the one before left."""
    at = weights / "a"
    for out in ("one", "two", "three/below"):
        assert run(f"--weights={at}", "--keep=0.6", "--repair=none", out=out) == 0
        at = Path(out) / "model" if out == "two" else out
    dense = ispasp_jax.load(weights / "a")
    assert not Path("one/plan_from_dense.json").exists()
    for out, width in (("two", 91), ("three/below", 54)):
        whole = read_plan(f"{out}/plan_from_dense.json")
        assert whole["hidden.0"].width == 256 and len(whole["hidden.0"].kept) == width
        variables = plans.apply(whole, dense.traced, dense.variables)
        model = ispasp_jax.load(out)
        jax.tree.map(np.testing.assert_array_equal, variables, model.variables)
    assert read_plan("two/plan.json")["hidden.0"].width == 153
    # In a place that a run has used, nothing of it stays.
    assert run(f"--weights={weights / 'a'}", out="two") == 0
    assert not Path("two/plan_from_dense.json").exists()


@pytest.mark.parametrize(
    "text", ["{", '{"format": 1, "model": "mlp", "groups": []}'], ids=["torn", "other"]
)
def test_a_plan_that_does_not_lead_to_the_weights_is_left_out(text, weights, here):
    assert run(f"--weights={weights / 'a'}", out="one") == 0
    Path("one/plan.json").write_text(text)
    assert run("--weights=one", out="two") == 0
    assert not Path("two/plan_from_dense.json").exists()
    notes = json.loads(Path("two/report.json").read_text())["notes"]
    assert any("plan_from_dense.json is left out: one/plan.json" in n for n in notes)


def written(model="mlp", **groups):
    return json.dumps(
        plans.to_json(
            {n: plans.Cut(w, np.array(kept)) for n, (w, kept) in groups.items()}, model
        )
    )


HIDDEN = {"hidden.0": (256, [0, 3])}
BAD = {
    "missing": (None, [], "cannot be read (No such file"),
    "torn": ("{", [], "is not JSON"),
    "list": ("[]", [], "is not a plan of format 1"),
    "bytes": ("\udcff", [], "is not JSON"),
    "rounded": (written(**HIDDEN).replace("3", "3.5"), [], "not a plan of format 1"),
    "model": (written("resnet20", **HIDDEN), [], "is a plan for resnet20, not for mlp"),
    "widths": (written(**{"hidden.0": (99, [0])}), [], "expects 99 channels"),
    "group": (written(**{"layer9": (256, [0])}), [], "cuts group 'layer9'"),
    "indices": (written(**{"hidden.0": (256, [3, 1])}), [], "must be ascending"),
    "method": (written(**HIDDEN), ["--method=ispasp"], "--plan and --method were both"),
    "keep": (written(**HIDDEN), ["--keep=0.4"], "--plan and --keep were both"),
    "preset": (written(**HIDDEN), ["--preset=paper"], "--plan and --preset were both"),
}


@pytest.mark.parametrize("own_weights", [False, True])
@pytest.mark.parametrize("text, flags, sentence", BAD.values(), ids=BAD)
def test_plans_are_refused_in_one_sentence(
    text, flags, sentence, own_weights, weights, here, capsys
):
    if text is not None:
        Path("plan.json").write_bytes(text.encode(errors="surrogateescape"))
    before = sorted(here.rglob("*"))
    if own_weights:
        flags = [*flags, f"--weights={weights / 'a'}"]
    assert prune.main(["--model=mlp", "--plan=plan.json", *flags]) == 2
    said = capsys.readouterr()
    assert sentence in said.err and said.out == ""
    told = [line for line in said.err.splitlines() if "dense network:" not in line]
    assert len(told) == 1, said.err
    assert sorted(here.rglob("*")) == before


def test_a_plan_for_the_dense_network_does_not_fit_the_pruned_one(
    weights, here, capsys
):
    assert run(f"--weights={weights / 'a'}", out="one") == 0
    assert run("--weights=one", "--plan=one/plan.json", out="two") == 2
    assert "--plan one/plan.json: the plan expects 256" in capsys.readouterr().err
    assert [path.name for path in here.iterdir()] == ["one"]
    narrow = written(**{"hidden.0": (102, [0, 7])})
    Path("narrow.json").write_text(narrow)
    assert run("--weights=one", "--plan=narrow.json", out="two") == 0
    assert ispasp_jax.load("two").widths == {"hidden.0": 2}


def test_resuming_with_another_plan_in_the_file_is_refused(
    weights, here, monkeypatch, capsys
):
    Path("plan.json").write_text(written(**HIDDEN))
    flags = [f"--weights={weights / 'a'}", "--plan=plan.json"]
    with monkeypatch.context() as patch:
        patch.setattr("ispasp_jax.cli.stages.measure", stopped)
        assert run(*flags, out="out") == 130
    Path("plan.json").write_text(written(**{"hidden.0": (256, [5])}))
    assert run(*flags, "--resume", out="out") == 2
    assert "other settings (plan)" in capsys.readouterr().err
    Path("plan.json").write_text(written(**HIDDEN))
    assert run(*flags, "--resume", out="out") == 0
    assert_same_plan(
        read_plan("out/plan.json"), {"hidden.0": plans.Cut(256, np.array([0, 3]))}
    )


def stopped(*_):
    raise KeyboardInterrupt
