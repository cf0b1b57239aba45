import logging
import math

import pytest
import torch

from trilemma.data.split import Split
from trilemma.data.stacked_mnist import StackedMNIST
from trilemma.errors import UserError
from trilemma.evaluation.extractor import load_extractor
from trilemma.evaluation.metrics.stacked_modes import combined_label
from trilemma.evaluation.stacked import channel_classes, evaluate_stacked_modes


@pytest.fixture
def of_class(extractor, random_images):
    """One image that the extractor takes for each class: {class: uint8 [8, 8]}."""
    images = random_images(400, seed=11)
    # Untrained, it takes every image for one class.
    extractor.network.head.bias.data -= extractor.logits(images).mean(0)
    predicted = extractor.logits(images).argmax(1).tolist()
    found = {label: images[predicted.index(label), 0] for label in set(predicted)}
    assert len(found) == 3
    return found


def stack(of_class, rows):
    images = torch.stack([torch.stack([of_class[label] for label in row]) for row in rows])
    return Split(images=images, labels=None, captions=None, index=torch.arange(len(images)))


def test_each_channel_is_read_by_itself(extractor, of_class):
    rows = [[0, 1, 2], [2, 1, 0], [1, 1, 2], [0, 0, 0]]
    assert channel_classes(stack(of_class, rows).images, extractor).tolist() == rows


def test_samples_and_real_images_are_scored_at_one_size(extractor, of_class, tmp_path):
    a, b = 0, 2
    samples = stack(of_class, [[a, a, a]] * 4).images
    real = stack(of_class, [[a, a, a], [a, a, b], [a, b, a], [b, a, a], [b, b, b], [a, b, b]])
    for _ in range(2):  # the second time from the cache
        found = evaluate_stacked_modes(samples, real_floor=real, extractor=extractor, cache_dir=tmp_path / "cache")
        assert found.metrics == {
            "num_images": 4.0,
            "num_modes": 27.0,
            "modes_hit": 1.0,
            "uniform_kl": pytest.approx(math.log(27), rel=1e-12),
        }
        assert found.floor == {
            "num_images": 4.0,
            "num_modes": 27.0,
            "modes_hit": 4.0,
            "uniform_kl": pytest.approx(math.log(27 / 4), rel=1e-12),
        }
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_too_few_real_images_are_said(extractor, of_class, caplog):
    a = 1
    with caplog.at_level(logging.WARNING):
        found = evaluate_stacked_modes(
            stack(of_class, [[a, a, a]] * 5).images, real_floor=stack(of_class, [[a, a, a]] * 2), extractor=extractor
        )
    assert "only 2 real images for 5 samples" in caplog.text
    assert (found.metrics["num_images"], found.floor["num_images"]) == (5.0, 2.0)


def test_images_of_another_shape_are_refused(extractor, of_class, images):
    a = 1
    with pytest.raises(UserError, match="no images of the data set"):
        evaluate_stacked_modes(images, real_floor=stack(of_class, [[a, a, a]]), extractor=extractor)


def test_the_mnist_extractor_reads_stacked_digits(data_dir):
    data = StackedMNIST(root=data_dir, download=False, train_size=64, val_size=1, test_size=300)
    split = data.split("test")
    seen = combined_label(channel_classes(split.images, load_extractor("mnist")), 10)
    # Three digits at an accuracy of 0.9962 each.
    assert (seen == split.labels).double().mean() > 0.95
