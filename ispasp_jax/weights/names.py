"""Trained weights: others' into our trees, ours into files for PyTorch.

Our trees are named so that torchvision's names follow: "layer1.0/conv1/kernel" of the
params is "layer1.0.conv1.weight" with axes OIHW. Whatever names come in (torchvision's;
those that `models.aliases` knows, such as timm's; "/"-joined paths of Flax)
are turned into torchvision's, layout included, and compared with what is expected.

PyTorch loads what `save_safetensors` wrote into layers as narrow as their tensors; here
torchvision's network, whatever was pruned in it:

    model = torchvision.models.resnet34()
    for name, tensor in safetensors.torch.load_file("pruned.safetensors").items():
        module, _, leaf = name.rpartition(".")
        layer = model.get_submodule(module)
        is_buffer = leaf.startswith("running_")
        setattr(layer, leaf, tensor if is_buffer else torch.nn.Parameter(tensor))
        if getattr(layer, "groups", 1) > 1:  # a depthwise convolution
            layer.groups = len(tensor)
"""

import json
import os
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Shaped

from ispasp_jax.errors import InputError
from ispasp_jax.graph.adapters import initialise
from ispasp_jax.graph.by_hand import leaves
from ispasp_jax.models import aliases as other_names
from ispasp_jax.models import beside, inputs, shapes
from ispasp_jax.weights import layouts
from ispasp_jax.weights.files import HEADER, read, weights_of
from ispasp_jax.weights.tensors import as_float32, is_key, some, write_whole

__all__ = [
    "classes",
    "read",
    "save_safetensors",
    "to_torchvision",
    "to_tree",
    "to_variables",
]

Arrays = Mapping[str, Shaped[np.ndarray, "..."]]


def to_variables(
    arrays: Arrays,
    network: nn.Module,
    input_shape: tuple[int, ...],
    *,
    expected: Any = None,
    aliases: Mapping[str, str] | None = None,
    new_head: bool = False,
    source: str = "the weights",
) -> dict[str, Any]:
    """The network's variables, filled with arrays of any known naming.

    Args:
      arrays: of `read`, or a torch state dict as numpy arrays.
      network: the architecture, at its own widths.
      input_shape: of one input, as `models.inputs` takes it.
      expected: shapes of narrower variables, of `Traced.take`; None at full width.
      aliases: names of layers besides those that `models.aliases` gives: theirs ->
        torchvision's, both joined with dots.
      new_head: the arrays' classifier, if any, is left out and a new one drawn.
      source: what error messages call the arrays.

    Raises:
      InputError: names or shapes differ, all of them listed.
    """
    known = {**other_names(network), **(aliases or {})}
    given = _torchvision_names(weights_of(arrays, source), known)
    wanted = shapes(network, input_shape) if expected is None else expected
    by_name = {
        layouts.name(path): layouts.torch_shape(path, leaf.shape)
        for path, leaf in leaves(wanted)
    }
    given = layouts.apart(given, by_name)
    left_out = tuple(beside(network))
    given = {
        name: array
        for name, array in given.items()
        if name in by_name or not name.startswith(left_out)
    }
    head = {}
    if new_head:
        head = _new_head(network, input_shape, by_name)
        given = {name: array for name, array in given.items() if name not in head}
    _check(given, by_name, head, network, input_shape, source)
    filled = {**head, **given}

    def fill(keys, leaf):
        path = "/".join(key.key for key in keys)
        array = layouts.to_flax(path, filled[layouts.name(path)], leaf.shape)
        return jnp.asarray(array, leaf.dtype)

    return jax.tree_util.tree_map_with_path(fill, wanted)


def to_tree(arrays: Arrays, like: Any, source: str = "the weights") -> Any:
    """Variables of any framework, filled with arrays by their key paths; random keys
    and counters stay as they are.

    Args:
      arrays: of `read`; their names are key paths joined by "/", of the variables or of
        a tree that holds them as one item, such as {"model": ..., "step": ...}.
      like: the variables that are to be filled, at the widths of the arrays.
      source: what error messages call the arrays.

    Raises:
      InputError: names or shapes differ.
    """
    given = {_bare(n): a for n, a in weights_of(arrays, source).items()}
    expected = {
        _bare(path): tuple(leaf.shape)
        for path, leaf in leaves(like)
        if not is_key(leaf) and jnp.issubdtype(leaf.dtype, jnp.floating)
    }
    parts = {name.partition("/")[0] for name in given}
    trees = [given, *(_under(part, given) for part in sorted(parts))]
    fitting = (t for t in trees if {n: a.shape for n, a in t.items()} == expected)
    result = next(fitting, None)
    if result is None:
        shapes = {name: array.shape for name, array in given.items()}
        odd = sorted(set(shapes.items()) ^ set(expected.items()))
        raise InputError(
            f"{source}: not the weights of this model, for example "
            f"{some(f'{name} {shape}' for name, shape in odd)}; give arrays under its "
            'own key paths, joined by "/".'
        )

    def fill(path, leaf):
        name = _bare(jax.tree_util.keystr(path, simple=True, separator="/"))
        return jnp.asarray(result[name], leaf.dtype) if name in expected else leaf

    return jax.tree_util.tree_map_with_path(fill, like)


def _bare(name: str) -> str:
    """A key path without the end of NNX's, which some ways to save leave out."""
    return name.removesuffix("/value")


def _under(part: str, arrays: Arrays) -> dict[str, np.ndarray]:
    """The arrays of one item of a tree."""
    result = (n for n in arrays if n.startswith(f"{part}/"))
    return {n.removeprefix(f"{part}/"): arrays[n] for n in result}


def to_torchvision(
    variables: Any, aliases: Mapping[str, str] | None = None
) -> dict[str, np.ndarray]:
    """The arrays of Linen variables in torch's layout, contiguous.

    Args:
      variables: of any Linen network, whatever was pruned in it.
      aliases: other names for its layers, as `to_variables` takes them: theirs -> ours,
        both joined with dots; of two for one layer the first. None: the names are ours,
        of a shipped network torchvision's.

    Returns:
      Arrays by theirs, or by ours where there is none.

    Raises:
      InputError: two arrays would have one name.
    """
    theirs = {ours: name for name, ours in reversed([*(aliases or {}).items()])}
    state = {}
    for path, leaf in leaves(jax.device_get(variables)):
        array = as_float32(np.asarray(leaf))
        module, _, last = layouts.name(path).rpartition(".")
        name = ".".join(filter(None, (theirs.get(module, module), last)))
        if name in state:
            raise InputError(
                f"two arrays would be called {name}; give every layer an alias of its "
                "own."
            )
        # safetensors writes wrong data, without a word, for arrays that are not.
        state[name] = np.ascontiguousarray(layouts.to_torch(path, array))
    return layouts.together(state)


def save_safetensors(
    path: str | os.PathLike,
    variables: Any,
    about: Mapping[str, Any],
    aliases: Mapping[str, str] | None = None,
) -> None:
    """Writes a network for PyTorch; `read`, `to_variables` bring it back bit by bit.

    Args:
      path: of the file; one that is there is replaced at once or not at all.
      variables: the network's.
      about: what goes into the header, as JSON under "ispasp_jax": the model's name,
        num_classes, widths, options and preprocessing.
      aliases: names for PyTorch, as `to_torchvision` takes them.

    Raises:
      InputError: the path is a folder or a symbolic link, or two arrays would have one
        name.
      OSError: nothing can be written there.
    """
    # transformers and others look for the framework under "format".
    metadata = {"format": "pt", HEADER: json.dumps(dict(about))}
    write_whole(path, to_torchvision(variables, aliases), metadata)


def _torchvision_names(arrays: Arrays, aliases: Mapping[str, str]) -> dict:
    """The arrays in torch's layout, by torchvision's names where those are known."""
    torchvision_names = {}
    for name, array in arrays.items():
        ours, array = name, np.asarray(array)
        if name.startswith(("params/", "batch_stats/")):
            ours = layouts.name(name)
            array = layouts.to_torch(name, array)
        module, _, leaf = ours.rpartition(".")
        leaf = layouts.EARLIER.get(leaf, leaf)
        ours = ".".join(filter(None, (aliases.get(module, module), leaf)))
        ours = aliases.get(name, ours)
        # Two names for one array: the second is reported as unexpected.
        torchvision_names[name if ours in torchvision_names else ours] = array
    return torchvision_names


def _new_head(
    network: nn.Module,
    input_shape: tuple[int, ...],
    expected: Mapping[str, tuple[int, ...]],
) -> dict[str, np.ndarray]:
    """The classifier as network.init draws it, by torchvision's names and layout; as
    much of it as a narrower network has."""
    names = _head_names(network, input_shape)

    @jax.jit  # compiles the classifier's part of the initialisation alone
    def draw(key):
        first = inputs(input_shape)
        variables = initialise(network, key, jnp.zeros(first.shape, first.dtype))
        return {p: a for p, a in leaves(variables) if layouts.name(p) in names}

    result = {}
    for path, array in jax.device_get(draw(jax.random.key(0))).items():
        name = layouts.name(path)
        whole = layouts.to_torch(path, array)
        result[name] = whole[tuple(map(slice, expected[name]))]
    return result


def classes(
    arrays: Mapping[str, np.ndarray], network: nn.Module, input_shape: tuple[int, ...]
) -> int:
    """How many classes arrays of any known naming tell apart; 0 where their classifier
    is not found.
    """
    given = _torchvision_names(arrays, other_names(network))
    head = [given[n] for n in _head_names(network, input_shape) if n in given]
    counts = {array.shape[0] for array in head if array.ndim}
    return counts.pop() if len(counts) == 1 else 0


def _head_names(network: nn.Module, input_shape: tuple[int, ...]) -> set[str]:
    """The classifier's arrays: those whose shape goes with the number of classes; none
    where the network does not say how many it has."""
    if not (isinstance(network, nn.Module) and hasattr(network, "num_classes")):
        return set()
    other = network.clone(num_classes=network.num_classes + 1)
    ours, theirs = (dict(leaves(shapes(n, input_shape))) for n in (network, other))
    return {
        layouts.name(p) for p, leaf in ours.items() if leaf.shape != theirs[p].shape
    }


def _check(given, expected, head, network, input_shape, source) -> None:
    """Raises InputError if names or shapes differ."""
    missing = [name for name in expected if name not in given and name not in head]
    unexpected = [name for name in given if name not in expected]
    wrong = {
        name: (array.shape, expected[name])
        for name, array in given.items()
        if name in expected and array.shape != expected[name]
    }
    if not (missing or unexpected or wrong):
        return
    classifier = _head_names(network, input_shape)
    longer = all(
        len(shape) == len(right) and shape[1:] == right[1:]
        for shape, right in wrong.values()
    )
    if wrong and longer and classifier >= wrong.keys() and not missing + unexpected:
        (classes, *_), _ = next(iter(wrong.values()))
        raise InputError(
            f"{source}: trained for {classes} classes, but {network.num_classes} are "
            f"wanted; give data with {classes} classes, or ask for a new, untrained "
            "classifier (new_head)."
        )
    if missing and classifier >= set(missing) and not unexpected and not wrong:
        raise InputError(
            f"{source}: the classifier is missing ({some(missing)}); give weights with "
            "one, or ask for a new, untrained one (new_head)."
        )
    faults = {
        "missing": missing,
        "unexpected": unexpected,
        "of another shape": [
            f"{name} {shape} instead of {right}"
            for name, (shape, right) in wrong.items()
        ],
    }
    listed = "; ".join(
        f"{fault}: {some(names)}" for fault, names in faults.items() if names
    )
    raise InputError(
        f"{source}: not the weights of this network, which has {len(expected)} arrays "
        f"({listed}); give the model that they were trained as."
    )
