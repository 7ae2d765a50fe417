"""The paper's first experiment: a two-layer ReLU network on MNIST, pruned to every
size.

    ISPASP_DATA=DIR python benchmarks/mnist_two_layer.py [--small]

Trains the network (512 neurons, 10 epochs), selects by i-SpaSP for every size at once
(one vmap over sizes on the summed activations of 1,280 training images), and plots
top-1 on the test images and the relative residual, both without any training after the
cut, beside neurons chosen at random (mean of 8 draws). About a minute on two CPU cores;
writes JSON and a plot.
"""

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.benchmark import SEED, Benchmark, data_folder, panels
from ispasp_jax import algorithm_1, batch_sum, data, models, report, training

HIDDEN, CALIBRATION, RANDOM_DRAWS = 512, 1280, 8


def trained(source: data.Source, epochs: int):
    """The dense network."""
    network = models.create("mlp", 10, hidden=(HIDDEN,))
    shape = source.preprocessing.shape
    variables = network.init(jax.random.key(SEED), jnp.zeros((1, *shape)))
    recipe = training.Recipe(epochs, 0.08, warmup_epochs=1)

    def epoch_batches(epoch):
        return data.batches(
            source.train,
            source.preprocessing,
            256,
            recipe="none",
            seed=SEED,
            epoch=epoch,
        )

    steps = len(source.train) // 256
    return network, training.fit(network, variables, epoch_batches, steps, recipe)


def hidden(variables, batches) -> jax.Array:
    """Hidden activations of all images, (n, 512)."""
    layer = variables["params"]["hidden.0"]

    def of(batch):
        x = jnp.asarray(batch.image[batch.weight > 0])
        x = x.reshape(len(x), -1)
        return jax.nn.relu(x @ layer["kernel"] + layer["bias"])

    return jnp.concatenate([of(batch) for batch in batches])


def measure(epochs: int) -> dict:
    """Everything that the plot shows."""
    source = data.open_source(f"idx:{data_folder()}/mnist")
    _, variables = trained(source, epochs)
    preprocessing, split = source.preprocessing, source.test
    chosen = data.calibration_indices(source.train, CALIBRATION, SEED)
    calibration = hidden(
        variables,
        data.batches(source.train, preprocessing, 256, indices=chosen),
    )
    test = hidden(variables, data.batches(split, preprocessing, 250))
    W1 = variables["params"]["output"]["kernel"]
    bias = variables["params"]["output"]["bias"]
    sizes = jnp.arange(1, HIDDEN + 1)

    @jax.jit
    def select(H):
        return jax.vmap(lambda s: algorithm_1(H, lambda h: h @ W1, s))(sizes)

    selection = select(batch_sum(calibration))
    keys = jax.random.split(jax.random.key(SEED), RANDOM_DRAWS)
    draws = jax.vmap(lambda key: jax.random.permutation(key, HIDDEN))(keys)
    supports = {
        "ispasp": selection.support[:, None],
        "random": draws[None] < sizes[:, None, None],
    }

    def score(support):
        logits = (test * support) @ W1 + bias
        V = (calibration * ~support) @ W1
        residual = jnp.linalg.norm(V) / jnp.linalg.norm(calibration @ W1)
        return (logits.argmax(-1) == split.labels).mean(), residual

    curves = {}
    for name, support in supports.items():
        top1, residual = (
            each.mean(1)
            for each in jax.lax.map(lambda draws: jax.lax.map(score, draws), support)
        )
        curves[name] = {"top1": top1.tolist(), "relative_residual": residual.tolist()}
    dense = (test @ W1 + bias).argmax(-1) == split.labels
    return {
        "calibration_images": CALIBRATION,
        "test_images": len(split),
        "random_draws": RANDOM_DRAWS,
        "dense_top1": float(dense.mean()),
        "sizes": sizes.tolist(),
        "most_iterations": int(selection.iterations.max()),
        "curves": curves,
    }


def plot(result: dict):
    """Two panels over the size."""
    figure, ((left, right),) = panels((9, 3.4), 1, 2)
    labels = {"ispasp": "i-SpaSP", "random": "random, mean of 8"}
    for name, curve in result["curves"].items():
        top1 = 100 * np.asarray(curve["top1"])
        left.plot(result["sizes"], top1, label=labels[name])
        right.plot(result["sizes"][:-1], curve["relative_residual"][:-1])
    left.axhline(100 * result["dense_top1"], color="grey", lw=0.8, ls="--")
    left.set(ylabel="top-1 %, no training after the cut")
    right.set(ylabel="relative residual", yscale="log")
    for panel in (left, right):
        panel.set(xlabel="neurons kept of 512")
        panel.grid(alpha=0.3)
    left.legend(loc="lower right")
    return figure


def text(result: dict) -> str:
    """A few sizes, for people."""
    lines = [["kept", "i-SpaSP top-1 %", "residual", "random top-1 %", "residual"]]
    for size in (8, 16, 32, 64, 128, 256, 512):
        line = [str(size)]
        for curve in result["curves"].values():
            line.append(f"{100 * curve['top1'][size - 1]:.2f}")
            line.append(f"{curve['relative_residual'][size - 1]:.3f}")
        lines.append(line)
    return f"dense top-1 {100 * result['dense_top1']:.2f} %\n{report.table(lines)}"


BENCHMARK = Benchmark(
    file="mnist_two_layer.json",
    full=10,
    small=1,
    measure=measure,
    pictures={"mnist_two_layer.png": plot},
    text=text,
)
