"""Perceptual distances: LPIPS against its definition, extractors, and what is refused."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from trilemma.errors import UserError
from trilemma.evaluation.features.extractor import load_extractor
from trilemma.evaluation.features.perceptual import ExtractorMaps
from trilemma.networks.vgg import VGG16
from trilemma.training.lpips import LPIPSMaps
from trilemma.training.perceptual import FeatureMaps, PerceptualDistance
from trilemma.training.reconstruction import AbsoluteError, WithPerceptual


def pair(shape=(3, 1, 28, 28)):
    return torch.rand((2, *shape), generator=torch.Generator().manual_seed(2)) * 2 - 1


class Shifts(FeatureMaps):
    """Two grids that are easy to follow."""

    def load(self):
        return nn.Conv2d(1, 1, 1)

    def maps(self, network, images):
        return [torch.cat([images, 1 - images], 1), images.repeat(1, 3, 1, 1) + torch.arange(3.0).view(3, 1, 1)]


def test_the_distance_is_that_of_unit_vectors_averaged_over_positions():
    """|u - v|^2 = 2 - 2 cos."""
    x, y = pair((2, 1, 3, 4))
    features = Shifts()
    expected = sum(
        (2 - 2 * F.cosine_similarity(a, b)).mean((1, 2))
        for a, b in zip(features.maps(None, x), features.maps(None, y), strict=True)
    )
    torch.testing.assert_close(PerceptualDistance(features)(x, y), expected)


def test_gradients_reach_the_reconstruction_and_neither_images_nor_the_network():
    x, y = (each.requires_grad_() for each in pair())
    distance = PerceptualDistance(ExtractorMaps("mnist"))
    distance(x, y).sum().backward()
    assert x.grad.any()
    assert y.grad is None
    assert not any(p.requires_grad for p in distance.features.network(torch.device("cpu")).parameters())
    assert distance(y, y).abs().max() == 0
    assert (list(distance.parameters()), list(distance.state_dict())) == ([], [])


def test_an_extractors_maps_are_those_its_features_are_made_of():
    network = load_extractor("mnist").network
    maps = network.feature_maps(pair()[0])
    assert [tuple(grid.shape[1:]) for grid in maps] == [(c, s, s) for c, s in zip(*shapes(network), strict=True)]
    assert torch.equal(maps[-1].flatten(1), network.trunk(pair()[0]))


def shapes(network):
    widths = [layer[0].out_channels for layer in network.layers if isinstance(layer, nn.Sequential)]
    return widths, [28 >> i for i in range(1, len(widths) + 1)]


def test_the_perceptual_part_counts_for_every_subpixel():
    x, y = pair()
    perceptual = PerceptualDistance(Shifts())
    loss = WithPerceptual(pixels=AbsoluteError(), perceptual=perceptual, weight=0.3)
    torch.testing.assert_close(loss(x, y) / 784, (x - y).abs().flatten(1).mean(1) + 0.3 * perceptual(x, y))


@pytest.fixture(scope="module")
def vgg(tmp_path_factory):
    """Random weights in files as torchvision and LPIPS publish them."""
    folder = tmp_path_factory.mktemp("vgg")
    torch.manual_seed(1)
    state = VGG16().state_dict() | {"classifier.0.weight": torch.zeros(2)}
    torch.save(state, folder / "vgg16.pth")
    linear = {f"lin{i}.model.1.weight": torch.rand(1, c, 1, 1) for i, c in enumerate((64, 128, 256, 512, 512))}
    torch.save(linear, folder / "lin.pth")
    return folder, state, linear


def lpips(x, y, state, linear):
    """Zhang et al. 2018, equation 1, written out."""

    def maps(image):
        mean, deviation = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
        h, found = (image - mean[:, None, None]) / deviation[:, None, None], []
        for stage in ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28)):
            if stage[0]:
                h = F.max_pool2d(h, 2)
            for i in stage:
                h = F.relu(F.conv2d(h, state[f"features.{i}.weight"], state[f"features.{i}.bias"], padding=1))
            found.append(h / (h.square().sum(1, keepdim=True).sqrt() + 1e-10))
        return found

    difference = [(a - b).square() for a, b in zip(maps(x), maps(y), strict=True)]
    return sum(F.conv2d(d, w).mean((1, 2, 3)) for d, w in zip(difference, linear.values(), strict=True))


def test_lpips_is_its_definition(vgg):
    folder, state, linear = vgg
    x, y = pair((2, 3, 16, 16))
    distance = PerceptualDistance(LPIPSMaps(f"{folder}/vgg16.pth", f"{folder}/lin.pth"))
    torch.testing.assert_close(distance(x, y), lpips(x, y, state, linear), rtol=1e-4, atol=1e-6)
    alike = PerceptualDistance(LPIPSMaps(f"{folder}/vgg16.pth"))
    ones = {name: torch.ones_like(weight) for name, weight in linear.items()}
    grey = x[:, :1], y[:, :1]
    expected = lpips(*(each.expand(-1, 3, -1, -1) for each in grey), state, ones)
    torch.testing.assert_close(alike(*grey), expected, rtol=1e-4, atol=1e-6)


def test_a_plan_needs_no_file():
    distance = PerceptualDistance(LPIPSMaps("nowhere.pth"))
    assert distance(*torch.empty(2, 2, 3, 16, 16, device="meta")).shape == (2,)


@pytest.mark.parametrize(
    ("features", "channels", "line"),
    [
        (lambda folder: LPIPSMaps("nowhere.pth"), 3, "nowhere.pth: there is no such file"),
        (lambda folder: LPIPSMaps(f"{folder}/lin.pth"), 3, "has no features.0.weight"),
        (lambda folder: LPIPSMaps(f"{folder}/vgg16.pth", f"{folder}/vgg16.pth"), 3, "has no lin0.model.1.weight"),
        (lambda folder: LPIPSMaps(f"{folder}/vgg16.pth"), 2, "of 1 or 3 channels, not of 2"),
        (lambda folder: LPIPSMaps(__file__), 3, "is no state dict of tensors"),
        (lambda folder: ExtractorMaps("mnist"), 3, "reads images of 1 channels, and data gives 3"),
        (lambda folder: ExtractorMaps("nothing"), 1, "no extractor for 'nothing'"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_training(vgg, features, channels, line):
    loss = WithPerceptual(pixels=AbsoluteError(), perceptual=PerceptualDistance(features(vgg[0])))
    with pytest.raises(UserError, match=line):
        loss.check(channels)
    WithPerceptual(pixels=AbsoluteError(), perceptual=loss.perceptual, weight=0.0).check(channels)
