"""The shipped networks once more, independent of the library: numpy in float64 on
torch's layouts and names, as torchvision, akamaster/pytorch_resnet_cifar10 and (with
same=True) TensorFlow's and Flax's authors define them. Slow and plain on purpose.

A state is a dict of float32 arrays by torch's names, images are (n, channels, h, w).
"""

import numpy as np


def make_conv(state, rng, name, out, channels, size):
    scale = np.sqrt(2 / (channels * size * size))
    kernel = rng.standard_normal((out, channels, size, size)) * scale
    state[f"{name}.weight"] = kernel.astype(np.float32)


def make_norm(state, rng, name, size):
    """Statistics as training leaves them, some scales negative."""
    sign = np.where(rng.random(size) < 0.2, -1, 1)
    state[f"{name}.weight"] = (rng.uniform(0.3, 1, size) * sign).astype(np.float32)
    for leaf in ("bias", "running_mean"):
        state[f"{name}.{leaf}"] = (0.3 * rng.standard_normal(size)).astype(np.float32)
    state[f"{name}.running_var"] = rng.uniform(0.5, 2, size).astype(np.float32)


def make_dense(state, rng, name, out, channels):
    kernel = rng.standard_normal((out, channels)) / np.sqrt(channels)
    state[f"{name}.weight"] = kernel.astype(np.float32)
    state[f"{name}.bias"] = rng.standard_normal(out).astype(np.float32)


def make_resnet(rng, depths, classes, bottleneck=False, cifar=False):
    state, base = {}, 16 if cifar else 64
    make_conv(state, rng, "conv1", base, 3, 3 if cifar else 7)
    make_norm(state, rng, "bn1", base)
    channels = base
    for stage, depth in enumerate(depths):
        width = base * 2**stage
        out = 4 * width if bottleneck else width
        for i in range(depth):
            name = f"layer{stage + 1}.{i}"
            sizes = (
                ((width, 1), (width, 3), (out, 1)) if bottleneck else ((out, 3),) * 2
            )
            before = channels
            for j, (size, kernel) in enumerate(sizes, 1):
                make_conv(state, rng, f"{name}.conv{j}", size, before, kernel)
                make_norm(state, rng, f"{name}.bn{j}", size)
                before = size
            if i == 0 and not cifar and (stage > 0 or bottleneck):
                make_conv(state, rng, f"{name}.downsample.0", out, channels, 1)
                make_norm(state, rng, f"{name}.downsample.1", out)
            channels = out
    make_dense(state, rng, "linear" if cifar else "fc", classes, channels)
    return state


MOBILENETV2 = (  # expansion, channels, blocks, stride
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def make_mobilenetv2(rng, classes):
    state = {}

    def layer(conv, norm, out, channels, size):
        make_conv(state, rng, conv, out, channels, size)
        make_norm(state, rng, norm, out)

    layer("features.0.0", "features.0.1", 32, 3, 3)
    channels, index = 32, 1
    for expansion, out, depth, _ in MOBILENETV2:
        for _ in range(depth):
            name, wide, at = f"features.{index}.conv", channels * expansion, 0
            if expansion > 1:
                layer(f"{name}.0.0", f"{name}.0.1", wide, channels, 1)
                at = 1
            layer(f"{name}.{at}.0", f"{name}.{at}.1", wide, 1, 3)
            layer(f"{name}.{at + 1}", f"{name}.{at + 2}", out, wide, 1)
            channels, index = out, index + 1
    layer("features.18.0", "features.18.1", 1280, channels, 1)
    make_dense(state, rng, "classifier.1", classes, 1280)
    return state


def pads(size, kernel, stride, same):
    """Pixels before and after: torch's kernel // 2, or TensorFlow's SAME."""
    if not same:
        return kernel // 2, kernel // 2
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def windows(x, kernel, stride, same, fill=0.0):
    """For each tap the pixels under it, (n, c, h, w), row by row of the kernel."""
    rows, columns = (pads(size, kernel, stride, same) for size in x.shape[2:])
    x = np.pad(x, ((0, 0), (0, 0), rows, columns), constant_values=fill)
    high, wide = ((size - kernel) // stride + 1 for size in x.shape[2:])
    for i in range(kernel):
        for j in range(kernel):
            yield x[
                :, :, i : i + stride * high : stride, j : j + stride * wide : stride
            ][:, :, :high, :wide]


def conv(state, name, x, stride=1, same=False):
    weight = state[f"{name}.weight"].astype(np.float64)
    out, channels, size, _ = weight.shape
    taps = weight.reshape(out, channels, -1)
    depthwise = channels == 1 and x.shape[1] == out
    term = "nchw,c->nchw" if depthwise else "nchw,oc->nohw"
    return sum(
        np.einsum(
            term, seen, taps[:, 0, t] if depthwise else taps[:, :, t], optimize=True
        )
        for t, seen in enumerate(windows(x, size, stride, same))
    )


def norm(state, name, x):
    scale, bias, mean, var = (
        state[f"{name}.{leaf}"].astype(np.float64)[:, None, None]
        for leaf in ("weight", "bias", "running_mean", "running_var")
    )
    return (x - mean) / np.sqrt(var + 1e-5) * scale + bias


WEIGHT_BIAS = ("weight", "bias")


def head(state, name, x):
    weight, bias = (state[f"{name}.{leaf}"].astype(np.float64) for leaf in WEIGHT_BIAS)
    return x.mean((2, 3)) @ weight.T + bias


def relu(x):
    return np.maximum(x, 0)


def resnet(state, x, same=False):
    """Logits of any ResNet; its form is read from the names."""
    cifar = "linear.weight" in state
    x = relu(norm(state, "bn1", conv(state, "conv1", x, 1 if cifar else 2)))
    if not cifar:
        x = np.max(list(windows(x, 3, 2, same, fill=-np.inf)), axis=0)
    for stage in range(1, 5):
        for i in range(100):
            name = f"layer{stage}.{i}"
            if f"{name}.conv1.weight" not in state:
                break
            stride = 2 if stage > 1 and i == 0 else 1
            skip, bottleneck = x, f"{name}.conv3.weight" in state
            strides = (1, stride, 1) if bottleneck else (stride, 1)
            for j, step in enumerate(strides, 1):
                x = conv(state, f"{name}.conv{j}", x, step, same)
                x = norm(state, f"{name}.bn{j}", x)
                x = relu(x) if j < len(strides) else x
            if f"{name}.downsample.0.weight" in state:
                skip = conv(state, f"{name}.downsample.0", skip, stride, same)
                skip = norm(state, f"{name}.downsample.1", skip)
            elif stride == 2:  # option A
                extra = (x.shape[1] - skip.shape[1]) // 2
                skip = np.pad(
                    skip[:, :, ::2, ::2], ((0, 0), (extra, extra), *2 * [(0, 0)])
                )
            x = relu(x + skip)
    return head(state, "linear" if cifar else "fc", x)


def mobilenetv2(state, x, same=False):
    """Logits of MobileNetV2; `same` pads as TensorFlow does."""

    def layer(conv_name, norm_name, x, stride=1, activation=True):
        x = norm(state, norm_name, conv(state, conv_name, x, stride, same))
        return np.clip(x, 0, 6) if activation else x

    x = layer("features.0.0", "features.0.1", x, 2)
    index = 1
    for expansion, out, depth, first in MOBILENETV2:
        for i in range(depth):
            name, skip, at = f"features.{index}.conv", x, 0
            if expansion > 1:
                x, at = layer(f"{name}.0.0", f"{name}.0.1", x), 1
            stride = first if i == 0 else 1
            x = layer(f"{name}.{at}.0", f"{name}.{at}.1", x, stride)
            x = layer(f"{name}.{at + 1}", f"{name}.{at + 2}", x, activation=False)
            if stride == 1 and skip.shape[1] == out:
                x = x + skip
            index += 1
    x = layer("features.18.0", "features.18.1", x)
    return head(state, "classifier.1", x)
