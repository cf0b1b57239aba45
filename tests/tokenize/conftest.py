"""A small first stage and small data to encode."""

import pytest
import torch

from trilemma.codecs.kl import KL
from trilemma.codecs.quantizer import EMAQuantizer
from trilemma.codecs.vq import VQ
from trilemma.data.base import ImageData, Split
from trilemma.data.split import MappedImages
from trilemma.networks.autoencoder import ConvDecoder, ConvEncoder

SIDE = 8
SIZES = {"train": 26, "val": 9, "test": 5}


class Toy(ImageData):
    name = "toy"

    def __init__(self, *, seed_of_images=0, stored=False, captions=False, **options):
        super().__init__(batch_size=6, **options)
        self.seed_of_images, self.stored, self.captions = seed_of_images, stored, captions

    def read(self):
        generator = torch.Generator().manual_seed(self.seed_of_images)

        def split(size):
            images = torch.randint(256, (size, 1, SIDE, SIDE), dtype=torch.uint8, generator=generator)
            if self.stored:
                images = MappedImages(images.numpy(), torch.arange(size).numpy(), digest="x")
            captions = [f"é {i}" for i in range(size)] if self.captions else None
            return Split(images=images, labels=torch.arange(size) % 3, captions=captions, index=torch.arange(size) + 7)

        return {name: split(size) for name, size in SIZES.items()}, ["a", "b", "c"]

    @property
    def fingerprint(self):
        return f"fingerprint {self.seed_of_images}"


def make_vq(seed=0, codebook_size=12):
    torch.manual_seed(seed)
    codec = VQ(
        image_shape=(1, SIDE, SIDE),
        encoder=ConvEncoder(in_channels=1, channels=8, out_channels=4, num_downsamples=2, num_res_blocks=1),
        decoder=ConvDecoder(in_channels=4, channels=8, out_channels=1, num_upsamples=2, num_res_blocks=1),
        quantizer=EMAQuantizer(codebook_size=codebook_size, dim=4, kmeans_init=False),
    )
    return codec.freeze()


def make_kl():
    torch.manual_seed(0)
    codec = KL(
        image_shape=(1, SIDE, SIDE),
        encoder=ConvEncoder(in_channels=1, channels=8, out_channels=4, num_downsamples=2, num_res_blocks=1),
        decoder=ConvDecoder(in_channels=2, channels=8, out_channels=1, num_upsamples=2, num_res_blocks=1),
    )
    return codec.freeze()


@pytest.fixture
def toy():
    return Toy


@pytest.fixture
def vq():
    return make_vq


@pytest.fixture
def kl():
    return make_kl
