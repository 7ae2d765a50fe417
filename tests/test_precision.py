"""Activations in bfloat16: what is half precision then, and what is not."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import NETWORKS, images_of, variables_of

import ispasp_jax
from ispasp_jax import budget, training
from ispasp_jax.cli import prune
from ispasp_jax.data import Batch
from ispasp_jax.graph import narrow, scope
from ispasp_jax.walk import Options, flat, walk
from ispasp_jax.walk.sites import sites as walk_sites

HALF = jnp.bfloat16


def dtypes(tree):
    return {leaf.dtype for leaf in jax.tree.leaves(tree) if leaf.ndim}


@pytest.mark.parametrize("name", NETWORKS)
def test_activations_have_the_images_dtype(name, strict):
    """Whatever the walk may stop at, and the outputs; also in training."""
    network = NETWORKS[name]
    variables = variables_of(network)

    def trained(x):
        return network.apply(variables, x, train=True, mutable=["batch_stats"])

    for dtype in (HALF, jnp.float32):
        images = jax.ShapeDtypeStruct((2, 7, 8, 3), dtype)
        program = flat.flatten(ispasp_jax.trace(network, variables, images))
        sites = walk_sites(program)
        assert {site.hidden.aval.dtype for site in sites} == {jnp.dtype(dtype)}
        assert {site.out.aval.dtype for site in sites} == {jnp.dtype(dtype)}
        out, moved = jax.eval_shape(trained, images)
        assert {out.dtype, program.outputs[0].aval.dtype} == {jnp.dtype(dtype)}
        assert dtypes(moved) <= {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize(
    "name", ["basic", pytest.param("mobile", marks=pytest.mark.slow), "mlp"]
)
def test_a_step_leaves_variables_and_optimizer_in_float32(name):
    network = NETWORKS[name]
    variables = variables_of(network)
    recipe = training.Recipe(2, distill=0.5, ema=0.9)
    transformation = training.optimizer(recipe, 4)
    teacher = training.Teacher(network, variables_of(network, seed=1))
    weight, label = np.ones(6, np.float32), np.arange(6, dtype=np.int32) % 4
    images, losses, moved = images_of(6), {}, {}
    for dtype in (jnp.float32, HALF):
        state = training.start(network, recipe, transformation, variables)
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


@pytest.mark.parametrize("name", ["basic", "cifar", "mlp"])
def test_the_walk_agrees_with_that_in_float32(name):
    network = NETWORKS[name]
    variables, images = variables_of(network), images_of(48)
    batches = np.split(images, 3)
    traced = ispasp_jax.trace(network, variables, batches[0])
    sizes = budget.sizes(scope(traced.groups, "inner", ()), 0.5)
    halves = [batch.astype(HALF) for batch in batches]

    def walked(batches, plan=None, repair="none"):
        options = Options(carry_dense=True, repair=repair)
        return walk(traced, variables, batches, sizes, plan=plan, options=options)

    full, half = walked(batches), walked(halves)
    assert dtypes(half.variables) == {jnp.dtype(jnp.float32)}
    same = [np.isin(full.plan[n].kept, half.plan[n].kept).mean() for n in full.plan]
    assert np.mean(same) >= 0.8 and half.plan.keys() == full.plan.keys()
    # On one plan, refitted networks give nearly the same logits, and results agree.
    small = narrow(traced.function, traced, half.plan)
    for repair in ("none", "bn", "lsq"):
        full = walked(batches, plan=half.plan, repair=repair)
        both = walked(halves, plan=half.plan, repair=repair)
        assert dtypes(both.variables) == {jnp.dtype(jnp.float32)}
        a, b = (small(p.variables, jnp.asarray(images)) for p in (full, both))
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
    np.testing.assert_array_equal(ones.mean((1, 2)), jnp.ones((1, 4), HALF))
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
