"""VQ-Diffusion as the experiment builds it, counted by hand."""

import torch

from trilemma.codecs.quantizer import EMAQuantizer
from trilemma.codecs.vq import VQ
from trilemma.conditions.label import LabelCondition
from trilemma.evaluation.cost.work import count_work
from trilemma.models.discrete_diffusion import DiscreteDiffusion
from trilemma.networks.autoencoder import ConvDecoder, ConvEncoder
from trilemma.networks.transformer.bidirectional import BidirectionalTransformer
from trilemma.processes.categorical.closed_form import MaskAndReplace
from trilemma.processes.categorical.schedules import VQDiffusionPaper
from trilemma.samplers.categorical.ancestral import Ancestral
from trilemma.samplers.guidance import ClassifierFree
from trilemma.training.loss_weights import Simple
from trilemma.training.timesteps import ImportanceTimesteps

K, SIDE, LATENT, LABELS = 128, 7, 8, 10
DIM, DEPTH, HEADS, CONDITION, FREQUENCIES = 128, 4, 4, 64, 64
CHANNELS, BLOCKS = 64, 2
L = SIDE * SIDE


def model():
    torch.manual_seed(0)
    codec = VQ(
        image_shape=(1, 4 * SIDE, 4 * SIDE),
        encoder=ConvEncoder(
            in_channels=1, channels=CHANNELS, out_channels=LATENT, num_downsamples=2, num_res_blocks=BLOCKS
        ),
        decoder=ConvDecoder(
            in_channels=LATENT, channels=CHANNELS, out_channels=1, num_upsamples=2, num_res_blocks=BLOCKS
        ),
        quantizer=EMAQuantizer(codebook_size=K, dim=LATENT),
    )
    network = BidirectionalTransformer(
        num_states=K + 1,
        num_classes=K,
        code_shape=(SIDE, SIDE),
        dim=DIM,
        depth=DEPTH,
        num_heads=HEADS,
        condition_dim=CONDITION,
        mlp_kernel=3,
    )
    return DiscreteDiffusion(
        codec=codec,
        process=MaskAndReplace(K, VQDiffusionPaper()),
        network=network,
        condition=LabelCondition(LABELS, CONDITION),
        sampler=Ancestral(25),
        guidance=ClassifierFree(2.0),
        times=ImportanceTimesteps(100),
        weight=Simple(),
    ).eval()


def linear(inputs, outputs, positions=1):
    return 2 * inputs * outputs * positions


def convolution(inputs, outputs, kernel, side, groups=1):
    return 2 * (inputs // groups) * outputs * kernel**2 * side**2


def network_flops():
    steer = linear(2 * FREQUENCIES, DIM) + linear(DIM, DIM) + linear(CONDITION, DIM)
    attention = linear(DIM, 3 * DIM, L) + 2 * (2 * L * L * DIM) + linear(DIM, DIM, L)
    perceptron = linear(DIM, 4 * DIM, L) + linear(4 * DIM, DIM, L) + convolution(4 * DIM, 4 * DIM, 3, SIDE, 4 * DIM)
    layer = linear(DIM, 6 * DIM) + attention + perceptron
    return steer + DEPTH * layer + linear(DIM, 2 * DIM) + linear(DIM, K, L)


def decoder_flops():
    block = convolution(CHANNELS, CHANNELS, 3, SIDE) + convolution(CHANNELS, CHANNELS, 1, SIDE)
    half = CHANNELS // 2
    rise = convolution(CHANNELS, 4 * half, 3, SIDE) + convolution(half, 4 * 1, 3, 2 * SIDE)
    return convolution(LATENT, CHANNELS, 3, SIDE) + BLOCKS * block + rise


def test_25_guided_steps_with_the_decoder_equal_the_hand_count():
    diffusion = model()
    work = count_work(diffusion, lambda num: diffusion.sample(num, condition=3), num_images=2)
    network, codec = work.subnetwork("network"), work.subnetwork("codec")
    assert (network.num_calls, network.evaluations_per_image) == (25, 50)
    assert network.flops_per_image == 50 * network_flops()
    assert (codec.num_calls, codec.evaluations_per_image) == (1, 1)
    assert codec.flops_per_image == decoder_flops()
    assert work.subnetwork("condition").evaluations_per_image == 1
    assert work.flops_per_image == 50 * network_flops() + decoder_flops()


def test_half_an_interval_of_guidance_runs_the_second_branch_there_only():
    diffusion = model()
    guidance = ClassifierFree(2.0, start=0.5)
    work = count_work(diffusion, lambda num: diffusion.sample(num, condition=3, guidance=guidance))
    # t = 25/25 .. 13/25 lie above 1/2 and 12/25 .. 1/25 below
    assert work.subnetwork("network").evaluations_per_image == 13 + 2 * 12
