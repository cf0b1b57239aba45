import io
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from trilemma.callbacks.random_state import RandomState, capture, restore


def draw():
    return [
        torch.rand(3).tolist(),
        torch.randn(1).item(),
        np.random.rand(3).tolist(),  # noqa: NPY002
        np.random.randn(1).tolist(),  # noqa: NPY002
        random.random(),
        random.gauss(0, 1),
    ]


def test_restores_every_generator_through_a_safe_file():
    draw()  # leaves NumPy and Python in the middle of a pair of normal numbers
    buffer = io.BytesIO()
    torch.save(capture(), buffer)
    expected = draw()
    assert draw() != expected
    buffer.seek(0)
    restore(torch.load(buffer, weights_only=True))
    assert draw() == expected


def test_restores_once_and_before_the_first_batch():
    callback = RandomState()
    state = callback.state_dict()
    expected = draw()
    callback.load_state_dict(state)
    trainer = SimpleNamespace(world_size=1, global_rank=0, is_global_zero=True)
    callback.on_train_start(trainer, None)
    assert draw() == expected
    callback.on_train_start(trainer, None)
    assert draw() != expected


def test_says_when_the_number_of_processes_differs():
    callback = RandomState()
    callback.load_state_dict(callback.state_dict())
    with pytest.warns(UserWarning, match="written by 1 processes and is resumed by 2"):
        callback.on_train_start(SimpleNamespace(world_size=2, global_rank=0, is_global_zero=True), None)


def test_processes_that_were_seeded_alike_draw_apart_and_the_first_as_if_alone():
    drawn = []
    for world_size, rank in ((1, 0), (2, 0), (2, 1)):
        torch.manual_seed(3)
        RandomState().on_train_start(
            SimpleNamespace(world_size=world_size, global_rank=rank, is_global_zero=not rank), None
        )
        drawn.append(torch.rand(3).tolist())
    alone, first, second = drawn
    assert first == alone
    assert second != first
