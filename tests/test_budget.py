"""Ratios and budgets as numbers of channels; budgets against every combination of
sizes.
"""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

import ispasp_jax
from ispasp_jax import budget
from ispasp_jax.budget import cost, timed
from ispasp_jax.cli import budgets, prune, train
from ispasp_jax.errors import InputError
from ispasp_jax.graph import Group
from ispasp_jax.graph.atoms import Atom
from ispasp_jax.numerals import numeral
from ispasp_jax.report import summary
from ispasp_jax.walk import curves
from ispasp_jax.walk.curves import Curve


def test_curves_survive_json():
    rng = np.random.default_rng(0)
    found = {"a": Curve(rng.random(4), rng.random(4), np.array([2, 0, 1]))}
    again = curves.from_json(json.loads(json.dumps(curves.to_json(found))))
    for ours, theirs in zip(found["a"], again["a"], strict=True):
        np.testing.assert_array_equal(ours, theirs)
    with pytest.raises(InputError, match="not curves"):
        curves.from_json([{"name": "a", "relative": [1]}])


def problem(seed, groups=3, d=6):
    """Convex curves, and costs with products of sizes."""
    rng = np.random.default_rng(seed)
    widths = {f"g{i}": d for i in range(groups)}
    found = {}
    for name in widths:
        steps = np.sort(rng.exponential(size=d))[::-1]
        damage = np.append(np.cumsum(steps[::-1])[::-1], 0)
        found[name] = Curve(np.sqrt(damage / damage[0]), damage, np.arange(d))
    terms = {(): 10.0}
    terms |= {(name,): rng.uniform(1, 3) for name in widths}
    terms |= {pair: rng.uniform(0, 1) for pair in itertools.combinations(widths, 2)}
    return found, cost.BySize(widths, terms), widths


@pytest.mark.parametrize("seed", range(6))
def test_a_budget_is_met_nearly_as_well_as_can_be(seed):
    found, macs, widths = problem(seed)
    _, params, _ = problem(seed + 100)
    costs = {"macs": macs, "params": params}
    targets = (budget.target("macs=70%"), budget.target("params=80%"))
    for wanted in (targets[:1], targets):
        sizes = budget.solve(found, costs, widths, budget.Asked(wanted))
        limits = {t.kind: t.limit(costs[t.kind].full) for t in wanted}
        assert all(costs[kind].total(sizes) <= limits[kind] for kind in limits)

        def damage(sizes):
            return sum(found[name].damage[size] for name, size in sizes.items())

        options = (
            dict(zip(widths, combination, strict=True))
            for combination in itertools.product(range(1, 7), repeat=3)
        )
        best = min(
            damage(option)
            for option in options
            if all(costs[k].total(option) <= limits[k] for k in limits)
        )
        everything = damage(dict.fromkeys(widths, 1))
        assert damage(sizes) - best <= 0.06 * everything
        # Nothing more could be given to any group.
        for name in widths:
            more = {**sizes, name: sizes[name] + 1}
            over = any(costs[k].total(more) > limits[k] for k in limits)
            assert over or sizes[name] == 6


def test_widths_obey_minimum_multiple_and_tolerance():
    found, macs, widths = problem(0, d=12)
    asked = budget.Asked((budget.target("macs=80%"),), None, 5, 4)
    sizes = budget.solve(found, {"macs": macs}, widths, asked)
    assert set(sizes.values()) <= {8, 12} and macs.total(sizes) <= 0.8 * macs.full
    by_tolerance = budget.solve(found, {}, widths, budget.Asked((), 0.4))
    for name, size in by_tolerance.items():
        assert found[name].relative[size] <= 0.4 < found[name].relative[size - 1]


def test_a_budget_out_of_reach_names_the_nearest_that_is_not():
    found, macs, widths = problem(1)
    asked = budget.Asked((budget.target("macs=1%"),), None, 3)
    with pytest.raises(InputError, match="ask for macs=") as error:
        budget.solve(found, {"macs": macs}, widths, asked)
    nearest = str(error.value).partition("ask for ")[2].split(" ")[0]
    met = asked._replace(targets=(budget.target(nearest),))
    sizes = budget.solve(found, {"macs": macs}, widths, met)
    assert set(sizes.values()) == {3}


@pytest.mark.parametrize(
    "text", ["macs", "macs=", "macs=0%", "macs=120%", "flops=3", "latency=3M", "x=1%"]
)
def test_what_is_no_target_is_refused(text):
    with pytest.raises(InputError, match="is no target"):
        budget.target(text)


def test_targets_are_read():
    assert budget.target("macs=60%") == ("macs", pytest.approx(0.6), True)
    assert budget.target("params=1.2M") == ("params", 1.2e6, False)
    assert budget.target("latency=8ms") == ("latency", 8.0, False)


def test_a_budget_is_what_the_flags_would_ask():
    asked = budget.Budget(
        macs="47%", params="1.2M", latency_ms=8.0, tolerance=0.1, round_to=4
    ).asked
    texts = ("macs=47%", "params=1.2M", "latency=8ms")
    assert asked == budget.Asked(tuple(map(budget.target, texts)), 0.1, 1, 4)
    assert ispasp_jax.Budget(macs=25_000_000).asked.targets == (("macs", 25e6, False),)
    assert budget.Budget(latency_ms="60%").asked.targets == (("latency", 0.6, True),)
    assert budget.Budget(tolerance=0.5).asked == budget.Asked((), 0.5, 1, None)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "asks for nothing"),
        ({"macs": "47"}, None),
        ({"macs": "147%"}, "macs is '147%'; expected a share of the dense"),
        ({"params": "many"}, "params is 'many'"),
        ({"latency_ms": 0}, "latency_ms is 0; .* such as 8.0"),
        ({"macs": True}, "macs is True"),
        ({"tolerance": 2}, "tolerance is 2; expected a number from 0 to 1"),
        ({"macs": "50%", "round_to": 0}, 'round_to is 0; .* above 0 or "auto"'),
        ({"macs": "50%", "round_to": "all"}, "round_to is 'all'"),
        ({"macs": "50%", "min_channels": 1.5}, "min_channels is 1.5; .* above 0.$"),
    ],
)
def test_a_budget_that_is_none_is_one_sentence(given, words, unchecked):
    if words is None:
        assert budget.Budget(**given).asked.targets == (("macs", 47.0, False),)
        return
    with pytest.raises(InputError, match=words) as error:
        budget.Budget(**given)
    assert "\n" not in str(error.value)


WIDTHS = {"layer1.0": 10, "layer1.1": 7, "layer2.0": 1}


@pytest.mark.parametrize(
    ("keep", "expected"),
    [
        (0.4, (4, 2, 1)),
        (1.0, (10, 7, 1)),
        (0.3, (3, 2, 1)),  # 0.3 · 10 is below 3 in binary
        ({"layer1.*": 0.5}, (5, 3, 1)),
        ({"*": 0.5, "layer1.1": 1.0}, (5, 7, 1)),
        ({"layer1.1": 1.0, "*": 0.5}, (5, 3, 1)),
    ],
)
def test_ratios_are_sizes_of_the_groups_given(keep, expected):
    named = dict(zip(WIDTHS, expected, strict=True))
    assert budget.sizes(WIDTHS, keep) == named
    groups = [Group(n, w, "inner", 0, (), (), (), Atom(w)) for n, w in WIDTHS.items()]
    assert budget.sizes(groups, keep) == named
    assert budget.sizes({group.name: group for group in groups}, keep) == named
    few = budget.sizes(dict([*WIDTHS.items()][:2]), keep)
    assert few == dict(zip(WIDTHS, expected[:2], strict=False))


@pytest.mark.parametrize("keep", [0, -1, 1.01, float("nan"), {"*": 2}])
def test_what_is_no_ratio_is_refused(keep):
    with pytest.raises(InputError, match="is not a ratio"):
        budget.sizes(WIDTHS, keep)


def test_a_glob_that_matches_nothing_tells_what_may_be_cut():
    with pytest.raises(InputError, match="'stream.*' matches no .*are layer1.0, lay"):
        budget.sizes(WIDTHS, {"stream.*": 0.5})


def test_sizes_are_rounded_up_within_the_width():
    sizes = {"layer1.0": 3, "layer1.1": 6, "layer2.0": 1}
    assert budget.rounded(sizes, WIDTHS, 2, 4) == {
        **{"layer1.0": 4, "layer1.1": 7, "layer2.0": 1}
    }


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A perceptron trained on digits, by the command."""
    folder = tmp_path_factory.mktemp("trained") / "mlp"
    assert train.main(["--model", "mlp", "--epochs", "6", "--out", str(folder)]) == 0
    return folder


def test_the_command_meets_budgets_and_solves_others_from_its_curves(
    trained, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    shared = ["--model=mlp", "--out=out"]
    run = [*shared, f"--weights={trained}", "--method=obs"]
    assert prune.main([*run, "--target", "macs=50%", "params=45%"]) == 0
    report = json.loads(Path("out/report.json").read_text())
    for kind, share in (("macs", 0.5), ("params", 0.45)):
        assert report["pruned"][kind] <= share * report["dense"][kind]
        assert report["budget"]["reached"][kind] == report["pruned"][kind]
    assert report["budget"]["curves"] == "measured"
    three = {"curves", "selection", "repair"}
    for name in ("compilation", "dense_passes"):
        assert report["seconds"][name].keys() == three
    assert report["budget"]["round_to"] is None
    (group,) = report["groups"]
    assert group["width"] >= 32 and group["kept"] % 8 == 0
    assert Path("out/curves.png").stat().st_size > 1000
    said = capsys.readouterr()
    assert "feasible" in said.err and "reached" in said.out

    # Another budget from the same curves, without images; then again as a real run.
    kept = Path("out/curves.json").read_text()
    any_width = ["--tolerance=0.5", "--round-to=1"]
    assert prune.main([*shared, "--dry-run", *any_width]) == 0
    dry = capsys.readouterr().out
    assert "largest predicted residual" in dry and "mlp on digits: input 8 × 8" in dry
    assert prune.main([*run, *any_width]) == 0
    report = json.loads(Path("out/report.json").read_text())
    assert report["budget"]["curves"] == "kept from an earlier run"
    assert Path("out/curves.json").read_text() == kept
    assert max(report["budget"]["predicted_residuals"].values()) <= 0.5
    (group,) = report["groups"]
    assert f" {group['kept']}  " in dry and report["budget"]["round_to"] == 1

    # Curves of other images are measured again.
    assert prune.main([*run, "--target=macs=30%", "--calibration-images=99"]) == 0
    report = json.loads(Path("out/report.json").read_text())
    assert report["budget"]["curves"] == "measured"


def test_latency_is_measured_on_the_present_device(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = ["--model=mlp", f"--weights={trained}", "--repair=none"]
    # Wide enough to be met whatever else the machine does.
    assert prune.main([*run, "--target", "latency=10s", "macs=60%", "--out=out"]) == 0
    report = json.loads(Path("out/report.json").read_text())
    assert 0 < report["budget"]["reached"]["latency"] <= 10_000
    assert report["budget"]["reached"]["latency"] == report["pruned"]["latency_ms"]
    held = json.loads(Path("out/curves.json").read_text())
    assert held["latency"]["batch_size"] == 32 and held["latency"]["terms"]
    reached, dense = report["budget"]["reached"], report["dense"]
    assert reached["macs"] == report["pruned"]["macs"] <= 0.6 * dense["macs"]


def clockwork(macs, bend=1.0, noise=0.0):
    """Milliseconds of networks by their multiply-adds, and how often it was asked; not
    what the model of the latency says.
    """
    asked = []
    drawn = np.random.default_rng(0)

    def milliseconds(sizes):
        asked.append(sizes)
        share = macs.total(sizes) / macs.full
        slower = 1 + noise * drawn.uniform(-1, 1)
        return 10 * (0.2 + 0.8 * share**bend) * slower, 10.0 * slower

    return milliseconds, asked


@pytest.mark.parametrize("bend", [0.4, 1.0, 3.0])
@pytest.mark.parametrize("target", ["latency=45%", "latency=70%", "latency=8ms"])
def test_a_latency_is_reached_as_it_is_measured(bend, target):
    found, macs, widths = problem(3, groups=6, d=64)
    _, model, _ = problem(4, groups=6, d=64)  # the model is another one
    milliseconds, asked = clockwork(macs, bend, noise=0.005)
    wanted = budget.target(target)
    told = []
    costs = {"latency": model, "macs": macs}
    result = timed.within(
        found, costs, widths, budget.Asked((wanted,)), milliseconds, told.append
    )
    limit = wanted.limit(result.dense)
    assert 0.95 * limit <= result.pruned <= limit
    assert len(asked) == len(told) <= 8


def test_a_latency_that_other_targets_reach_is_left_alone():
    found, macs, widths = problem(3, groups=6, d=64)
    milliseconds, asked = clockwork(macs)
    targets = (budget.target("latency=90%"), budget.target("macs=50%"))
    costs = {"latency": macs, "macs": macs}
    result = timed.within(found, costs, widths, budget.Asked(targets), milliseconds)
    assert len(asked) == 1 and 5 < result.pruned <= 6


def test_a_latency_between_two_widths_takes_the_faster():
    found, macs, widths = problem(3, groups=1, d=64)
    milliseconds, asked = clockwork(macs)
    wanted = budget.Asked((budget.target("latency=70%"),), round_to=32)
    result = timed.within(found, {"latency": macs}, widths, wanted, milliseconds)
    assert result.sizes == {"g0": 32} and result.is_met
    assert len(asked) == 2  # no network is timed twice


def test_a_latency_out_of_reach_says_what_is_not():
    found, macs, widths = problem(3, groups=6, d=64)

    def stuck(sizes):
        return 9.0 + sizes["g0"] / 64, 10.0

    asked = budget.Asked((budget.target("latency=50%"),))
    words = r"fastest takes 9.02 ms of 10.0 .* about latency=91% or more"
    with pytest.raises(InputError, match=words):
        timed.within(found, {"latency": macs}, widths, asked, stuck)


def test_a_network_that_is_faster_than_asked_says_so():
    times = {"dense": 10.0, "pruned": 4.0}
    record = {**a_report()["budget"], "asked": ["latency=50%"]}
    found, word = budgets.timed_again(record, *times.values())
    assert found["latency_missed"] == pytest.approx(-0.2)
    assert "4.00 ms at the end, 20% less than the 5.00 asked" in word
    assert budgets.timed_again(record, 10.0, 4.8)[1] is None
    both = {**record, "asked": ["latency=50%", "macs=50%"]}
    assert budgets.timed_again(both, *times.values())[1] is None


def a_report(**more):
    """Of a run with a latency target."""
    groups = [{"name": "a", "width": 8, "kept": 4, "relative_residual": 0.75}]
    record = {
        "asked": ["latency=50%", "macs=90%"],
        "limits": {"latency": 1.0, "macs": 54_000.0},
        "tolerance": None,
        "repaired": True,
        "feasible": {"latency": [0.1, 2.0], "macs": [1e4, 6e4]},
        "reached": {"latency": 0.5, "macs": 30_000.0},
        "predicted_residuals": {"a": 0.25},
    }
    costs = {"params": 100, "batch_size": 32}
    return {
        **{"model": "m", "data": "d", "method": "obs", "seed": 0, "device": "x"},
        "groups": groups,
        "budget": record,
        "dense": {**costs, "macs": 60_000, "latency_ms": 4.0},
        "pruned": {**costs, "macs": 30_000, "latency_ms": 1.5},
        "stages": [{"stage": "dense", "top1": 0.5, "loss": 1234.5, "seconds": 0.25}],
        "seconds": {"total": 12.34},
        "notes": [],
        **more,
    }


def timed_again(found):
    """The report with the latencies of the finished network in its budget."""
    times = [found[name]["latency_ms"] for name in ("dense", "pruned")]
    record, word = budgets.timed_again(found["budget"], *times)
    return {**found, "budget": record}, word


def test_a_report_knows_one_latency_and_one_residual():
    found, word = timed_again(a_report())
    assert word is None
    said = summary(found)
    for line in said.splitlines():
        if line.startswith("ms"):
            assert "1.50" in line and "37.5%" in line
    assert said.count("0.250") == 3 and "0.750" not in said  # and 0.25 seconds
    assert found["budget"]["limits"]["latency"] == 2.0  # half of what dense takes now
    found, word = timed_again(a_report(pruned={**found["pruned"], "latency_ms": 3.0}))
    assert "3.00 ms at the end, 50% more than the 2.00 asked" in word
    assert found["budget"]["latency_missed"] == 0.5
    del found["budget"]
    said = summary(found)
    assert "0.750" in said and "residual as cut: " in said and "predicted" not in said


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (60980.0, "60,980"),
        (60980, "60,980"),
        (1.2e9, "1,200,000,000"),
        (0.19312, "0.193"),
        (1.8772, "1.88"),
        (12.345, "12.3"),
        (0.0004, "0.000"),
        (0, "0"),
        (None, "-"),
    ],
)
def test_every_number_is_shown_alike(value, shown):
    assert numeral(value) == shown


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--target=macs=0.1%"], "can go down to"),
        (["--target=macs=50%", "--keep=0.5"], "were both given"),
        (["--target=speed=2"], "is no target"),
        (["--curves=none.json"], "is for --target"),
        (["--target=macs=50%", "--curves=none.json"], "none.json cannot be used"),
        (["--tolerance=2"], "from 0 to 1"),
    ],
)
def test_a_bad_budget_is_one_sentence(
    trained, tmp_path, monkeypatch, capsys, flags, words
):
    monkeypatch.chdir(tmp_path)
    assert prune.main(["--model=mlp", f"--weights={trained}", *flags]) == 2
    said = capsys.readouterr().err
    assert words in said.splitlines()[-1]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("width", "multiple"),
    [(1, 1), (3, 1), (8, 2), (12, 2), (16, 4), (31, 4), (32, 8), (64, 8), (1000, 8)],
)
def test_a_narrow_group_is_rounded_less(width, multiple):
    assert budget.regular(width) == multiple
    curve = Curve(*np.linspace(1, 0, width + 1)[None].repeat(2, 0), np.arange(width))
    allowed = budget.candidates({"a": curve}, {"a": width}, budget.Asked(round_to=None))
    steps = {int(s) % multiple for s in allowed["a"] if s < width}
    assert steps <= {0} and len(allowed["a"]) >= min(width, 4)
    asked = budget.Asked(round_to=8)  # who says 8 has 8
    assert budget.candidates({"a": curve}, {"a": width}, asked)["a"][0] == min(8, width)
