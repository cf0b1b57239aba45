import pytest
import torch

from trilemma.networks.classifier import ResidualConvNet, SmallConvNet


def digits() -> SmallConvNet:
    return SmallConvNet(in_channels=1, image_size=28, num_classes=10)


def objects() -> ResidualConvNet:
    return ResidualConvNet(in_channels=3, num_classes=10)


CASES = [(digits, (1, 28, 28)), (objects, (3, 32, 32))]


@pytest.mark.parametrize(("build", "shape"), CASES)
def test_features_are_the_relu_layer_before_the_logits(build, shape):
    network = build().eval()
    images = torch.randn(4, *shape)
    features = network.features(images)
    assert features.shape == (4, network.feature_dim)
    assert (features >= 0).all()
    assert (features > 0).any()
    torch.testing.assert_close(network(images), network.head(features))


@pytest.mark.parametrize(("build", "shape"), CASES)
def test_weights_fit_in_two_megabytes(build, shape):
    assert sum(t.numel() * t.element_size() for t in build().state_dict().values()) <= 2 * 10**6


@pytest.mark.parametrize(("build", "shape"), CASES)
def test_gradients_reach_all_parameters(build, shape):
    network = build()
    network(torch.randn(4, *shape)).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in network.parameters())


@pytest.mark.parametrize(("build", "shape"), CASES)
def test_in_evaluation_an_image_does_not_depend_on_its_batch(build, shape):
    network = build().double()
    images = torch.randn(6, *shape).double()
    network(images)  # moves the running statistics away from their start
    network.eval()
    torch.testing.assert_close(network(images)[:2], network(images[:2]), rtol=0, atol=1e-12)


def test_an_image_too_small_is_refused():
    with pytest.raises(ValueError, match="image_size=4"):
        SmallConvNet(in_channels=1, image_size=4, num_classes=2)
