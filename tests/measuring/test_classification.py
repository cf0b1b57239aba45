"""Classifiers of clean and of noisy images, scored in one way."""

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from trilemma.capabilities import supports
from trilemma.checkpoints.loaded import LoadedModel
from trilemma.codecs.pixels import Pixels
from trilemma.data.base import ImageData, Split
from trilemma.data.images import to_float
from trilemma.errors import UserError
from trilemma.evaluation.features.extractor import load_extractor
from trilemma.measuring import classification
from trilemma.measuring.classification import classify, evaluate_classifier
from trilemma.models.capabilities import Classifies
from trilemma.models.classifier import Classifier
from trilemma.models.noisy_classifier import NOISE_LEVELS, NoisyClassifier
from trilemma.networks.classifier import SmallConvNet
from trilemma.processes.gaussian.process import GaussianProcess
from trilemma.processes.gaussian.schedules import CosineBeta
from trilemma.training.timesteps import UniformTimesteps

K, SIDE, NUM = 3, 8, 23
NETWORK = {"in_channels": 1, "image_size": SIDE, "num_classes": K, "channels": [4], "feature_dim": 5}


class Toy(ImageData):
    name = "toy"

    def __init__(self, *, labelled=True):
        super().__init__(batch_size=1)
        self.labelled = labelled

    def read(self):
        generator = torch.Generator().manual_seed(1)
        images = torch.randint(0, 256, (NUM, 1, SIDE, SIDE), generator=generator, dtype=torch.uint8)
        split = Split(
            images=images,
            labels=torch.arange(NUM) % K if self.labelled else None,
            captions=None,
            index=100 + torch.arange(NUM),
        )
        return {"train": split, "val": split, "test": split}, list("abc") if self.labelled else None


class NoisyNetwork(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(SIDE * SIDE + 1, K)

    def forward(self, x, t):
        return self.linear(torch.cat([x.flatten(1), t[:, None]], 1))


def clean(network=None):
    torch.manual_seed(0)
    return Classifier(network=network or SmallConvNet(**NETWORK)).eval()


def noisy():
    torch.manual_seed(0)
    return NoisyClassifier(
        codec=Pixels((1, SIDE, SIDE)),
        process=GaussianProcess(CosineBeta()),
        network=NoisyNetwork(),
        times=UniformTimesteps(),
        num_labels=K,
    ).eval()


def loaded(model, **options):
    config = {
        "model": {"network": {"_target_": "trilemma.networks.classifier.SmallConvNet", **NETWORK}},
        "experiment": "toy/classifier",
    }
    return LoadedModel(Path("last.ckpt"), model, config, dataset=Toy(**options))


def scores(model, **options):
    test = Toy().split("test")
    return classify(model, test.images, test.labels, torch.device("cpu"), **options)


@torch.no_grad()
def test_clean_images_are_scored_as_a_whole_set_would_be():
    model, test = clean(), Toy().split("test")
    log_prob = model.network(to_float(test.images)).double().log_softmax(1)
    [(condition, score)] = scores(model).items()
    assert condition == "clean images"
    assert score.accuracy == int((log_prob.argmax(1) == test.labels).sum()) / NUM
    assert score.cross_entropy == pytest.approx(-log_prob[torch.arange(NUM), test.labels].mean().item(), rel=1e-5)


@pytest.mark.parametrize("model", [clean(), noisy()], ids=["clean", "noisy"])
def test_the_size_of_a_batch_changes_nothing(model, monkeypatch):
    whole = scores(model, seed=4)
    monkeypatch.setattr(classification, "_BATCH_SIZE", 5)
    for condition, score in scores(model, seed=4).items():
        assert score == pytest.approx(whole[condition], rel=1e-5)


def test_noisy_images_are_scored_at_each_noise_level():
    model = noisy()
    found = scores(model)
    assert list(found) == [f"t = {t}" for t in NOISE_LEVELS]
    assert scores(model, seed=1) != found
    # A network that says nothing has the cross-entropy of K equal labels.
    nn.init.zeros_(model.network.linear.weight)
    nn.init.zeros_(model.network.linear.bias)
    assert all(score.cross_entropy == pytest.approx(math.log(K), rel=1e-6) for score in scores(model).values())


def test_a_classifier_of_clean_images_becomes_an_extractor(tmp_path, capsys):
    model = clean()
    evaluate_classifier(loaded(model), tmp_path, device="cpu")
    first, score, last = capsys.readouterr().out.strip().splitlines()
    accuracy = scores(model)["clean images"].accuracy
    assert first == f"{NUM} test images"
    assert score.startswith(f"clean images: accuracy {accuracy:.4f}, cross-entropy ")
    extractor = load_extractor(last.removeprefix("as a feature extractor: "))
    assert extractor.card.test_accuracy == accuracy
    assert extractor.card.command == "python train.py experiment=toy/classifier"


def test_a_family_without_a_feature_network_has_scores_alone(tmp_path, capsys):
    plain = clean(nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, K)))
    for model, conditions in ((plain, ["clean images"]), (noisy(), [f"t = {t}" for t in NOISE_LEVELS])):
        assert supports(model, Classifies)
        evaluate_classifier(loaded(model), tmp_path, device="cpu")
        lines = capsys.readouterr().out.strip().splitlines()
        assert [line.split(":")[0] for line in lines] == [f"{NUM} test images", *conditions]
    assert list(tmp_path.iterdir()) == []


def test_data_without_labels_are_refused(tmp_path):
    with pytest.raises(UserError, match="no labels"):
        evaluate_classifier(loaded(clean(), labelled=False), tmp_path, device="cpu")
