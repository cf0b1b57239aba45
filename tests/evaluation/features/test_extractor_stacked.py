import itertools
import math

import pytest
import torch

from trilemma.data.split import Split
from trilemma.datasets.stacked_mnist import StackedMNIST
from trilemma.errors import UserError
from trilemma.evaluation.features.extractor import load_extractor
from trilemma.evaluation.features.stacked import StackedExtractor
from trilemma.evaluation.samples import evaluate_samples


@pytest.fixture
def of_class(extractor, random_images):
    """Images that the extractor takes for each class: {class: uint8 [N, 8, 8]}."""
    images = random_images(400, seed=11)
    # Untrained, it takes every image for one class.
    extractor.network.head.bias.data -= extractor.logits(images).mean(0)
    predicted = extractor.logits(images).argmax(1)
    found = {label: images[predicted == label, 0] for label in range(3)}
    assert min(map(len, found.values())) > 5
    return found


def stack(of_class, rows):
    images = torch.stack([torch.stack([of_class[c][i % 5] for c in row]) for i, row in enumerate(rows)])
    return Split(images=images, labels=None, captions=None, index=torch.arange(len(images)))


def test_each_channel_is_read_by_itself(extractor, of_class):
    rows = [[0, 1, 2], [2, 1, 0], [1, 1, 2], [0, 0, 0]]
    images = stack(of_class, rows).images
    stacked = StackedExtractor(extractor, 3)
    seen = stacked.embed(images)
    assert (stacked.name, stacked.num_classes) == (f"{extractor.name}x3", 27)
    assert [stacked.label_names[k] for k in seen.logits.argmax(1)] == ["abc", "cba", "bbc", "aaa"]
    channels = [extractor.embed(images[:, c : c + 1]) for c in range(3)]
    torch.testing.assert_close(seen.features, torch.cat([one.features for one in channels], dim=1))
    whole = sum(one.logits.gather(1, torch.tensor(rows)[:, c : c + 1]) for c, one in enumerate(channels))
    index = (torch.tensor(rows) * torch.tensor([9, 3, 1])).sum(1, keepdim=True)
    torch.testing.assert_close(seen.logits.gather(1, index), whole)


def test_modes_that_are_dropped_are_counted(extractor, of_class):
    every = list(itertools.product(range(3), repeat=3)) * 2
    real = stack(of_class, every)
    scores = evaluate_samples(
        stack(of_class, every[:9] * 6).images, real=real, held_out=real, extractor=StackedExtractor(extractor, 3)
    )
    assert (scores.metrics["modes_hit"], scores.held_out_baseline["modes_hit"]) == (9, 27)
    assert scores.metrics["uniform_kl"] == pytest.approx(math.log(3), rel=1e-9)
    assert scores.held_out_baseline["uniform_kl"] == pytest.approx(0, abs=1e-12)
    assert scores.metrics["class_tv"] == pytest.approx(2 / 3)


def test_images_of_another_shape_are_refused(extractor):
    with pytest.raises(UserError, match="reads images"):
        StackedExtractor(extractor, 3).embed(torch.zeros(2, 3, 9, 9, dtype=torch.uint8))


def test_the_mnist_extractor_reads_stacked_digits(data_dir):
    data = StackedMNIST(root=data_dir, download=False, train_size=64, val_size=1, test_size=300)
    split = data.split("test")
    assert (data.extractor_name, data.channels_are_images) == ("mnist", True)
    seen = StackedExtractor(load_extractor("mnist"), 3).logits(split.images).argmax(1)
    # Three digits at an accuracy of 0.9962 each.
    assert (seen == split.labels).double().mean() > 0.95
