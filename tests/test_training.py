"""Training states across a cut, averages of weights, and learning from a teacher."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import networks
import numpy as np
import optax
import pytest
from safetensors.numpy import load_file

from ispasp_jax import graph, training
from ispasp_jax.cli import prune, train
from ispasp_jax.data import Batch
from ispasp_jax.errors import InputError
from ispasp_jax.graph.by_hand import leaves, nested
from ispasp_jax.graph.check import random_plan
from ispasp_jax.training import Recipe, States, Teacher, TrainState

NETWORKS = networks.NETWORKS
STEPS, SIZE = 4, 6


def batches(epoch=0, labels=None):
    """STEPS batches of random images; the last image of each is padding."""
    rng = np.random.default_rng(epoch)
    found = []
    for i in range(STEPS):
        images = networks.images_of(SIZE, seed=100 * epoch + i)
        drawn = rng.integers(0, 4, SIZE) if labels is None else np.full(SIZE, labels)
        weight = np.r_[np.ones(SIZE - 1), 0].astype(np.float32)
        found.append(Batch(images, drawn.astype(np.int32), weight))
    return found


def trained(network, transformation, recipe, state, epoch=0, teacher=None):
    """The state after an epoch; the caller's stays valid."""
    state = jax.tree.map(jnp.array, state)
    for batch in batches(epoch):
        state, _ = training.train_step(
            network, transformation, recipe, state, batch, teacher
        )
    return state


def assert_close(one, two, rtol=2e-4, atol=2e-5):
    assert jax.tree.structure(one) == jax.tree.structure(two)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), one, two
    )


def traced_of(network):
    return graph.trace(network, networks.variables_of(network), networks.images_of(2))


def a_plan(traced):
    """Half of every hidden channel."""
    plan = random_plan(traced, seed=5)
    return {name: one for name, one in plan.items() if traced[name].kind == "inner"}


#: More epochs than are run, so that the learning rate never gets to zero. A large eps:
#: Adam makes a step of its own size from a gradient that is rounding alone.
RECIPE = Recipe(epochs=4, learning_rate=0.02, warmup_epochs=1, ema=0.9)
OPTIMIZERS = {
    "sgd": training.optimizer(RECIPE, STEPS),
    "adam": optax.adam(optax.cosine_decay_schedule(1e-2, 4 * STEPS), eps=1e-2),
}


SLOW = pytest.param("mobile", "adam", marks=pytest.mark.slow)


@pytest.mark.parametrize("kind, optimizer", [("basic", "sgd"), ("mlp", "sgd"), SLOW])
def test_training_goes_on_across_a_cut(kind, optimizer):
    """A masked network trains as the cut one does: cut before, in between, or after."""
    network, transformation = NETWORKS[kind], OPTIMIZERS[optimizer]
    traced = traced_of(network)
    decided = a_plan(traced)
    variables = traced.mask(decided, networks.variables_of(network))
    start = training.start(network, RECIPE, transformation, variables)

    def cut(state):
        return training.cut_state(decided, network, traced, state)

    wide = trained(network, transformation, RECIPE, start)
    wide_then = trained(network, transformation, RECIPE, wide, 1)
    narrow, between = cut(wide)
    between = trained(narrow, transformation, RECIPE, between, 1)
    _, before = cut(start)
    before = trained(narrow, transformation, RECIPE, before, 0)
    before = trained(narrow, transformation, RECIPE, before, 1)
    _, after = cut(wide_then)
    assert int(between.step) == 2 * STEPS
    assert_close(between, after)
    assert_close(before, after)
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), between, cut(wide)[1])
    assert max(jax.tree.leaves(moved.variables["params"])) > 1e-3


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_cut_state_is_the_slices_of_the_whole(optimizer):
    """Shapes are the narrow network's, values those of the surviving channels."""
    network, transformation = NETWORKS["mobile"], OPTIMIZERS[optimizer]
    traced = traced_of(network)
    decided = a_plan(traced)
    variables = networks.variables_of(network)
    state = training.start(network, RECIPE, transformation, variables)
    state = trained(network, transformation, RECIPE, state)
    narrow, cut = training.cut_state(decided, network, traced, state)
    found = graph.trace(narrow, cut.variables, networks.images_of(2))
    assert {n: found[n].width for n in decided} == {
        n: len(c.kept) for n, c in decided.items()
    }
    fresh = training.start(narrow, RECIPE, transformation, cut.variables)
    assert jax.tree.structure(cut) == jax.tree.structure(fresh)
    assert jax.tree.map(jnp.shape, cut) == jax.tree.map(jnp.shape, fresh)

    def slices(tree):
        """By numpy, from the axes that the groups list."""
        arrays = {path: np.asarray(leaf) for path, leaf in leaves(tree)}
        for name, part in decided.items():
            for axis in traced[name].axes:
                below = axis.path.partition("/")[2]
                path = axis.path if axis.path in arrays else below
                if path in arrays:
                    arrays[path] = arrays[path].take(part.kept, axis.axis)
        return nested(arrays)

    def moments(state):
        """Trees of the parameters' structure inside the optimizer's state."""
        like = jax.tree.structure(state.variables["params"])

        def whole(node):
            return jax.tree.structure(node) == like

        nodes = jax.tree.leaves(state.optimizer_state, is_leaf=whole)
        return [node for node in nodes if whole(node)]

    jax.tree.map(np.testing.assert_array_equal, cut.ema, slices(state.ema))
    jax.tree.map(np.testing.assert_array_equal, cut.variables, slices(state.variables))
    assert len(moments(state)) == {"sgd": 1, "adam": 2}[optimizer]
    for ours, theirs in zip(moments(cut), moments(state), strict=True):
        jax.tree.map(np.testing.assert_array_equal, ours, slices(theirs))
    assert int(cut.step) == STEPS


def test_a_state_is_cut_only_by_a_plan_that_fits():
    network, transformation = NETWORKS["mlp"], OPTIMIZERS["sgd"]
    traced, variables = traced_of(network), networks.variables_of(network)
    state = training.start(network, Recipe(1), transformation, variables)
    with pytest.raises(InputError, match="does not have"):
        training.cut_state({"x": graph.Cut(2, np.array([0]))}, network, traced, state)
    _, cut = training.cut_state(a_plan(traced), network, traced, state)
    assert cut.ema is None


# The average of the weights.


def test_the_average_is_that_of_all_variables_after_every_step():
    """Against a recursion in float64; batch statistics included."""
    network, recipe = NETWORKS["basic"], RECIPE._replace(ema=0.15)
    transformation = OPTIMIZERS["sgd"]
    state = training.start(
        network, recipe, transformation, networks.variables_of(network)
    )
    expected = jax.tree.map(lambda a: np.asarray(a, np.float64), state.variables)
    for step, batch in enumerate(batches()):
        state, _ = training.train_step(network, transformation, recipe, state, batch)
        decay = min(0.15, (1 + step) / (10 + step))
        expected = jax.tree.map(
            lambda old, new, d=decay: d * old + (1 - d) * np.asarray(new, np.float64),
            expected,
            dict(state.variables),
        )
    assert "batch_stats" in state.ema
    assert_close(state.ema, expected, rtol=1e-5, atol=1e-6)
    assert state.trained is state.ema


def test_fit_returns_the_average_and_trains_as_without():
    network, variables = NETWORKS["mlp"], networks.variables_of(NETWORKS["mlp"])
    states = {}

    def fitted(recipe):
        def after_epoch(epoch, state, loss):
            states[recipe.ema] = jax.device_get(state)

        return training.fit(
            network, variables, batches, STEPS, recipe, after_epoch=after_epoch
        )

    averaged, plain = fitted(RECIPE), fitted(RECIPE._replace(ema=None))
    jax.tree.map(np.testing.assert_array_equal, averaged, states[0.9].ema)
    jax.tree.map(np.testing.assert_array_equal, plain, states[0.9].variables)
    assert states[None].ema is None


@pytest.mark.parametrize("ema", [None, 0.9])
def test_states_come_back_from_disk(ema, tmp_path):
    network, recipe = NETWORKS["basic"], RECIPE._replace(ema=ema)
    transformation = OPTIMIZERS["sgd"]
    start = training.start(
        network, recipe, transformation, networks.variables_of(network)
    )
    state = trained(network, transformation, recipe, start)
    states = States(tmp_path / "states")
    states.save(0, state)
    found = states.latest(start)
    assert isinstance(found, TrainState)
    assert jax.tree.structure(found) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, found, state)


# The teacher.


def numpy_loss(logits, taught, batch, recipe):
    """The whole loss in float64, as its formula reads."""

    def log_softmax(z):
        return z - np.log(np.exp(z).sum(-1, keepdims=True))

    logits, taught = (np.asarray(z, np.float64) for z in (logits, taught))
    target = np.eye(4)[batch.label] * (1 - recipe.label_smoothing)
    target += recipe.label_smoothing / 4
    labelled = -(target * log_softmax(logits)).sum(-1)
    T = recipe.temperature
    p, q = np.exp(log_softmax(taught / T)), np.exp(log_softmax(logits / T))
    taught_loss = T**2 * (p * np.log(p / q)).sum(-1)
    losses = (1 - recipe.distill) * labelled + recipe.distill * taught_loss
    return (losses * batch.weight).sum() / batch.weight.sum()


@pytest.mark.parametrize("share, temperature", [(0.0, 4.0), (0.3, 2.0), (1.0, 4.0)])
def test_the_loss_is_the_formulas(share, temperature):
    recipe = RECIPE._replace(distill=share, temperature=temperature)
    network, transformation = NETWORKS["basic"], OPTIMIZERS["sgd"]
    batch = batches()[0]
    variables = networks.variables_of(network)
    teacher = Teacher(network, networks.variables_of(network, seed=1))
    logits, _ = network.apply(
        variables, jnp.asarray(batch.image), train=True, mutable=["batch_stats"]
    )
    taught = network.apply(teacher.variables, jnp.asarray(batch.image))
    expected = numpy_loss(logits, taught, batch, recipe)
    state = training.start(network, recipe, transformation, variables)
    _, loss = training.train_step(
        network, transformation, recipe, state, batch, teacher
    )
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_the_gradient_of_distillation():
    """T · (softmax(z/T) − softmax(t/T)): none where student and teacher agree."""
    rng = np.random.default_rng(0)
    z, t = (jnp.asarray(rng.normal(size=(5, 7)), jnp.float32) for _ in range(2))
    gradient = jax.grad(lambda z: training.distillation(z, t, 3.0).sum())
    expected = 3 * (jax.nn.softmax(z / 3) - jax.nn.softmax(t / 3))
    np.testing.assert_allclose(gradient(z), expected, atol=1e-6)
    assert np.abs(gradient(t)).max() < 1e-6
    assert np.abs(training.distillation(t, t, 3.0)).max() < 1e-6


def test_labels_do_not_enter_where_the_teacher_is_all():
    """Other labels give the same bits with a share of 1, and others below."""
    network, variables = NETWORKS["mlp"], networks.variables_of(NETWORKS["mlp"])
    teacher = Teacher(NETWORKS["basic"], networks.variables_of(NETWORKS["basic"]))

    def fitted(share, labels):
        return training.fit(
            network,
            variables,
            lambda epoch: batches(epoch, labels),
            STEPS,
            Recipe(2, distill=share),
            teacher=teacher,
        )

    jax.tree.map(np.testing.assert_array_equal, fitted(1.0, 0), fitted(1.0, 3))
    kernels = [fitted(0.9, n)["params"]["hidden.0"]["kernel"] for n in (0, 3)]
    assert np.abs(kernels[0] - kernels[1]).max() > 1e-4


def test_a_share_without_a_teacher_is_refused():
    network = NETWORKS["mlp"]
    with pytest.raises(ValueError, match="no teacher is given"):
        training.fit(
            network,
            networks.variables_of(network),
            batches,
            STEPS,
            Recipe(1, distill=0.5),
        )


def test_the_teachers_variables_are_arguments():
    """Another teacher of the same shape needs no tracing and is learned from."""
    network, recipe = NETWORKS["mlp"], Recipe(2, distill=0.7)
    transformation = training.optimizer(recipe, STEPS)
    ends, compiled = [], []
    for seed in (1, 2):
        teacher = Teacher(network, networks.variables_of(network, seed=seed))
        before = jax.tree.map(np.array, teacher.variables)
        state = training.start(
            network, recipe, transformation, networks.variables_of(network)
        )
        ends.append(trained(network, transformation, recipe, state, 0, teacher))
        compiled.append(training.loop._train_step._cache_size())
        jax.tree.map(np.testing.assert_array_equal, teacher.variables, before)
    assert compiled[0] == compiled[1]
    kernels = [end.variables["params"]["hidden.0"]["kernel"] for end in ends]
    assert np.abs(kernels[0] - kernels[1]).max() > 1e-4


# The commands.


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty present folder; training states are kept after every epoch."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ispasp_jax.cli.learning.SECONDS_BETWEEN_STATES", 0)
    return tmp_path


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dense") / "mlp"
    assert train.main(["--model=mlp", "--epochs=1", f"--out={folder}"]) == 0
    return folder


def stop_in_second_epoch(monkeypatch):
    real, done = training.loop.train_step, []

    def step(*arguments):
        if len(done) == 1437 // 64 + 3:
            raise KeyboardInterrupt
        done.append(True)
        return real(*arguments)

    monkeypatch.setattr(training.loop, "train_step", step)


def arrays(folder):
    return load_file(Path(folder) / "model.safetensors")


def assert_same_arrays(one, two, same=True):
    pairs = [(array, arrays(two)[path]) for path, array in arrays(one).items()]
    assert all(np.array_equal(*pair) for pair in pairs) == same


def test_an_averaged_training_resumes_where_it_was_stopped(here, monkeypatch, capsys):
    flags = ["--model=mlp", "--epochs=3", "--ema=0.99"]
    with monkeypatch.context() as patch:
        stop_in_second_epoch(patch)
        assert train.main([*flags, "--out=a"]) == 130
    assert train.main([*flags, "--ema=0.9", "--out=a", "--resume"]) == 2
    assert "other settings (ema)" in capsys.readouterr().err
    assert train.main([*flags, "--out=a", "--resume"]) == 0
    assert "resuming after epoch 1" in capsys.readouterr().err
    assert train.main([*flags, "--out=b"]) == 0
    assert train.main([*flags[:-1], "--out=c"]) == 0
    assert_same_arrays("a", "b")
    assert_same_arrays("a", "c", same=False)


def test_distilled_fine_tuning_resumes_where_it_was_stopped(
    dense, here, monkeypatch, capsys
):
    flags = ["--model=mlp", f"--weights={dense}", "--finetune-epochs=3"]
    more = ["--distill", "--ema=0.9"]
    with monkeypatch.context() as patch:
        stop_in_second_epoch(patch)
        assert prune.main([*flags, *more, "--out=a"]) == 130
    assert prune.main([*flags, *more, "--distill=0.5", "--out=a", "--resume"]) == 2
    assert "other settings (distill)" in capsys.readouterr().err
    assert prune.main([*flags, *more, "--out=a", "--resume"]) == 0
    assert "resuming after epoch 1" in capsys.readouterr().err
    assert prune.main([*flags, *more, "--out=b"]) == 0
    assert prune.main([*flags, "--ema=0.9", "--out=c"]) == 0
    assert_same_arrays("a/model", "b/model")
    assert_same_arrays("a/model", "c/model", same=False)


def test_labels_do_not_enter_a_distilled_run(here):
    """Training labels drawn anew leave the same network, blocks' tuning included."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (80, 8, 8, 1), np.uint8)
    test = dict(x_test=images[:20], y_test=np.arange(20) % 3)
    for name in "ab":
        labels = np.r_[:3, rng.integers(0, 3, 77)]
        np.savez(f"{name}.npz", x_train=images, y_train=labels, **test)
    flags = ["--model=mlp", "--batch-size=16"]
    assert train.main([*flags, "--data=npz:a.npz", "--epochs=1", "--out=dense"]) == 0
    flags += ["--weights=dense", "--finetune-epochs=1", "--block-finetune-epochs=1"]
    for name in "ab":
        into = ["--distill", f"--data=npz:{name}.npz", f"--out={name}"]
        assert prune.main([*flags, *into]) == 0
    assert_same_arrays("a/model", "b/model")
    report = json.loads(Path("a/report.json").read_text())
    assert [stage["stage"] for stage in report["stages"]][-1] == "finetuned"
    assert report["finetuning"]["distill"] == 1


@pytest.mark.parametrize(
    "flags, sentence",
    [
        (["--weights=x", "--distill"], "give --finetune-epochs too"),
        (["--distill", "--new-head"], "train that first"),
        (["--distill=1.5"], "a number from 0 to 1"),
        (["--distill-temperature=0"], "a number above 0"),
        (["--ema=1"], "a number from 0 to below 1"),
    ],
)
def test_odd_flags_are_refused(flags, sentence, here, capsys):
    assert prune.main(["--model=mlp", *flags]) == 2
    said = capsys.readouterr().err
    assert sentence in said and len(said.splitlines()) == 1
    assert list(here.iterdir()) == []
