import dataclasses
import hashlib
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from trilemma.data.images import to_float
from trilemma.data.split import MappedImages
from trilemma.errors import UserError
from trilemma.evaluation.features import extractor as module
from trilemma.evaluation.features.card import ExtractorCard, build_network
from trilemma.evaluation.features.extractor import find_extractor, load_extractor, save_extractor
from trilemma.networks import classifier
from trilemma.networks.classifier import SmallConvNet


def renamed(path, payload: bytes):
    """A file whose name tells the truth about its bytes."""
    target = path.with_name(f"toy_set-{hashlib.sha256(payload).hexdigest()[:8]}.safetensors")
    target.write_bytes(payload)
    return target


def test_what_is_saved_is_loaded(network, card, tmp_path, images):
    path = save_extractor(network, card, tmp_path)
    extractor = load_extractor(path)
    assert extractor.card == card
    assert extractor.name == path.stem == f"toy_set-{hashlib.sha256(path.read_bytes()).hexdigest()[:8]}"
    network.eval()
    with torch.no_grad():
        torch.testing.assert_close(extractor.features(images), network.features(to_float(images)))
        torch.testing.assert_close(extractor.logits(images), network(to_float(images)))


def test_equal_networks_are_equal_bytes(network, card, tmp_path):
    path = save_extractor(network, card, tmp_path)
    content = path.read_bytes()
    assert save_extractor(network, ExtractorCard.from_json(card.to_json()), tmp_path) == path
    assert path.read_bytes() == content


def test_features_do_not_depend_on_company(extractor, images):
    whole = extractor.embed(images)
    extractor.batch_size = 16
    whole_16 = extractor.embed(images)
    for part, same in zip(whole, whole_16, strict=True):
        torch.testing.assert_close(part, same)
    for size in (1, 3, 40):
        assert torch.equal(torch.cat([extractor.features(chunk) for chunk in images.split(size)]), whole_16.features)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    assert torch.equal(extractor.features(images[order]), whole_16.features[order])


def test_a_memory_map_is_read_like_a_tensor(extractor, images):
    rows = np.array([3, 1, 2])
    mapped = MappedImages(images.numpy(), rows, digest="0")
    assert torch.equal(extractor.features(mapped), extractor.features(images[rows]))


def test_stays_frozen_and_in_eval_mode(extractor, images):
    before = {name: tensor.clone() for name, tensor in extractor.network.state_dict().items()}
    extractor.network.train()
    features = extractor.features(images)
    assert not features.requires_grad
    assert all(torch.equal(tensor, before[name]) for name, tensor in extractor.network.state_dict().items())
    assert not any(p.requires_grad for p in extractor.network.parameters())


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (torch.zeros(2, 1, 8, 8), "reads uint8"),
        (torch.zeros(2, 1, 9, 8, dtype=torch.uint8), r"reads images \[N, 1, 8, 8\], got \[2, 1, 9, 8\]"),
        (torch.zeros(1, 8, 8, dtype=torch.uint8), r"reads images \[N >= 1, C, H, W\], got \[1, 8, 8\]"),
        (torch.zeros(0, 1, 8, 8, dtype=torch.uint8), r"got \[0, 1, 8, 8\]"),
    ],
)
def test_images_that_do_not_fit_are_refused(extractor, wrong, words):
    with pytest.raises(UserError, match=words):
        extractor.features(wrong)


def test_changed_weights_are_refused(network, card, tmp_path):
    path = save_extractor(network, card, tmp_path)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="not the one in its name"):
        load_extractor(path)


@pytest.mark.parametrize("payload", [b"", b"not safetensors at all", b"\xff" * 64])
def test_foreign_bytes_are_refused(tmp_path, payload):
    with pytest.raises(UserError, match="not a file of extractor weights"):
        load_extractor(renamed(tmp_path / "x", payload))


@pytest.mark.parametrize("name", ["dinov2.safetensors", "x-01234567.safetensors"])
def test_weights_without_a_card_are_told_what_they_lack(tmp_path, name):
    save_file({"weight": torch.zeros(2)}, tmp_path / name)
    with pytest.raises(UserError, match=r"holds weights only: .* card in its metadata .* as TorchScript"):
        load_extractor(tmp_path / name)


def test_weights_of_another_network_are_refused(network, card, tmp_path):
    path = save_extractor(network, card, tmp_path)
    other = dataclasses.replace(card, network={**card.network, "feature_dim": 7})
    save_file(load_file(path), tmp_path / "x", {"trilemma.extractor": other.to_json()})
    with pytest.raises(UserError, match="do not fit"):
        load_extractor(renamed(tmp_path / "x", (tmp_path / "x").read_bytes()))
    with pytest.raises(UserError, match="arguments it was built with"):
        save_extractor(network, other, tmp_path)


def test_labels_must_match_the_classes(network, card, tmp_path):
    with pytest.raises(UserError, match="2 labels for 3 classes"):
        save_extractor(network, dataclasses.replace(card, label_names=("a", "b")), tmp_path)


def test_large_networks_are_refused(card, tmp_path):
    config = {**card.network, "feature_dim": 20_000}
    with pytest.raises(UserError, match="2,000,000 at most"):
        save_extractor(build_network(config), dataclasses.replace(card, network=config), tmp_path)
    assert not list(tmp_path.iterdir())


def test_finding_names_what_exists(network, card, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="there are: none"):
        find_extractor("toy_set", tmp_path)
    path = save_extractor(network, card, tmp_path)
    assert find_extractor("toy_set", tmp_path) == path
    with pytest.raises(UserError, match=f"no extractor for 'toy'; there are: {path.stem}"):
        find_extractor("toy", tmp_path)
    monkeypatch.setattr(module, "SHIPPED", tmp_path)
    monkeypatch.setattr(find_extractor, "__defaults__", (tmp_path,))
    assert load_extractor("toy_set").name == load_extractor(path.stem).name == path.stem
    save_extractor(network, dataclasses.replace(card, command="again"), tmp_path)
    with pytest.raises(UserError, match="several extractors"):
        find_extractor("toy_set", tmp_path)


def test_a_missing_file_is_one_line(tmp_path):
    with pytest.raises(UserError, match="cannot read the extractor"):
        load_extractor(tmp_path / "toy-00000000.safetensors")


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (None, "must be a class of"),
        ("os.system", "must be a class of"),
        ("torch.nn.Linear", "must be a class of"),
        ("trilemma.networks", "must be a class of"),
        ("trilemma.networksfoo.X", "must be a class of"),
        ("trilemma.networks...runs.build.X", "must be a class of"),
        ("trilemma.networks.nothing.X", "has no trilemma.networks.nothing"),
        ("trilemma.networks.classifier.nn.Linear", "has no trilemma.networks.classifier.nn"),
        ("trilemma.networks.classifier.nn", "is not a class of"),
        ("trilemma.networks.classifier.Nothing", "is not a class of"),
        ("trilemma.networks.classifier.ABC", "is not a class of"),
        ("trilemma.networks.classifier.Planted", "is not a class of"),
        ("trilemma.networks.transformer.bidirectional.BidirectionalTransformer", "gives no features"),
        ("trilemma.networks.classifier.FeatureClassifier", "does not take"),
    ],
)
def test_only_feature_classifiers_of_ours_are_built(card, monkeypatch, target, words):
    class Planted(SmallConvNet):
        """Reached by a name of ours, defined elsewhere."""

    monkeypatch.setattr(classifier, "Planted", Planted, raising=False)
    with pytest.raises(UserError, match=words):
        build_network({**card.network, "_target_": target})


def test_unknown_arguments_are_refused(card):
    with pytest.raises(UserError, match="does not take"):
        build_network({**card.network, "depth": 3})


def test_a_card_with_other_fields_is_refused(card):
    fields = json.loads(card.to_json())
    with pytest.raises(ValueError, match="extractor's fields"):
        ExtractorCard.from_json(json.dumps({**fields, "extra": 1}))
    with pytest.raises(ValueError, match="lower-case"):
        dataclasses.replace(card, dataset="../up")
