"""Cached sampling of the PixelCNNs against a forward pass of the whole grid at every position: `python benchmarks/pixelcnn.py`.

Images of 28 x 28, batch 16, one thread. A whole pass is timed on its own and counted once a position; the draws are timed with the
cached samples alone, so the ratio is a lower bound. A drawn batch is then scored by whole passes, and must be what they would draw.
"""

from __future__ import annotations

import argparse
import statistics

from timing import interleaved

import torch  # isort: skip
from torch import Tensor

from trilemma.codecs.pixels import PixelLevels, Pixels
from trilemma.conditions.none import NoCondition
from trilemma.models.autoregressive import AutoregressiveModel
from trilemma.models.pixelcnn import PixelCNN
from trilemma.models.pixelcnn_pp import PixelCNNPlusPlus
from trilemma.networks.pixelcnn.gated import GatedPixelCNN
from trilemma.networks.pixelcnn.plus_plus import PixelCNNPlusPlus as PlusPlusNetwork
from trilemma.processes.noise import Noise
from trilemma.samplers.autoregressive import AutoregressiveSampler
from trilemma.samplers.guidance import Guidance

SHAPE, BATCH = (1, 28, 28), 16


def models() -> dict[str, AutoregressiveModel]:
    """The models, untrained: their work is the same."""
    torch.manual_seed(0)
    gated = GatedPixelCNN(num_classes=256, code_shape=SHAPE[1:], channels=64, depth=6)
    plus_plus = PlusPlusNetwork(in_channels=1, image_size=28, channels=32, num_blocks=2, dropout=0.0)
    sampler, guidance = AutoregressiveSampler(), Guidance()
    return {
        "gated PixelCNN, 64 channels x 6 layers": PixelCNN(
            codec=PixelLevels(SHAPE, 256), network=gated, condition=NoCondition(), sampler=sampler, guidance=guidance
        ).eval(),
        "PixelCNN++, 32 channels, 3 levels of 2 blocks": PixelCNNPlusPlus(
            codec=Pixels(SHAPE), network=plus_plus, condition=NoCondition(), sampler=sampler, guidance=guidance
        ).eval(),
    }


def sample(model: AutoregressiveModel) -> Tensor:
    """A batch of codes."""
    return model.sample_codes(Noise(0, torch.arange(BATCH)), BATCH)


@torch.no_grad()
def check(model: AutoregressiveModel) -> None:
    """A step's probabilities are those of a whole pass, in float64."""
    model.double()
    codes = sample(model)
    batch = {"image": model.decode(codes).double(), "index": torch.arange(BATCH)}
    whole = model.score_likelihood(batch).nats
    state, token, total = model.start(model.condition(None, num=BATCH)), None, torch.zeros(BATCH).double()
    for drawn in codes.unbind(1):
        distribution, state = model.step(token, state)
        total, token = total - distribution.log_prob(drawn).reshape(BATCH, -1).sum(1), drawn
    assert torch.allclose(total, whole, rtol=1e-6, atol=1e-6), "cached steps and whole passes differ"
    model.float()


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    print("| model | batch of cached samples, s | whole passes for it, s | ratio (median) |\n|---|---|---|---|")
    for name, model in models().items():
        check(model)
        x = sample(model)
        grid = model.decode(x) if isinstance(model, PixelCNNPlusPlus) else x
        condition = model.condition(None, num=BATCH)

        def whole(model=model, grid=grid, condition=condition):
            with torch.no_grad():
                model.distribution(grid, condition)

        times = interleaved({"cached": lambda model=model: sample(model), "whole": whole}, rounds=rounds, warmup=1)
        passes = [seconds * model.num_positions for seconds in times["whole"]]
        ratio = statistics.median(b / a for a, b in zip(times["cached"], passes, strict=True))
        print(f"| {name} | {statistics.median(times['cached']):.2f} | {statistics.median(passes):.0f} | {ratio:.0f} |")


if __name__ == "__main__":
    main()
