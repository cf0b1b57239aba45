"""The classifier on the command line: what fits is built and named by its content, what does not is one line."""

import hashlib
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

from exact_family import exact_family
from trilemma.checkpoints.guiding_classifier import guiding_classifier
from trilemma.checkpoints.sampling_setup import sampling_setup
from trilemma.checkpoints.settings import sampling_settings
from trilemma.cli.main import register_resolvers
from trilemma.config.build import build
from trilemma.config.targets import CHECKPOINT
from trilemma.errors import UserError
from trilemma.measuring.setups import setups_of
from trilemma.models.base import CHECKPOINT_FORMAT
from trilemma.models.noisy_classifier import NoisyClassifier

CONF = Path(__file__).parents[2] / "conf"
COSINE = {"_target_": "trilemma.processes.gaussian.schedules.CosineBeta", "num_steps": 50}
LINEAR = {"_target_": "trilemma.processes.gaussian.schedules.LinearBeta", "num_steps": 50}
PIXELS = {"_target_": "trilemma.codecs.pixels.Pixels", "image_shape": [1, 4, 4]}
LATENTS = {"_target_": "trilemma.codecs.pixels.Pixels", "image_shape": [2, 4, 4]}
DATA = {"_target_": "trilemma.datasets.mnist.MNIST", "root": "somewhere"}
MODEL = {
    "_target_": "trilemma.models.noisy_classifier.NoisyClassifier",
    "codec": PIXELS,
    "process": {"_target_": "trilemma.processes.gaussian.process.GaussianProcess", "schedule": COSINE},
    "network": {
        "_target_": "trilemma.networks.unet.encoder.UNetEncoder",
        "in_channels": 1,
        "image_size": 4,
        "num_classes": 10,
        "channels": 8,
        "channel_mults": [1],
        "num_res_blocks": 1,
    },
    "times": {"_target_": "trilemma.training.timesteps.UniformTimesteps"},
    "num_labels": 10,
}
CONFIG = {
    "model": MODEL,
    "data": DATA,
    "facts": {"image_shape": [1, 4, 4]},
    "experiment": "mnist/noisy_classifier",
    "data_fingerprint": "a" * 64,
}
# The model under guidance; its network is never run here.
GUIDED = {
    **CONFIG,
    "experiment": "mnist/ddpm",
    "weights": "ema",
    "sampler": {"_target_": "trilemma.samplers.gaussian.ddim.DDIM", "num_steps": 5},
    "guidance": {"_target_": "trilemma.samplers.guidance.Guidance"},
}


def save(folder, config):
    path = folder / "classifier.ckpt"
    model = build(config["model"], allowed=CHECKPOINT)
    mark = {"format": CHECKPOINT_FORMAT, "version": "0", "config": config}
    torch.save({"state_dict": model.state_dict(), "trilemma": mark}, path)
    return path


def composed(*overrides, entry="evaluate"):
    register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(entry, ["ckpt=last.ckpt", "num_images=20", *overrides])


def with_schedule(schedule, **more):
    return {**MODEL, **more, "process": {**MODEL["process"], "schedule": schedule}}


@pytest.fixture
def model():
    return build(MODEL, allowed=CHECKPOINT)


def test_a_classifier_that_fits_is_built_and_named_by_its_content(tmp_path, model):
    path = save(tmp_path, CONFIG)
    cfg = composed("guidance=classifier", f"guidance.classifier={path}", "guidance.scale=2")
    found = guiding_classifier(cfg, model, GUIDED)
    assert isinstance(found.module, NoisyClassifier)
    assert not found.module.training
    _, guidance = sampling_settings(cfg, GUIDED, found)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert guidance["classifier"] == {"experiment": "mnist/noisy_classifier", "sha256": digest}
    assert str(tmp_path) not in str(guidance)
    setup = sampling_setup(cfg, exact_family(), GUIDED, found)
    assert setup.guidance_node == guidance
    assert (setup.guidance.scale, setup.guidance.num_labels) == (2.0, 10)
    assert (setup.raw, setup.condition) == ([*range(10)] * 2, "label: all in turn")
    assert sampling_setup(composed(), exact_family(), GUIDED).raw is None


def test_a_sweep_of_scales_over_an_unconditional_model(tmp_path, model):
    path = save(tmp_path, CONFIG)
    cfg = composed("guidance=classifier", f"guidance.classifier={path}", "sweep.scale=[0,1,2.5]")
    setups = setups_of(cfg, exact_family(), GUIDED, guiding_classifier(cfg, model, GUIDED))
    assert [setup.guidance.scale for setup in setups] == [0, 1, 2.5]
    assert [setup.name for setup in setups] == [
        f"n20-steps5-scale{s}-classifierguidance-start0.95-seed0" for s in ("0", "1", "2.5")
    ]
    assert all(setup.raw == [*range(10)] * 2 for setup in setups)
    assert setups[0].condition == "label: all in turn"
    with pytest.raises(UserError, match="unconditional"):
        setups_of(composed("sweep.scale=[1]"), exact_family(), GUIDED)


def test_labels_are_needed_before_the_first_setup(tmp_path, model):
    path = save(tmp_path, CONFIG)
    cfg = composed("guidance=classifier", f"guidance.classifier={path}", "sweep.scale=[0,1]", "condition.label=none")
    with pytest.raises(UserError, match=r"guidance=classifier needs condition\.label"):
        setups_of(cfg, exact_family(), GUIDED, guiding_classifier(cfg, model, GUIDED))
    cfg.condition.label = [3, 12]
    with pytest.raises(UserError, match="labels are 0 to 9"):
        setups_of(cfg, exact_family(), GUIDED, guiding_classifier(cfg, model, GUIDED))


def test_without_the_option_there_is_no_classifier(model):
    for overrides in ([], ["guidance.scale=2"], ["guidance=classifier_free"], ["guidance=none"]):
        assert guiding_classifier(composed(*overrides), model, GUIDED) is None


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["guidance=classifier"], "needs guidance.classifier=CHECKPOINT"),
        (["guidance.classifier=some.ckpt"], "give guidance=classifier too"),
        (["guidance=classifier", "guidance.classifier=nowhere.ckpt"], "there is no such file"),
        (["guidance=classifier", f"guidance.classifier={Path(__file__).as_posix()}"], "not a Trilemma checkpoint"),
    ],
)
def test_what_is_typed_wrongly(overrides, words, model):
    with pytest.raises(UserError, match=words.replace(".", r"\.")):
        guiding_classifier(composed(*overrides), model, GUIDED)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"data": {"_target_": "trilemma.datasets.mnist.FashionMNIST", "root": "x"}},
            "classifier for another data set",
        ),
        (
            {"data_fingerprint": "b" * 64},
            r"another data set: .*MNIST 1x4x4 \(bbbbbbbb\).*last.ckpt on MNIST 1x4x4 \(aaaaaaaa\)",
        ),
        ({"facts": {"image_shape": [1, 8, 8]}}, "another data set.*1x8x8.*1x4x4"),
        ({"model": with_schedule(LINEAR)}, "LinearBeta of 50 steps.*CosineBeta of 50 steps"),
        ({"model": with_schedule({**COSINE, "offset": 0.02})}, "same process/schedule"),
        (
            {"model": {**MODEL, "codec": LATENTS, "network": {**MODEL["network"], "in_channels": 2}}},
            "2x4x4 .*codes 1x4x4",
        ),
        (
            {
                "model": {
                    "_target_": "trilemma.models.classifier.Classifier",
                    "network": {"_target_": "torch.nn.Linear", "in_features": 2, "out_features": 2},
                }
            },
            "holds a Classifier, not a classifier of noisy images",
        ),
    ],
    ids=["data", "content", "shape", "schedule", "offset", "codec", "clean classifier"],
)
def test_a_classifier_that_does_not_fit(tmp_path, model, change, words):
    path = save(tmp_path, {**CONFIG, **change})
    cfg = composed("guidance=classifier", f"guidance.classifier={path}")
    with pytest.raises(UserError, match=words) as refused:
        guiding_classifier(cfg, model, GUIDED)
    assert "\n" not in str(refused.value)


def test_checkpoints_without_a_fingerprint_are_told_apart_by_their_data_set(tmp_path, model):
    old = {key: value for key, value in CONFIG.items() if key != "data_fingerprint"}
    cfg = composed("guidance=classifier", f"guidance.classifier={save(tmp_path, old)}")
    assert guiding_classifier(cfg, model, GUIDED) is not None


def test_a_model_without_a_gaussian_process_has_no_score_to_guide(tmp_path):
    cfg = composed("guidance=classifier", f"guidance.classifier={save(tmp_path, CONFIG)}")
    with pytest.raises(UserError, match="no Gaussian process: take guidance=classifier_free"):
        guiding_classifier(cfg, torch.nn.Linear(1, 1), GUIDED)
