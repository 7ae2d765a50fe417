"""Networks in JAX, with their batch norms folded, as ONNX in onnxruntime, and in
PyTorch where it is installed: whether the outputs are the same, and what a batch takes.

    ISPASP_DATA=DIR python benchmarks/export_latency.py [--only vit ...] [--small]

ResNet56, MobileNetV2 and EfficientNet-Lite0 have their published weights, ResNet34 and
ResNet50 random ones, the vision transformer and the U-Net of examples/ are trained
first. Each is pruned to one half of its hidden channels (i-SpaSP, least squares),
written as it is and folded, and timed at batch 1 and 32; all programs of a network take
turns. Inputs are real images. The difference is the largest of any output, as a share
of the largest output, at batch 1 and 3. PyTorch has the same arrays, its default layout
and no compiler. About twenty minutes on two CPU cores; --small does the transformer,
hardly trained.
"""

import functools
import importlib.util
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import ispasp_jax
from benchmarks.benchmark import Benchmark, Lines, data_folder, header, table
from benchmarks.timings import turns
from benchmarks.timings.cases import example, random_variables
from ispasp_jax import export, models, report, weights
from ispasp_jax.budget import cost

KEEP, BATCHES, REPEATS = 0.5, (1, 32), 7
RUNTIMES = ("jax", "folded", "onnxruntime", "pytorch")


class Trained(NamedTuple):
    """A network, its arrays, images as it takes them; whether PyTorch has it, too."""

    model: Any
    variables: Any
    images: np.ndarray
    torch: bool = True


def resnet56() -> Trained:
    """CIFAR-10's."""
    file = data_folder() / "weights" / "cifar10_resnet56.safetensors"
    model = models.create("resnet56", 10)
    arrays, _ = weights.read(file)
    with np.load(data_folder() / "cifar10" / "cifar10_lossless.npz") as held:
        images = held["x_train"][:256].astype(np.float32) / 255
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    images = ((images - mean) / std).astype(np.float32)
    return Trained(model, weights.to_variables(arrays, model, (32, 32, 3)), images)


def mobilenetv2() -> Trained:
    """ImageNet's, with TensorFlow's padding."""
    file = data_folder() / "weights" / "mobilenet_v2_imagenet_tf.safetensors"
    model = models.create("tf_mobilenetv2", 1000)
    arrays, _ = weights.read(file)
    variables = weights.to_variables(arrays, model, (224, 224, 3))
    images = _imagenet().astype(np.float32) / 127.5 - 1
    return Trained(model, variables, images)


def efficientnet_lite0() -> Trained:
    """ImageNet's."""
    from safetensors.numpy import load_file

    module = example("efficientnet_lite0")
    file = data_folder() / "weights" / "efficientnet_lite0.safetensors"
    (images,) = module.batches(_imagenet(), 64)
    return Trained(
        module.EfficientNetLite(), module.from_torch(load_file(file)), images
    )


def imagenet(name: str) -> Trained:
    """A network of ImageNet's size with random weights."""
    model = models.create(name, 1000)
    images = _imagenet().astype(np.float32) / 127.5 - 1
    return Trained(model, random_variables(model, images.shape[1:]), images)


@functools.cache
def _imagenet() -> np.ndarray:
    images, _ = example("efficientnet_lite0").read(data_folder() / "imagenet" / "train")
    return images[:64]


def vit(steps: int = 400) -> Trained:
    """The vision transformer of examples/, on digits."""
    module = example("linen_vit")
    images, _, labels, _ = module.digits()
    model = module.ViT()
    variables = module.train(model, images, labels, steps)
    return Trained(model, variables, images[:256], torch=False)


def unet(steps: int = 400) -> Trained:
    """The U-Net of examples/, on discs and squares."""
    module = example("linen_unet")
    images, labels = module.shapes(256, 0)
    model = module.UNet()
    variables = module.train(model, images, labels, steps)
    return Trained(model, variables, images, torch=False)


def measure(make: Callable[[], Trained]) -> dict[str, Any]:
    """A row: what the network costs, differences and times, dense and pruned."""
    model, variables, images, known = make()
    batches = [*images.reshape(-1, 32, *images.shape[1:])]
    pruned = ispasp_jax.prune(model, variables, batches, KEEP)
    both = {
        "dense": export.Runnable(pruned.traced.function, variables, (images,)),
        "pruned": export.Runnable(pruned.apply, pruned.variables, (images,)),
    }
    with tempfile.TemporaryDirectory() as folder:
        written = {name: _written(one, Path(folder)) for name, one in both.items()}
    if known and importlib.util.find_spec("torch"):
        for name, one in both.items():
            written[name][1]["pytorch"] = _torch(model, one)
    times = []
    for batch in BATCHES:
        calls = {
            f"{name} {runtime}": functools.partial(call, images[:batch])
            for name, (_, runtimes) in written.items()
            for runtime, call in runtimes.items()
        }
        times.append({"batch": batch, **turns.turns(calls, REPEATS)})
    dense, small = pruned.traced, ispasp_jax.trace(*both["pruned"][:2], images[:1])
    return {
        "macs": {"dense": cost.macs(dense), "pruned": cost.macs(small)},
        "params": {"dense": cost.parameters(dense), "pruned": cost.parameters(small)},
        "differences": {name: found for name, (found, _) in written.items()},
        "times": times,
        **header("export_latency"),
    }


def _written(one: export.Runnable, folder: Path):
    """Largest differences by runtime, and what calls each."""
    report.say("    writing")
    folded = export.fold(one, tolerance=np.inf)
    plain = export.onnx(one, folder / "plain.onnx", tolerance=np.inf)
    together = export.onnx(folded, folder / "folded.onnx", tolerance=np.inf)
    apart = examples_difference(one, folded)
    found = {
        "folded": apart,
        "onnxruntime": plain.largest_difference,
        "onnxruntime, folded": together.largest_difference,
        "nodes": plain.nodes,
        "nodes, folded": together.nodes,
    }
    held, inside = jax.device_put((one.variables, folded.variables))
    return found, {
        "jax": functools.partial(jax.jit(one.function), held),
        "folded": functools.partial(jax.jit(folded.function), inside),
        "onnxruntime": _session(plain.path),
    }


def _torch(model: Any, one: export.Runnable) -> Callable[[np.ndarray], Any]:
    """PyTorch's, as wide as the arrays."""
    from benchmarks.networks import torch_networks  # an extra

    twin = torch_networks.twin(model, weights.to_torchvision(one.variables))
    (images,) = one.inputs
    expected = np.asarray(jax.jit(one.function)(one.variables, images[:2]))
    apart = np.abs(torch_networks.logits(twin, images[:2]) - expected).max()
    if apart > 1e-4 * np.abs(expected).max():
        raise ValueError(f"PyTorch's outputs differ by {apart}")
    return functools.partial(torch_networks.logits, twin)


def examples_difference(one: export.Runnable, other: export.Runnable) -> float:
    """The largest difference of two networks, as the exports measure theirs."""
    apply = jax.jit(other.function)
    return export.examples.largest_difference(
        jax.jit(one.function),
        one.variables,
        lambda *x: jax.tree.leaves(apply(other.variables, *x)),
        one.inputs,
    )


def _session(path: Path) -> Callable[[np.ndarray], Any]:
    import onnxruntime  # an extra

    options = onnxruntime.SessionOptions()
    # Its threads would go on spinning while the next program is timed.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(
        path, options, providers=["CPUExecutionProvider"]
    )
    (given,) = session.get_inputs()
    return lambda images: session.run(None, {given.name: images})


def differences(rows: list[dict[str, Any]]) -> Lines:
    """Columns of how far the files are from the networks."""

    def smaller(row, what, unit, form):
        return " → ".join(
            f"{row[what][name] / unit:{form}}" for name in ("dense", "pruned")
        )

    def both(row, what):
        return ", ".join(
            f"{row['differences'][name][what]:.1g}" for name in ("dense", "pruned")
        )

    columns = {
        "network": lambda r: r["row"],
        "multiply-adds, M": lambda r: smaller(r, "macs", 1e6, ".1f"),
        "parameters, M": lambda r: smaller(r, "params", 1e6, ".2f"),
        "onnxruntime": lambda r: both(r, "onnxruntime"),
        "folded": lambda r: both(r, "folded"),
        "operators": lambda r: str(r["differences"]["dense"]["nodes"]),
        "folded ": lambda r: str(r["differences"]["dense"]["nodes, folded"]),
    }
    return table(rows, columns)


def times(rows: list[dict[str, Any]]) -> Lines:
    """Columns of milliseconds."""

    def column(name):
        return lambda pair: (
            f"{1e3 * pair[1][name]['seconds']:.2f}" if name in pair[1] else None
        )

    names = [
        f"{name} {runtime}" for name in ("dense", "pruned") for runtime in RUNTIMES
    ]
    columns = {
        "network": lambda pair: pair[0],
        "batch": lambda pair: str(pair[1]["batch"]),
        **{name: column(name) for name in names},
    }
    return table([(r["row"], t) for r in rows for t in r["times"]], columns)


BENCHMARK = Benchmark(
    file="export_latency.jsonl",
    full={
        "resnet56": resnet56,
        "tf_mobilenetv2": mobilenetv2,
        "efficientnet_lite0": efficientnet_lite0,
        **{
            name: functools.partial(imagenet, name) for name in ("resnet34", "resnet50")
        },
        "vit": vit,
        "unet": unet,
    },
    small={"vit": functools.partial(vit, 20)},
    measure=measure,
    tables={"export differences": differences, "export latency": times},
)
