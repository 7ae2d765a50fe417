"""Groups that a user names, held against what the equations say."""

import graph_models as models
import numpy as np
import pytest

from ispasp_jax import graph
from ispasp_jax.errors import InputError

MODEL, X = models.UNet(), models.images()
VARIABLES = models.variables(MODEL, X)


def traced(names):
    return graph.trace(MODEL, VARIABLES, X, names=names)


@pytest.mark.parametrize(
    "axes",
    {
        "all of them": {"Conv_1/*": -1, "ConvTranspose_0/kernel": -2},
        "one": {"Conv_1/bias": 0},
        "with the collection": {"params/Conv_1/kernel": 3},
        "several axes": {"Conv_1/kernel": (-1,), "ConvTranspose_0/kernel": [2]},
    }.values(),
)
def test_a_name_is_given_by_any_axes_of_one_group(axes):
    found, before = traced({"deep": axes}), traced(None)
    assert list(found) == ["deep" if n == "Conv_1" else n for n in before]
    plan = {"deep": graph.Cut(8, np.array([0, 5]))}
    for ours, theirs in zip(
        graph.trace(MODEL, VARIABLES, X).groups, found.groups, strict=True
    ):
        assert ours.axes == theirs.axes
    assert graph.check(found, VARIABLES, X, plan=plan) < 1e-5


def test_the_skip_of_a_concatenation_is_told_by_its_maker():
    """The kernel that reads both pieces tells neither."""
    found = traced({"skip": {"Conv_2/kernel": 2, "Conv_0/bias": 0}})
    assert found["skip"].makers == ("params/Conv_0/kernel",)


@pytest.mark.parametrize(
    ("names", "words"),
    {
        "nothing": ({"a": {}}, "names no axes"),
        "no such array": ({"a": {"Conv_9/*": 0}}, "no variable matches 'Conv_9/"),
        "no such axis": ({"a": {"Conv_1/bias": 1}}, "1 dimensions, and so no axis 1"),
        "another group's": (
            {"a": {"Conv_1/*": -1, "Conv_2/kernel": -1}},
            r"Conv_1/bias\[0\] carries the channels of 'Conv_1', .*Conv_2/kernel\[3\] "
            "those of 'Conv_2'",
        ),
        "too few": (
            {"a": {"Conv_2/kernel": 2}},
            "of 'Conv_0' and 'ConvTranspose_0'; name an axis of one alone, too "
            r"\(.*Conv_0/bias\[0\] for 'Conv_0'",
        ),
        "an output": ({"a": {"Conv_3/kernel": 3}}, r"kernel\[3\] stays.*an output"),
        "an input": ({"a": {"Conv_0/kernel": 2}}, r"kernel\[2\] stays.*an input"),
        "a position": ({"a": {"Conv_1/kernel": 0}}, "carries no channels"),
        "twice": ({"a": {"Conv_1/bias": 0}, "b": {"Conv_1/kernel": 3}}, "are one"),
        "taken": ({"Conv_2": {"Conv_1/bias": 0}}, "the name of another group"),
    }.values(),
)
def test_what_the_equations_do_not_say_is_refused(names, words):
    with pytest.raises(InputError, match=words) as error:
        traced(names)
    assert "\n" not in str(error.value)


def test_names_may_change_places():
    names = {"Conv_2": {"Conv_1/bias": 0}, "Conv_1": {"Conv_2/bias": 0}}
    found = traced(names)
    assert found["Conv_2"].width == 8 and found["Conv_1"].width == 6
