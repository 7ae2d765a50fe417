"""Activations in bfloat16: what is half precision then, and what is not."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import NETWORKS, images_of, variables_of

import ispasp_jax
from ispasp_jax import budget, pruning, training
from ispasp_jax.commands import prune
from ispasp_jax.data import Batch
from ispasp_jax.models.network import Block, subtree

HALF = jnp.bfloat16


def dtypes(tree):
    return {leaf.dtype for leaf in jax.tree.leaves(tree) if leaf.ndim}


@pytest.mark.parametrize("name", NETWORKS)
def test_activations_have_the_images_dtype(name, strict):
    """Every part's input and output, and what is inside blocks; also in training."""
    network = NETWORKS[name]
    variables = variables_of(network)

    def run(x):
        caught = [x]
        for part in network.chain():
            own = subtree(variables, part)
            if isinstance(part.module, Block):
                for i in range(len(part.module.groups)):
                    h = part.module.apply(own, x, i, method="reach")
                    caught += [h, part.module.apply(own, h, i, method="consumer")]
            x = part.module.apply(own, x)
            caught.append(x)
        trained, moved = network.apply(
            variables, caught[0], train=True, mutable=["batch_stats"]
        )
        return [*caught, trained], moved

    for dtype in (HALF, jnp.float32):
        images = jax.ShapeDtypeStruct((2, 7, 8, 3), dtype)
        activations, moved = jax.eval_shape(run, images)
        assert {a.dtype for a in activations} == {jnp.dtype(dtype)}
        assert dtypes(moved) <= {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize("name", ["basic", "mobile", "mlp"])
def test_a_step_leaves_variables_and_optimizer_in_float32(name):
    network = NETWORKS[name]
    variables = variables_of(network)
    recipe = training.Recipe(2, distill=0.5, ema=0.9)
    transformation = training.optimizer(recipe, 4)
    teacher = training.Teacher(network, variables_of(network, seed=1))
    weight, label = np.ones(6, np.float32), np.arange(6, dtype=np.int32) % 4
    images, losses, moved = images_of(6), {}, {}
    for dtype in (jnp.float32, HALF):
        state = training.start(recipe, transformation, variables)
        state = jax.tree.map(jnp.array, state)
        batch = Batch(images.astype(dtype), label, weight)
        state, losses[dtype] = training.train_step(
            network, transformation, recipe, state, batch, teacher
        )
        assert losses[dtype].dtype == jnp.float32
        assert dtypes(state) == {jnp.dtype(jnp.float32)}
        step = jax.tree.map(jnp.subtract, state.variables, variables)
        moved[dtype] = np.concatenate([a.ravel() for a in jax.tree.leaves(step)])
        sums = training.evaluation_step(network, variables, batch)
        assert dtypes(jnp.stack(sums)) == {jnp.dtype(jnp.float32)}
    assert float(losses[HALF]) == pytest.approx(float(losses[jnp.float32]), rel=0.03)
    a, b = moved.values()
    assert a @ b / np.sqrt((a @ a) * (b @ b)) > 0.97


@pytest.mark.parametrize("name", ["basic", "bottleneck", "tf_mobile", "mlp"])
def test_the_walk_agrees_with_that_in_float32(name):
    network = NETWORKS[name]
    variables, images = variables_of(network), images_of(48)
    sizes = budget.sizes(network, 0.5)
    batches = np.split(images, 3)
    halves = [batch.astype(HALF) for batch in batches]

    def walk(batches, **options):
        return pruning.walk(
            network, variables, batches, sizes, carry_dense=True, **options
        )

    full, half = walk(batches), walk(halves)
    assert dtypes(half.variables) == {jnp.dtype(jnp.float32)}
    same = [np.isin(full.plan[n].kept, half.plan[n].kept).mean() for n in full.plan]
    assert np.mean(same) >= 0.8 and half.plan.keys() == full.plan.keys()
    # On one plan, refitted networks give nearly the same logits, and results agree.
    for repair in ("none", "bn", "lsq"):
        full = walk(batches, plan=half.plan, repair=repair)
        both = walk(halves, plan=half.plan, repair=repair)
        assert dtypes(both.variables) == {jnp.dtype(jnp.float32)}
        x = jnp.asarray(images)
        a, b = (p.network.apply(p.variables, x) for p in (full, both))
        assert jnp.sqrt(jnp.square(a - b).mean()) < 0.1 * a.std(), repair
        for a, b in zip(full.groups, both.groups, strict=True):
            assert a.drift == pytest.approx(b.drift, rel=0.05, abs=0.02)
            if a.relative_residual is not None:
                assert a.relative_residual == pytest.approx(
                    b.relative_residual, rel=0.05
                )


def test_the_head_and_batch_norm_add_up_in_float32():
    """Thousands of equal numbers: a sum in bfloat16 would stop growing at 256."""
    ones = jnp.ones((1, 64, 64, 4), HALF)
    head = NETWORKS["basic"].chain()[-1]
    hidden = head.module.apply({"params": {"fc": {}}}, ones, 0, method="hidden")
    np.testing.assert_array_equal(hidden, jnp.ones((1, 4), HALF))
    norm = ispasp_jax.models.layers.BatchNorm()
    variables = norm.init(jax.random.key(0), ones)
    out, moved = norm.apply(variables, 3 * ones, True, mutable=["batch_stats"])
    np.testing.assert_allclose(moved["batch_stats"]["mean"], 0.3, rtol=1e-5)
    assert out.dtype == HALF


def test_prune_in_bf16(tmp_path, monkeypatch):
    """Trained, pruned and fine-tuned in bf16; what is saved is float32."""
    monkeypatch.chdir(tmp_path)
    flags = ["--model=mlp", "--out=out", "--precision=bf16", "--finetune-epochs=1"]
    assert prune.main(flags) == 0
    model = ispasp_jax.load("out/model")
    assert dtypes(model.variables) == {jnp.dtype(jnp.float32)}
    report = json.loads(Path("out/report.json").read_text())
    assert report["stages"][0]["top1"] > 0.9 and report["stages"][-1]["top1"] > 0.8
    (dense,) = Path("runs").iterdir()
    assert json.loads((dense / "training.json").read_text())["precision"] == "bf16"
