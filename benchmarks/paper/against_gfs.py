"""i-SpaSP against greedy forward selection (GFS, Ye et al., ICML 2020): what each
keeps, and what each costs.

    ISPASP_DATA=DIR python benchmarks/against_gfs.py [--only mnist] [--small]

Three layers: the 512 neurons of mnist_two_layer.py's network, and the hidden channels
of two blocks of public CIFAR-10 ResNets, one that the network depends on (32 channels
of ResNet20's layer2.0) and one that it hardly misses (64 of ResNet56's layer3.4). Every
method sees the same 1,280 training images, GFS their labels too, and selects supports
of every size; the rest of the network stays dense and nothing is trained after the cut.
greedy.py says what GFS does. Beside it: the same network loss without GFS's d/n
weights; the 50 random candidates a step of the authors' code; greedy forward selection
on the Gram matrix of the layer's outputs; random channels.

Multiply-adds are counted on the traced functions. GFS is counted twice: as its authors
run it, a pass of the whole network for every candidate; and as it runs here, the part
before the layer once. Seconds are without compilation, and include for every method the
pass over the training images as far as the layer; those of one size are for GFS its
share of the passes. The verdicts at the end are computed from the numbers. About
12 minutes on two CPU cores with other work to do; layers that are in the JSON already
are not run again.
"""

import functools
import time
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.benchmark import SEED, Benchmark, data_folder, header
from benchmarks.paper import cifar, gfs_report, greedy, mnist_two_layer
from benchmarks.paper.gfs_report import DRAWS, FEW
from benchmarks.timings import turns
from ispasp_jax import algorithm_1, batch_sum, data, report
from ispasp_jax.budget import cost

CALIBRATION, T = 1280, 20


class Case(NamedTuple):
    """A layer to select in.

    Attributes:
      network: with its variables; the layer is in the part `part`.
      source: images.
      sizes: where accuracy is measured.
      steps: channels that GFS adds.
      batch_size: labelled images of a step of GFS.
      calibration: training images.
    """

    network: nn.Module
    variables: dict
    part: str
    source: data.Source
    sizes: tuple[int, ...]
    steps: int
    batch_size: int = 128
    calibration: int = CALIBRATION


def mnist(small: bool) -> Case:
    """The paper's two-layer network."""
    source = data.open_source(f"idx:{data_folder()}/mnist")
    network, variables = mnist_two_layer.trained(source, epochs=1 if small else 10)
    d = mnist_two_layer.HIDDEN
    sizes = (8, 16, 24) if small else (*range(1, 32), *range(32, d + 1, 8))
    steps, batch_size = (24, 32) if small else (d, 128)
    return Case(network, variables, "hidden.0", source, sizes, steps, batch_size)


def resnet(name: str, part: str, d: int, small: bool) -> Case:
    """A block of a public ResNet."""
    network, variables, source = cifar.load(name)
    sizes = (4, 8) if small else tuple(range(2, d + 1, 2))
    steps, batch_size = (8, 32) if small else (d, 128)
    return Case(network, variables, part, source, sizes, steps, batch_size)


CASES = {
    "mnist, 512 neurons": mnist,
    "cifar10 resnet20, layer2.0": functools.partial(resnet, "resnet20", "layer2.0", 32),
    "cifar10 resnet56, layer3.4": functools.partial(resnet, "resnet56", "layer3.4", 64),
}


class Answers(NamedTuple):
    """What the methods keep.

    Attributes:
      masks: by method, (sizes, d).
      seconds: by method, to half of the channels and to all sizes.
      K: of the layer.
    """

    masks: dict[str, np.ndarray]
    seconds: dict[str, dict[str, float]]
    K: jax.Array


def timed(function: Callable, *arguments) -> tuple:
    """A jitted function's answer, and its seconds without compilation. What it needs
    are arguments, not constants that XLA would fold.
    """
    compiled = jax.jit(function).lower(*arguments).compile()
    start = time.perf_counter()
    answer = jax.block_until_ready(compiled(*arguments))
    return answer, time.perf_counter() - start


def one_size(layer: greedy.Layer, summed: jax.Array, s: jax.Array) -> jax.Array:
    """i-SpaSP's support of a size."""
    consumer = functools.partial(greedy.consumer, layer)
    return algorithm_1(summed, consumer, s, T).support


def all_sizes(layer: greedy.Layer, h: jax.Array) -> jax.Array:
    """i-SpaSP's supports of every size."""
    summed, sizes = batch_sum(h), jnp.arange(1, layer.d + 1)
    return jax.vmap(lambda s: one_size(layer, summed, s))(sizes)


def on_gram(layer: greedy.Layer, h: jax.Array) -> tuple[jax.Array, jax.Array]:
    """K, and the order of greedy forward selection on it."""
    K = greedy.gram(layer, h)
    return K, greedy.gram_forward(K)


def variants_of(d: int) -> dict[str, dict]:
    """The kinds of GFS in a layer of d channels."""
    few = {"gfs_few": {"candidates": FEW}} if d > 2 * FEW else {}
    return {"gfs": {}, "gfs_plain": {"scaled": False}, **few}


def select(case: Case, layer: greedy.Layer, images: greedy.Images) -> Answers:
    """Every method's supports."""
    d, sizes = layer.d, np.array(case.sizes)
    half = d // 2
    _, one_s = timed(one_size, layer, batch_sum(images.h), jnp.int32(half))
    supports, all_s = timed(all_sizes, layer, images.h)
    (K, order), gram_s = timed(on_gram, layer, images.h)
    masks = {
        "ispasp": np.asarray(supports)[sizes - 1],
        "gram": greedy.nested(order, sizes, d),
    }
    seconds = {"ispasp": (one_s, all_s), "gram": (gram_s, gram_s)}
    for name, options in variants_of(d).items():
        report.say(f"    {name}")
        own = {"steps": case.steps, "batch_size": case.batch_size, **options}
        gfs = functools.partial(greedy.gfs, **own)
        order, spent = timed(gfs, layer, images, jax.random.key(SEED))
        masks[name] = greedy.nested(order, sizes[sizes <= case.steps], d)
        few = options.get("candidates")
        share = greedy.passes(d, min(half, case.steps), few)
        share /= greedy.passes(d, case.steps, few)
        seconds[name] = share * spent, spent
    kinds = "one_size", "all_sizes"
    return Answers(
        masks, {n: dict(zip(kinds, s, strict=True)) for n, s in seconds.items()}, K
    )


def top1(layer: greedy.Layer, test: greedy.Images, kept: jax.Array) -> jax.Array:
    """Of the network whose channels count so much."""
    found = greedy.logits(layer, kept, test.x, test.h).argmax(-1)
    return (found == test.label).mean()


def curves_of(
    layer: greedy.Layer, test: greedy.Images, answers: Answers, sizes: np.ndarray
) -> dict[str, np.ndarray]:
    """Top-1 and relative residual by method, those of random channels among them."""
    score, d = functools.partial(jax.jit(top1), layer, test), layer.d

    def curve(masks, scaled=False):
        weighted = masks * (d / masks.sum(1, keepdims=True) if scaled else 1.0)
        found = [float(score(jnp.asarray(w, jnp.float32))) for w in weighted]
        return np.array([found, greedy.relative_residual(answers.K, weighted)])

    curves = {
        name: curve(masks, scaled=name in ("gfs", "gfs_few"))
        for name, masks in answers.masks.items()
    }
    draws = jax.random.split(jax.random.key(SEED + 1), DRAWS)
    orders = [jax.random.permutation(draw, d) for draw in draws]
    random = [curve(greedy.nested(order, sizes, d)) for order in orders]
    return {**curves, "random": np.mean(random, axis=0)}


def measure(case: Case) -> dict:
    """Supports, accuracy, residual and cost of every method for one layer."""
    source, shape = case.source, case.source.preprocessing.shape
    layer = greedy.find(case.network, case.variables, case.part, shape)
    n, sizes = min(case.calibration, len(source.train)), np.array(case.sizes)
    chosen = data.calibration_indices(source.train, n, SEED)
    run = functools.partial(jax.jit(greedy.reach), layer)
    test = greedy.carry(run, source, source.test, None)
    reach = functools.partial(greedy.carry, run, source, source.train, chosen)
    images = reach()
    reached = turns.seconds(reach)  # compiled above
    answers = select(case, layer, images)
    seconds = {
        name: {what: reached + s for what, s in spent.items()}
        for name, spent in answers.seconds.items()
    }
    return {
        **header("against_gfs"),
        "d": layer.d,
        "calibration_images": n,
        "gfs_batch": case.batch_size,
        "gfs_steps": case.steps,
        "test_images": len(test.label),
        "dense_top1": float(top1(layer, test, jnp.ones(layer.d))),
        "one_size": min(layer.d // 2, case.steps),
        "sizes": sizes.tolist(),
        "curves": {
            name: {
                "top1": np.round(values[0], 5).tolist(),
                "relative_residual": [float(f"{v:.5g}") for v in values[1]],
            }
            for name, values in curves_of(layer, test, answers, sizes).items()
        },
        "seconds": seconds,
        "costs": costs(case, layer, images),
    }


def costs(case: Case, layer: greedy.Layer, images: greedy.Images) -> dict:
    """Images that pass through the network, and multiply-adds, to one size and to all.

    "multiply_adds" of GFS runs the whole network for every candidate, "_shared" the
    part before the layer once for every image. An iteration of i-SpaSP is three passes
    of one summed image through the consumer (forward and back for the importance, one
    for the residual); all T are counted, though the support repeats sooner.
    """
    x, h = tuple(a[:1] for a in images.x), images.h[:1]
    image = jnp.zeros((1, *case.source.preprocessing.shape))
    d, n = layer.d, len(images.label)
    before = cost.multiply_adds(lambda image: greedy.reach(layer, image), image)
    after = cost.multiply_adds(
        lambda x, h: greedy.logits(layer, jnp.ones(d), x, h), x, h
    )

    def consumer(h):
        return greedy.consumer(layer, h)

    def iteration(h):
        def half_square(h):
            return 0.5 * jnp.square(consumer(h)).sum()

        return jax.grad(half_square)(h), consumer(h)

    turn = T * cost.multiply_adds(iteration, h)
    K = cost.multiply_adds(functools.partial(greedy.gram, layer), images.h)
    sizes = {"one_size": min(d // 2, case.steps), "all_sizes": case.steps}
    result: dict = {"per_image": {"before_layer": before, "from_layer": after}}
    for what, s in sizes.items():
        looped = turn * (1 if what == "one_size" else d)
        found = {
            "ispasp": {"images": n, "multiply_adds": n * before + looped},
            "gram": {"images": n, "multiply_adds": n * before + K + d * s},
        }
        for name, options in variants_of(d).items():
            seen = greedy.passes(d, s, options.get("candidates")) * case.batch_size
            found[name] = {
                "images": seen,
                "multiply_adds": seen * (before + after),
                "multiply_adds_shared": n * before + seen * after,
            }
        result[what] = found
    return result


BENCHMARK = Benchmark(
    file="against_gfs.jsonl",
    full={name: functools.partial(make, small=False) for name, make in CASES.items()},
    small={name: functools.partial(make, small=True) for name, make in CASES.items()},
    measure=lambda make: measure(make()),
    tables={"against_gfs": gfs_report.columns},
    pictures={"against_gfs.png": gfs_report.plot},
    text=gfs_report.text,
)
