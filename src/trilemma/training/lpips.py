"""LPIPS: feature maps of VGG-16, from files of weights that the user has."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
from torch import Tensor, nn

from trilemma.errors import UserError
from trilemma.networks.vgg import VGG16
from trilemma.training.perceptual import FeatureMaps

_MEAN, _DEVIATION = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # of ImageNet in [-1, 1], as LPIPS takes them


class LPIPSMaps(FeatureMaps):
    """VGG-16 as LPIPS reads it; grey images are repeated to three channels.

    Source: Zhang et al. 2018 (LPIPS), version 0.1.

    Args:
        path: Weights of VGG-16 as torchvision publishes them (`vgg16-397923af.pth`): a state dict, read without executing anything.
        linear_path: The learned channel weights as LPIPS publishes them (`weights/v0.1/vgg.pth`); None weighs all channels alike.
    """

    def __init__(self, path: str, linear_path: str | None = None) -> None:
        super().__init__()
        self.path = path
        self.linear_path = linear_path

    def check(self, num_channels: int) -> None:
        """See `FeatureMaps`."""
        if num_channels not in (1, 3):
            raise UserError(
                f"LPIPS reads images of 1 or 3 channels, not of {num_channels}: take model/reconstruction=absolute"
            )
        super().check(num_channels)

    def build(self) -> _LPIPSNetwork:
        """See `FeatureMaps`."""
        with torch.device("meta"):  # weights that a file brings, or that a plan does without, are not drawn first
            return _LPIPSNetwork(VGG16())

    def load(self) -> nn.Module:
        """See `FeatureMaps`."""
        network = self.build()
        try:
            network.vgg.load_state_dict(_read(self.path, "VGG-16", list(network.vgg.state_dict())), assign=True)
        except RuntimeError as error:
            raise UserError(f"{self.path} has no weights of VGG-16: {str(error).splitlines()[-1].strip()}") from None
        if self.linear_path is not None:
            names = [f"lin{i}.model.1.weight" for i in range(5)]
            found = _read(self.linear_path, "LPIPS's channel weights", names)
            network.weights = [found[name].flatten() for name in names]
        return network

    def maps(self, network: nn.Module, images: Tensor) -> list[Tensor]:
        """See `FeatureMaps`."""
        maps: list[Tensor] = network(images)
        return maps

    def channel_weights(self, network: nn.Module) -> list[Tensor] | None:
        """See `FeatureMaps`."""
        assert isinstance(network, _LPIPSNetwork)
        device = next(network.parameters()).device
        return None if network.weights is None else [weight.to(device) for weight in network.weights]


class _LPIPSNetwork(nn.Module):
    def __init__(self, vgg: VGG16) -> None:
        super().__init__()
        self.vgg = vgg
        self.weights: list[Tensor] | None = None

    def forward(self, images: Tensor) -> list[Tensor]:
        mean, deviation = (images.new_tensor(x).view(3, 1, 1) for x in (_MEAN, _DEVIATION))
        maps: list[Tensor] = self.vgg((images.expand(-1, 3, -1, -1) - mean) / deviation)
        return maps


def _read(path: str, what: str, names: list[str]) -> dict[str, Tensor]:
    """Read tensors of a state dict by name."""
    if not Path(path).is_file():
        raise UserError(f"{path}: there is no such file; name one with the weights of {what}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError) as error:
        raise UserError(f"{path} is no state dict of tensors: name a file with the weights of {what}") from error
    missing = [name for name in names if not isinstance(state, dict) or not isinstance(state.get(name), Tensor)]
    if missing:
        raise UserError(f"{path} has no {missing[0]}: name a file with the weights of {what}")
    return {name: state[name] for name in names}
