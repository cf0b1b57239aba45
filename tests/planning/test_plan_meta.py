import time

import pytest
import torch
from torch import nn

from trilemma.networks.unet.unet import UNet
from trilemma.planning.model import on_meta
from trilemma.processes.gaussian.schedules import LinearBeta


def test_weights_and_buffers_are_shapes_only():
    with on_meta():
        network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    assert all(tensor.is_meta for tensor in network.state_dict().values())
    assert [tuple(p.shape) for p in network.parameters()] == [(4, 3), (4,), (4,), (4,)]


def test_frozen_weights_stay_frozen_and_missing_ones_missing():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.fixed = nn.Parameter(torch.ones(2), requires_grad=False)
            self.register_parameter("none", None)
            self.register_buffer("nothing", None)

    with on_meta():
        odd = Odd()
    assert odd.fixed.is_meta
    assert not odd.fixed.requires_grad
    assert odd.none is None
    assert odd.nothing is None


def test_other_tensors_are_real():
    with on_meta():
        schedule = LinearBeta(100)  # looks at its own table
        assert not torch.ones(2).is_meta
    assert 0 < float(schedule.alpha(1.0)) < 1


def test_it_ends_where_it_ends():
    with pytest.raises(RuntimeError, match="stop"), on_meta():
        raise RuntimeError("stop")
    assert not nn.Linear(2, 2).weight.is_meta


def test_a_large_network_takes_no_time():
    start = time.process_time()
    with on_meta():
        network = UNet(
            in_channels=3, out_channels=3, image_size=64, channels=1024, channel_mults=(1, 2, 4), num_heads=8
        )
    assert sum(p.numel() for p in network.parameters()) > 2e9
    assert time.process_time() - start < 5
