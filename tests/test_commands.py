"""train.py and prune.py from the outside: what they print, write and refuse."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import ispasp_jax
from ispasp_jax import data, training
from ispasp_jax.cli import prune, train
from ispasp_jax.graph import plans
from ispasp_jax.graph.by_hand import leaves
from ispasp_jax.selection import criteria
from ispasp_jax.weights import folders

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A perceptron trained on digits, by the command."""
    folder = tmp_path_factory.mktemp("trained") / "mlp"
    assert train.main(["--model", "mlp", "--epochs", "6", "--out", str(folder)]) == 0
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty present folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def listing(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


def test_prune_leaves_a_model_a_plan_and_a_report(trained, here, capsys):
    flags = ["--model=mlp", f"--weights={trained}", "--out=out", "--num_iters=7"]
    flags += ["--repair=none"]
    assert prune.main(flags) == 0
    assert listing(here) == [
        "out",
        "out/model",
        "out/model/config.json",
        "out/model/model.safetensors",
        "out/plan.json",
        "out/report.html",
        "out/report.json",
    ]
    report = json.loads(Path("out/report.json").read_text())
    assert {"model", "method", "data", "seed", "versions", "device"} <= set(report)
    assert [s["stage"] for s in report["stages"]] == ["dense", "pruned"]
    (group,) = report["groups"]
    assert (group["name"], group["width"], group["kept"]) == ("hidden.0", 256, 102)
    assert 0 < group["relative_residual"] < 1 and 1 <= group["iterations"] <= 7
    assert report["dense"]["macs"] == 64 * 256 + 256 * 10
    assert report["pruned"]["macs"] == 64 * 102 + 102 * 10
    assert report["pruned"]["params"] == 64 * 102 + 102 + 102 * 10 + 10
    seconds = report["seconds"]
    assert {"dense_forward", "selection", "total"} <= set(seconds)
    assert seconds["compilation"].keys() == seconds["dense_passes"].keys()
    spent = seconds["selection"] - seconds["compilation"]["selection"]
    passes = seconds["dense_passes"]["selection"]
    assert passes == pytest.approx(spent / seconds["dense_forward"])

    # The model loads with one call and scores what the report says.
    model = ispasp_jax.load("out/model")
    source = data.open_source("digits")
    images = next(data.batches(source.test, model.preprocessing, len(source.test)))
    right = np.asarray(model(images.image)).argmax(-1) == images.label
    assert right.mean() == pytest.approx(report["stages"][-1]["top1"], abs=1e-6)

    # The plan applied to the dense network gives the very arrays that were saved.
    name, cuts = plans.from_json(json.loads(Path("out/plan.json").read_text()))
    dense = ispasp_jax.load(trained)
    assert name == "mlp"
    variables = plans.apply(cuts, dense.traced, dense.variables)
    assert model.widths == {"hidden.0": 102}
    for (path, ours), (_, saved) in zip(
        leaves(variables), leaves(model.variables), strict=True
    ):
        np.testing.assert_array_equal(ours, saved, err_msg=path)
    said = capsys.readouterr()
    assert "hidden.0" in said.out and "39.8%" in said.out


def test_a_saved_pruned_network_gives_the_same_logits_bit_for_bit(trained, here):
    dense = ispasp_jax.load(trained)
    images = np.random.default_rng(0).normal(size=(16, 8, 8, 1)).astype(np.float32)
    pruned = ispasp_jax.prune(dense.network, dense.variables, [images], 0.3)
    model = dense.cut(pruned.plan, pruned.variables)
    ispasp_jax.save("small", model)
    loaded = ispasp_jax.load("small")
    np.testing.assert_array_equal(model(images), loaded(images))
    # It can be pruned and saved again.
    again = ispasp_jax.prune(loaded.network, loaded.variables, [images], 0.5)
    assert len(again.plan["hidden.0"].kept) == 38
    ispasp_jax.save("small", loaded.cut(again.plan, again.variables))
    assert ispasp_jax.load("small").widths == {"hidden.0": 38}


def test_a_run_writes_exports_and_says_how_far_they_are(trained, here, capsys):
    pytest.importorskip("onnxruntime")
    flags = ["--model=mlp", f"--weights={trained}", "--out=out", "--repair=none"]
    assert prune.main([*flags, "--export", "onnx", "stablehlo"]) == 0
    report = json.loads(Path("out/report.json").read_text())
    onnx, stablehlo = report["exports"]
    assert (onnx["format"], stablehlo["format"]) == ("onnx", "stablehlo")
    assert onnx["latency_ms"].keys() == {"dense", "pruned"} and onnx["nodes"] >= 5
    assert stablehlo["platforms"]
    for one in (onnx, stablehlo):
        assert one["largest_difference"] < 1e-5
        assert Path("out", one["file"]).stat().st_size == one["bytes"]
    assert "largest difference to the network in JAX" in capsys.readouterr().err


@pytest.mark.parametrize("name", criteria.CRITERIA)
def test_every_method_can_be_asked_for(name, trained, here, capsys):
    flags = ["--model=mlp", f"--weights={trained}", f"--method={name}", "--out=out"]
    flags += ["--calibration-images=200", "--repair=none"]
    code = prune.main(flags)
    if name == "bn_scale":
        assert code == 2 and listing(here) == []
        assert "group 'hidden.0': no batch norm" in capsys.readouterr().err
        return
    assert code == 0
    report = json.loads(Path("out/report.json").read_text())
    assert report["method"] == name and report["groups"][0]["kept"] == 102


def test_digits_from_nothing_at_a_small_size(here, capsys):
    """A CIFAR ResNet is trained, pruned with fine-tuning between blocks, fine-tuned."""
    assert train.main(["--model=resnet20", "--epochs=3", "--learning-rate=0.05"]) == 0
    assert Path("runs/resnet20-digits-dense/config.json").exists()
    flags = ["--model=resnet20", "--keep", "1", "layer3.2=0.5"]
    flags += ["--block-finetune-epochs=1", "--finetune-epochs=1"]
    assert prune.main(flags) == 0
    out = Path("runs/resnet20-digits-ispasp")
    report = json.loads((out / "report.json").read_text())
    dense, pruned, tuned = (s["top1"] for s in report["stages"])
    assert dense > 0.8 and pruned > 0.8 and tuned > 0.8
    assert [g["kept"] for g in report["groups"]] == [16] * 3 + [32] * 3 + [64, 64, 32]
    assert any("between" in n or "after each block" in n for n in report["notes"])
    assert "kept from an earlier run" in capsys.readouterr().err
    # The same command again replaces the finished run; another model may not.
    quick = ["--model=resnet20", "--keep=0.9", "--repair=none", "--finetune-epochs=0"]
    assert prune.main([*quick, "--method=l1", f"--out={out}"]) == 0
    assert json.loads((out / "report.json").read_text())["method"] == "l1"
    assert prune.main(["--model=mlp", f"--out={out}"]) == 2
    assert "holds a run of resnet20, not of mlp" in capsys.readouterr().err


def stop_after(monkeypatch, epochs):
    """Ctrl-C at the beginning of an epoch, once that many are done."""
    real, done = training.loop.train_step, []

    def step(*arguments):
        if len(done) == epochs * (1437 // 64) + 3:
            raise KeyboardInterrupt
        done.append(True)
        return real(*arguments)

    monkeypatch.setattr(training.loop, "train_step", step)


@pytest.fixture
def every_epoch(monkeypatch):
    monkeypatch.setattr("ispasp_jax.cli.learning.SECONDS_BETWEEN_STATES", 0)


def arrays(folder):
    return load_file(folder / "model.safetensors")


def test_training_resumes_where_it_was_stopped(here, monkeypatch, capsys, every_epoch):
    flags = ["--model=mlp", "--epochs=4", "--seed=3"]
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        assert train.main([*flags, "--out=a"]) == 130
    assert not Path("a").exists()
    assert train.main([*flags, "--out=a", "--resume"]) == 0
    assert "resuming after epoch 2" in capsys.readouterr().err
    assert train.main([*flags, "--out=b"]) == 0
    whole = arrays(Path("b"))
    for path, array in arrays(Path("a")).items():
        np.testing.assert_array_equal(array, whole[path], err_msg=path)
    assert listing(here) == listing(here) and not list(here.glob(".*"))


def test_pruning_resumes_where_it_was_stopped(
    trained, here, monkeypatch, capsys, every_epoch
):
    flags = ["--model=mlp", f"--weights={trained}", "--finetune-epochs=3"]
    with monkeypatch.context() as patch:
        stop_after(patch, 1)
        assert prune.main([*flags, "--out=a"]) == 130
    assert not Path("a").exists() and list(here.glob(".a.partial"))
    assert prune.main([*flags, "--out=a", "--resume", "--keep=0.5"]) == 2
    assert "other settings (keep)" in capsys.readouterr().err
    assert prune.main([*flags, "--out=a", "--resume"]) == 0
    assert "resuming after epoch 1" in capsys.readouterr().err
    assert prune.main([*flags, "--out=b"]) == 0
    whole = arrays(Path("b/model"))
    for path, array in arrays(Path("a/model")).items():
        np.testing.assert_array_equal(array, whole[path], err_msg=path)
    stages = [
        [(s["stage"], s["top1"]) for s in json.loads(p.read_text())["stages"]]
        for p in (Path("a/report.json"), Path("b/report.json"))
    ]
    assert stages[0] == stages[1] and len(stages[0]) == 4


BAD = {
    "model": (["--model=vgg"], "unknown model 'vgg'"),
    "own model": (["--model=no.such:thing"], "cannot be imported"),
    "method": (["--method=magic"], "unknown method 'magic'"),
    "data": (["--data=cloud"], "unknown data source"),
    "data folder": (["--data=folder:nowhere"], "nowhere"),
    "glob": (["--keep", "0.4", "layer9.*=1"], "'layer9.*' matches no group"),
    "keep 0": (["--keep=0"], "above 0 and at most 1"),
    "keep 2": (["--keep=2"], "above 0 and at most 1"),
    "keep nan": (["--keep=nan"], "above 0 and at most 1"),
    "keep text": (["--keep=half"], "expected K or GLOB=K"),
    "preset": (["--model=mlp", "--preset=paper"], "no ratios for 'mlp'"),
    "both": (["--preset=paper", "--keep=0.4"], "give one of them"),
    "batch": (["--batch-size=2000"], "fewer than a batch of 2000"),
    "stem": (["--model=mlp", "--stem=small"], "has no option stem"),
    "mean": (["--mean=0.5,0.5", "--std=1"], "expected one a channel"),
    "flag": (["--bogus"], "unrecognized arguments: --bogus"),
    "value": (["--seed=x"], "'x' is not a whole number"),
    "weights": (["--weights=nowhere"], "nowhere"),
    "std 0": (["--std=0"], "an std from 0.001 to 1"),
    "smoothing": (["--label-smoothing=5"], "a number from 0 to below 1"),
    "large seed": (["--seed=99999999999999999999"], "a whole number below 2^31"),
    "out": (["--model=mlp", "--out=/dev/null/x"], "/dev/null/x"),
    "no module": (["--model=:f"], "':f'"),
}


@pytest.mark.parametrize("flags, sentence", BAD.values(), ids=BAD)
def test_bad_input_is_one_sentence_and_leaves_nothing(flags, sentence, here, capsys):
    assert prune.main(flags) == 2
    said = capsys.readouterr()
    assert sentence in said.err and said.out == ""
    assert len(said.err.strip().splitlines()) == 1, said.err
    assert listing(here) == []


def rewrite(change):
    def do(folder):
        path = folder / "model.safetensors"
        save_file(change(load_file(path)), path)

    return do


def reconfigure(**new):
    def do(folder):
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **new}))

    return do


def with_nan(tensors):
    tensors["params/hidden.0/bias"][3] = np.nan
    return tensors


def truncate(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


DAMAGE = {
    "NaN": (rewrite(with_nan), "NaN or infinity in params/hidden.0/bias"),
    "missing array": (
        rewrite(lambda t: {k: v for k, v in t.items() if "output/bias" not in k}),
        "params/output/bias",
    ),
    "extra array": (
        rewrite(lambda t: {**t, "params/more": np.zeros(3, np.float32)}),
        "params/more",
    ),
    "wrong shape": (
        rewrite(lambda t: {**t, "params/output/bias": np.zeros(3, np.float32)}),
        "params/output/bias (3,)",
    ),
    "truncated": (truncate, "damaged"),
    "no arrays": (lambda f: (f / "model.safetensors").unlink(), "cannot be read"),
    "no config": (lambda f: (f / "config.json").unlink(), "not a model folder"),
    "not JSON": (lambda f: (f / "config.json").write_text("{"), "not JSON"),
    "foreign": (lambda f: (f / "config.json").write_text("[]"), "not of format 1"),
    "no options": (reconfigure(options=3), "config"),
    "no width": (reconfigure(widths={"hidden.0": 0}), "keeps no channel"),
    "odd widths": (reconfigure(widths=["a"]), "config"),
    "odd size": (
        reconfigure(preprocessing=dict(image_size="x", resize=None, mean=[0], std=[1])),
        "expected a number of pixels",
    ),
    "no group": (reconfigure(widths={"layer1.0": 3}), "layer1.0"),
    "other classes": (reconfigure(num_classes=7), "params/output"),
}


@pytest.mark.parametrize("change, sentence", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_model_folder_is_refused(change, sentence, trained, here, capsys):
    shutil.copytree(trained, "copy")
    change(Path("copy"))
    before = listing(here)
    assert prune.main(["--model=mlp", "--weights=copy"]) == 2
    said = capsys.readouterr().err
    assert sentence in said and len(said.strip().splitlines()) == 1, said
    assert listing(here) == before


def test_weights_of_another_architecture_are_refused(trained, here, capsys):
    assert prune.main(["--model=resnet20", f"--weights={trained}"]) == 2
    assert "holds a mlp, not a resnet20" in capsys.readouterr().err
    assert listing(here) == []


def test_an_out_folder_with_foreign_files_is_refused(trained, here, capsys):
    Path("mine").mkdir()
    Path("mine/thesis.tex").write_text("dear")
    flags = ["--model=mlp", f"--weights={trained}", "--out=mine"]
    assert prune.main(flags) == 2
    assert "holds other files (thesis.tex)" in capsys.readouterr().err
    assert train.main(["--model=mlp", "--out=mine"]) == 2
    assert listing(here) == ["mine", "mine/thesis.tex"]


def test_weights_for_pytorch_come_back_without_loss(trained, here):
    flags = ["--model=mlp", f"--weights={trained}", "--torch", "--repair=none"]
    assert prune.main([*flags, "--out=a"]) == 0
    narrow = load_file("a/torchvision.safetensors")
    assert narrow["hidden.0.weight"].shape == (102, 64)
    flags = ["--model=mlp", "--weights=a/torchvision.safetensors", "--keep=1"]
    assert prune.main([*flags, "--out=b"]) == 0
    for path, array in arrays(Path("a/model")).items():
        np.testing.assert_array_equal(array, arrays(Path("b/model"))[path])


def test_a_fresh_classifier_for_other_classes(trained, here, capsys):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (80, 8, 8, 1), np.uint8)
    labels = np.arange(80) % 3
    np.savez("own.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    flags = ["--model=mlp", f"--weights={trained}", "--data=npz:own.npz"]
    assert prune.main([*flags, "--num-classes=12"]) == 2
    expected = "knows 10 classes, --num-classes asks for 12"
    assert expected in capsys.readouterr().err
    assert prune.main([*flags, "--new-head", "--out=out"]) == 0
    dense, pruned = ispasp_jax.load(trained), ispasp_jax.load("out")
    kept = json.loads(Path("out/plan.json").read_text())["groups"][0]["kept"]
    old, new = (m.variables["params"] for m in (dense, pruned))
    assert new["output"]["kernel"].shape == (102, 3)
    np.testing.assert_array_equal(
        new["hidden.0"]["kernel"], old["hidden.0"]["kernel"][:, np.array(kept)]
    )


def npz(path, seed, classes=3):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (80, 8, 8, 1), np.uint8)
    labels = np.arange(80) % classes
    path.parent.mkdir(exist_ok=True)
    np.savez(path, x_train=images, y_train=labels, x_test=images, y_test=labels)


def test_a_kept_dense_network_is_only_used_for_what_it_was_trained_on(here, capsys):
    npz(Path("a/d.npz"), 0)
    npz(Path("b/d.npz"), 1)
    flags = ["--model=mlp", "--finetune-epochs=0"]
    for data_flags in (
        ["--data=npz:a/d.npz"],
        ["--data=npz:b/d.npz"],
        ["--data=npz:a/d.npz", "--mean=0.2", "--std=0.2"],
    ):
        assert prune.main([*flags, *data_flags]) == 0
        assert "training mlp on" in capsys.readouterr().err
    assert len(list(Path("runs").glob("*-dense"))) == 3
    (kept, *_) = Path("runs").glob("*-dense")
    record = json.loads((kept / "training.json").read_text())
    record["identity"]["seed"] = 5
    (kept / "training.json").write_text(json.dumps(record))
    codes = [prune.main([*flags, "--data=npz:a/d.npz"])]
    codes += [prune.main([*flags, "--data=npz:b/d.npz"])]
    codes += [prune.main([*flags, "--data=npz:a/d.npz", "--mean=0.2", "--std=0.2"])]
    assert sorted(codes) == [0, 0, 2]
    assert "was trained on other data" in capsys.readouterr().err


def test_tuning_a_pruned_network_leaves_the_dense_one_alone(trained, here, capsys):
    assert train.main(["--model=mlp", f"--weights={trained}", "--epochs=1"]) == 0
    assert listing(here / "runs")[0] == "mlp-digits-tuned"
    shutil.copytree(trained, "mine")
    flags = ["--model=mlp", "--weights=mine/out", "--out=mine/out"]
    assert prune.main(["--model=mlp", "--weights=mine", "--out=mine/out"]) == 0
    assert prune.main(flags) == 2
    assert "would be replaced" in capsys.readouterr().err


@pytest.mark.parametrize("rate, harmed", [("0.001", False), ("3", True)])
def test_fine_tuning_that_harms_is_named(rate, harmed, trained, here, capsys):
    flags = ["--model=mlp", f"--weights={trained}", "--out=out", "--finetune-epochs=1"]
    assert prune.main([*flags, f"--learning-rate={rate}"]) == 0
    report = json.loads(Path("out/report.json").read_text())
    *_, before, after = (stage["top1"] for stage in report["stages"])
    said = f"fine-tuning lowered top-1 from {100 * before:.2f} to {100 * after:.2f} %"
    assert any(said in note for note in report["notes"]) is harmed
    assert (said in capsys.readouterr().out) is harmed


def test_resuming_training_with_other_settings_is_refused(here, monkeypatch, capsys):
    flags = ["--model=mlp", "--epochs=2", "--out=a"]
    with monkeypatch.context() as patch:
        stop_after(patch, 1)
        assert train.main(flags) == 130
    for other in (["--epochs=3"], ["--batch-size=32"], ["--model=resnet20"]):
        assert train.main([*flags, *other, "--resume"]) == 2
        assert "the stopped run had other settings" in capsys.readouterr().err


def test_dry_run_knows_the_channels_of_the_data(here, capsys):
    flags = ["--dry-run", "--model=mlp", "--image-size=8", "--num-classes=10"]
    assert prune.main(flags) == 0
    assert f"{64 * 256 + 256 * 10:,}" in capsys.readouterr().out


def test_another_models_export_and_foreign_folders_are_refused(trained, here, capsys):
    flags = ["--model=mlp", f"--weights={trained}", "--torch", "--out=a"]
    assert prune.main(flags) == 0
    weights = "--weights=a/torchvision.safetensors"
    assert prune.main(["--model=resnet20", weights, "--out=b"]) == 2
    assert "holds a mlp, not a resnet20" in capsys.readouterr().err
    Path("other").mkdir()
    Path("other/config.json").write_text("{}")
    assert train.main(["--model=mlp", "--out=other"]) == 2
    assert Path("other/config.json").read_text() == "{}"
    Path("other/notes").write_text("mine")
    with pytest.raises(ispasp_jax.InputError, match="holds other files"):
        ispasp_jax.save("other", ispasp_jax.load(trained))


@pytest.mark.parametrize(
    "body",
    ["1 / 0", "def f(", "f = 3", "def f(): pass", "def f(num_classes): return 1"],
)
def test_a_broken_module_of_the_users_is_one_sentence(body, here, monkeypatch, capsys):
    Path("broken_model.py").write_text(body + "\n")
    monkeypatch.syspath_prepend(str(here))
    monkeypatch.delitem(sys.modules, "broken_model", raising=False)
    before = listing(here)
    assert prune.main(["--model=broken_model:f"]) == 2
    said = capsys.readouterr().err
    assert "broken_model:f" in said and len(said.strip().splitlines()) == 1
    assert [name for name in listing(here) if "pycache" not in name] == before


def test_fewer_calibration_images_than_asked_are_all_used(trained, here):
    flags = ["--model=mlp", f"--weights={trained}", "--out=out"]
    assert prune.main([*flags, "--calibration-images=9999"]) == 0
    (note, *_) = json.loads(Path("out/report.json").read_text())["notes"]
    assert "all 1437 training images" in note


def test_runs_repeat_under_a_seed_and_differ_between_seeds(trained, here):
    flags = ["--model=mlp", f"--weights={trained}", "--method=random"]
    for out, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert prune.main([*flags, f"--seed={seed}", f"--out={out}"]) == 0
    plans = [Path(f"{out}/plan.json").read_text() for out in "abc"]
    assert plans[0] == plans[1] != plans[2]


def test_dry_run_touches_neither_weights_nor_images(here, monkeypatch, capsys):
    monkeypatch.setattr(data, "open_source", None)
    monkeypatch.setattr(folders, "load", None)
    assert prune.main(["--dry-run", "--model=resnet34", "--preset=paper"]) == 0
    assert "layer3.4" in capsys.readouterr().out
    flags = ["--dry-run", "--model=resnet34", "--data=folder:nowhere"]
    assert prune.main([*flags, "--image-size=224", "--num-classes=1000"]) == 0
    assert "3,663,761,408" in capsys.readouterr().out
    assert listing(here) == []


def test_help_needs_no_jax():
    code = (
        "import sys\n"
        "from ispasp_jax.cli.prune import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "assert not {'jax', 'numpy', 'flax'} & set(sys.modules)\n"
    )
    run = [sys.executable, "-c", code]
    subprocess.run(run, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)


CACHED = """
import sys
import jax
from ispasp_jax.cli import prune

assert jax.config.jax_compilation_cache_dir is None
events = []
jax.monitoring.register_event_listener(lambda name, **_: events.append(name))
assert prune.main(sys.argv[1:]) == 0
count = {kind: events.count(f"/jax/compilation_cache/cache_{kind}") for kind in KINDS}
print(count["hits"], count["misses"])
""".replace("KINDS", '("hits", "misses")')


@pytest.mark.slow
def test_a_second_run_takes_its_programs_from_the_compilation_cache(trained, here):
    cache = here / "cache" / "programs"
    flags = ["--model=mlp", f"--weights={trained}", "--calibration-images=100"]
    flags += ["--latency-batch-size=1", f"--compilation-cache={cache}"]
    counts, files = [], []
    for out in ("a", "b"):
        done = subprocess.run(
            [sys.executable, "-c", CACHED, *flags, f"--out={out}"],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        counts.append(tuple(map(int, done.stdout.split()[-2:])))
        files.append({p.name for p in cache.iterdir() if p.name.endswith("-cache")})
    assert files[0] and files[1] == files[0]
    assert counts[0][1] >= len(files[0]) and counts[1] == (sum(counts[0]), 0)
    assert arrays(Path("a/model")).keys() == arrays(Path("b/model")).keys()
    Path("file").touch()
    assert prune.main([*flags[:2], "--compilation-cache=file"]) == 2
