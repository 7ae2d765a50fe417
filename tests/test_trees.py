"""Channels of any pytree: cut and masked by path, and what is refused."""

import collections
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.core import FrozenDict

from ispasp_jax.errors import InputError
from ispasp_jax.graph import by_hand, trees
from ispasp_jax.graph.by_hand import Group

KEPT = np.array([0, 2, 5])


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Layer:
    """As an Equinox module is: fields, some static, some functions, some None."""

    weight: jax.Array
    bias: jax.Array | None
    activation: object = dataclasses.field(metadata={"static": True}, default=None)


Pair = collections.namedtuple("Pair", "first second")


def dense(rows, columns):
    return np.arange(1.0, 1 + rows * columns, dtype=np.float32).reshape(rows, columns)


def vector(d=6):
    return np.arange(1.0, 1 + d, dtype=np.float32)


#: Tree, axes, and the paths that have to be cut, with the axes.
TREES = {
    "dict": ({"a": {"w": dense(3, 6), "b": vector()}}, [("a/*", -1)], "a/w:1 a/b:0"),
    "frozen": (FrozenDict({"a": {"w": dense(3, 6)}}), [("a/*", -1)], "a/w:1"),
    "list": ({"layers": [dense(3, 6), dense(6, 2)]}, None, "layers/0:1 layers/1:0"),
    "list glob": (
        {"layers": [{"w": dense(2, 6)}, {"w": dense(6, 2)}]},
        [("layers/0/*", 1), ("layers/1/*", 0)],
        "layers/0/w:1 layers/1/w:0",
    ),
    "tuple": ((dense(3, 6), (vector(), None)), [("0", 1), ("1/*", 0)], "0:1 1/0:0"),
    "named tuple": (Pair(dense(3, 6), [vector()]), [("*", -1)], "first:1 second/0:0"),
    "module": (
        {
            "up": Layer(dense(6, 3), vector(), jax.nn.relu),
            "down": Layer(dense(2, 6), None),
        },
        [("up/*", 0), ("down/weight", 1)],
        "up/weight:0 up/bias:0 down/weight:1",
    ),
    "bare": (vector(), [("", 0)], ":0"),
    "no arrays": (
        {"a": {"w": dense(3, 6), "name": "relu", "f": print, "n": 3, "none": None}},
        [("a/*", -1)],
        "a/w:1",
    ),
    "counter": (  # as Haiku keeps its averages
        {"norm/~/mean_ema": {"counter": np.int32(7), "average": dense(1, 6)}},
        [("norm/~/mean_ema/*", -1)],
        "norm/~/mean_ema/average:1",
    ),
    "both axes": ({"w": dense(6, 6)}, [("w", -1), ("w", -2)], "w:0 w:1"),
    "one axis twice": ({"w": dense(3, 6)}, [("w", -1), ("*", 1)], "w:1"),
    "brackets": (
        {"block[0]": {"w": dense(3, 6)}, "block0": {"w": dense(3, 6)}},
        [("block[0]/*", -1)],
        "block[0]/w:1",
    ),
    "set": (
        {"b0": vector(), "b1": vector(), "b2": vector()},
        [("b[01]", 0)],
        "b0:0 b1:0",
    ),
    "star in a name": ({"a*": vector(), "ab": vector()}, [("a*", 0)], "a*:0"),
    "ordered": (collections.OrderedDict(z=vector(), a=vector()), [("z", 0)], "z:0"),
    "abstract": (
        {"w": jax.ShapeDtypeStruct((3, 6), "float32")},
        [("w", -1)],
        "w:1",
    ),
}


def expected(tree, cuts, masked):
    """By numpy and hand-written cuts, "path:axis path:axis"."""
    todo = collections.defaultdict(list)
    for part in cuts.split():
        path, _, axis = part.rpartition(":")
        todo[path].append(int(axis))

    def visit(path, leaf):
        for axis in todo.get(trees.key_path(path), []):
            if isinstance(leaf, jax.ShapeDtypeStruct):
                shape = [3 if i == axis else n for i, n in enumerate(leaf.shape)]
                return leaf if masked else jax.ShapeDtypeStruct(shape, leaf.dtype)
            if masked:
                leaf = np.swapaxes(np.array(leaf), 0, axis)
                leaf[[1, 3, 4]] = 0
                leaf = np.swapaxes(leaf, 0, axis)
            else:
                leaf = np.delete(leaf, [1, 3, 4], axis)
        return leaf

    return jax.tree_util.tree_map_with_path(visit, tree)


def assert_same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        if isinstance(b, np.ndarray | jax.Array):
            np.testing.assert_array_equal(a, b)
        else:
            assert a == b


@pytest.mark.parametrize("kept", ["indices", "list", "mask", "jax"])
@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize("name", TREES)
def test_any_tree_is_cut_and_masked(name, on_device, kept):
    tree, axes, cuts = TREES[name]
    group = Group("g", axes=axes or [("layers/0", -1), ("layers/1", 0)])
    group = group._replace(axes=tuple(group.axes))
    if on_device:
        tree = jax.tree.map(
            lambda a: jnp.asarray(a) if isinstance(a, np.ndarray) else a, tree
        )
    alive = np.isin(np.arange(6), KEPT)
    given = {"list": [0, 2, 5], "mask": alive, "jax": jnp.asarray(KEPT)}.get(kept, KEPT)
    assert by_hand.width(tree, group) == 6
    taken, masked = by_hand.take(tree, group, given), by_hand.mask(tree, group, given)
    assert_same(taken, expected(tree, cuts, masked=False))
    assert_same(masked, expected(tree, cuts, masked=True))
    if name != "abstract":
        assert_same(by_hand.take(masked, group, given), taken)
    kinds = [type(leaf) for leaf in jax.tree.leaves(tree)]
    assert [type(leaf) for leaf in jax.tree.leaves(taken)] == kinds
    assert [type(leaf) for leaf in jax.tree.leaves(masked)] == kinds


def test_nan_is_masked():
    tree = {"w": np.array([1.0, np.nan, 2.0])}
    group = Group("g", axes=(("w", 0),))
    np.testing.assert_array_equal(by_hand.mask(tree, group, [0, 2])["w"], [1, 0, 2])


def test_states_and_modules_of_nnx():
    module = nnx.Linear(3, 6, rngs=nnx.Rngs(0))
    group = Group("g", axes=(("*/value", -1),))
    for tree in (nnx.state(module), module):
        cut = by_hand.take(tree, group, KEPT)
        assert type(cut) is type(tree)
        np.testing.assert_array_equal(cut.kernel[...], module.kernel[...][:, KEPT])
        np.testing.assert_array_equal(cut.bias[...], module.bias[...][KEPT])


def test_frozen_variables_stay_frozen():
    """And paths of Linen variables begin below the collection."""
    layers = {"a": {"kernel": dense(3, 6), "bias": vector()}, "b": {"w": dense(6, 2)}}
    variables = FrozenDict({"params": layers, "batch_stats": {"a": {"mean": vector()}}})
    group = Group("a", axes=(("a/*", -1), ("b/w", -2)))
    cut = by_hand.take(variables, group, KEPT)
    assert isinstance(cut, FrozenDict) and by_hand.width(cut, group) == len(KEPT)
    assert cut["batch_stats"]["a"]["mean"].shape == (len(KEPT),)
    assert_same(cut.unfreeze(), by_hand.take(variables.unfreeze(), group, KEPT))


W = {"w": dense(3, 6), "b": vector(), "n": np.int32(3), "f": print}
AXES = (("w", -1), ("b", 0))
BAD = {
    "no array": (
        W,
        (*AXES, ("bias", 0)),
        KEPT,
        "no array matches 'bias'; the tree has",
    ),
    "no glob": (W, (("v*", 0),), KEPT, r"'v\*'; the tree has b, w"),
    "a list's path": ({"l": [vector()]}, (("l/1", 0),), KEPT, "the tree has l/0"),
    "none": ({"b": None}, (("b", 0),), KEPT, "no array matches 'b'; .* has no arrays"),
    "a scalar": (W, (("n", 0),), KEPT, "no array matches 'n'"),
    "a function": (W, (("f", 0),), KEPT, "no array matches 'f'"),
    "no axes": (W, (), KEPT, "names no axes"),
    "no axis": (W, (("w", -1), ("b", -2)), KEPT, r"'b' has shape \(6,\), .*no axis -2"),
    "no axis of a glob": (W, (("*", 1),), KEPT, r"'b' has shape \(6,\), .*no axis 1"),
    "other widths": (W, (("w", 0), ("b", 0)), KEPT, "disagree.*'w': 3"),
    "axes of one array": (W, (("w", 0), ("w", 1)), KEPT, "'w, axis 0': 3, 'w, axis 1'"),
    "two of a path": (
        {"a/b": {"c": vector()}, "a": {"b/c": vector()}},
        (("a/b/c", 0),),
        KEPT,
        "several arrays have the path 'a/b/c'",
    ),
    "keys": ({1: vector(), "b": vector()}, (("b", 0),), KEPT, "not a pytree"),
    "out of range": (W, AXES, [0, 6], r"in \[0, 6\).*got \[0, 6\]"),
    "negative": (W, AXES, [-1, 2], "must be ascending"),
    "descending": (W, AXES, [2, 0], "must be ascending"),
    "twice": (W, AXES, [1, 1], "must be ascending"),
    "nothing": (W, AXES, [], "at least one"),
    "nobody": (W, AXES, np.zeros(6, bool), "at least one"),
    "a short mask": (W, AXES, np.ones(5, bool), "mask of length 6"),
    "a mask of ones": (W, AXES, [1, 0, 1, 0, 0, 1], "must be ascending"),
    "fractions": (W, AXES, [0.0, 1.0], "must be ascending"),
    "a number": (W, AXES, 3, "must be ascending"),
    "nested": (W, AXES, [[0, 1]], "must be ascending"),
    "ragged": (W, AXES, [[0], [1, 2]], "must be ascending"),
    "words": (W, AXES, "012", "must be ascending"),
    "nothing at all": (W, AXES, None, "got None"),
}


@pytest.mark.parametrize("change", [by_hand.take, by_hand.mask])
@pytest.mark.parametrize("tree, axes, kept, words", BAD.values(), ids=BAD)
def test_both_refuse_in_the_same_words(tree, axes, kept, words, change):
    group = Group("hidden.0", axes=axes)
    with pytest.raises(InputError, match=words) as caught:
        change(tree, group, kept)
    said = str(caught.value)
    assert "\n" not in said and ("hidden.0" in said or "pytree" in said)


@pytest.mark.parametrize("change", [by_hand.take, by_hand.mask])
def test_what_is_kept_is_known_outside_jit(change):
    group = Group("g", axes=AXES)
    tree = {"w": W["w"], "b": W["b"]}
    with pytest.raises(InputError, match="jit traced it"):
        jax.jit(lambda kept: change(tree, group, kept))(jnp.arange(2))
    traced = jax.jit(lambda t: change(t, group, KEPT))(tree)
    assert_same(traced, jax.tree.map(jnp.asarray, change(tree, group, KEPT)))


def test_paths_and_axes_alone_are_enough():
    """As an engine that knows the exact places asks."""
    tree = {"params": {"w": dense(6, 6)}, "other": [vector()]}
    axes = {"params/w": (0, -1), "other/0": (0,)}
    cut = trees.take(tree, axes, KEPT)
    np.testing.assert_array_equal(cut["params"]["w"], dense(6, 6)[np.ix_(KEPT, KEPT)])
    assert cut["other"][0].shape == (3,) and trees.width(tree, axes) == 6
    with pytest.raises(InputError, match="no array has the path 'params/v'"):
        trees.mask(tree, {"params/v": (0,)}, KEPT)
