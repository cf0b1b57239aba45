"""Every kind of family, small, and the runs that the processes of a test train."""

import random

import numpy as np
import torch
from torch import nn

from tiny_run import trainer_of
from trilemma.callbacks.checkpoint import Checkpoints
from trilemma.callbacks.ema import EMA
from trilemma.callbacks.learning_rate import LearningRate
from trilemma.callbacks.monitors.collapse import Collapse
from trilemma.callbacks.monitors.loss_by_time import TimeLoss
from trilemma.callbacks.monitors.modes import ModeHistogram
from trilemma.callbacks.monitors.non_finite import NonFinite
from trilemma.callbacks.pictures.grids import Reconstructions, SampleGrid
from trilemma.callbacks.pictures.latent_walk import LatentWalk
from trilemma.callbacks.pictures.trajectories import ForwardStrip, NoiseThenDenoise, ReverseStrip
from trilemma.callbacks.random_state import RandomState
from trilemma.codecs.kl import KL
from trilemma.codecs.pixels import PixelLevels, Pixels
from trilemma.codecs.quantizer import EMAQuantizer
from trilemma.codecs.vq import VQ
from trilemma.conditions.label import LabelCondition
from trilemma.data.base import ImageData
from trilemma.data.split import Split
from trilemma.distributions.logistic import DiscretisedLogisticOutput
from trilemma.loggers.csv_file import CSVLogger
from trilemma.models.ar_transformer import ARTransformer
from trilemma.models.autoencoder_kl import AutoencoderKL
from trilemma.models.classifier import Classifier
from trilemma.models.ddgan import DDGAN
from trilemma.models.ddpm import DDPM
from trilemma.models.discrete_diffusion import DiscreteDiffusion
from trilemma.models.gan import GAN
from trilemma.models.imagebart import ImageBART
from trilemma.models.noisy_classifier import NoisyClassifier
from trilemma.models.pixelcnn import PixelCNN
from trilemma.models.pixelcnn_pp import PixelCNNPlusPlus
from trilemma.models.vae import VAE
from trilemma.models.vqgan import VQGAN
from trilemma.models.vqvae import VQVAE
from trilemma.networks.autoencoder import ConvDecoder, ConvEncoder
from trilemma.networks.classifier import SmallConvNet
from trilemma.networks.dcgan import DCDiscriminator, DCGenerator
from trilemma.networks.discriminator import TimeDiscriminator
from trilemma.networks.patch_discriminator import PatchDiscriminator
from trilemma.networks.pixelcnn.gated import GatedPixelCNN
from trilemma.networks.pixelcnn.plus_plus import PixelCNNPlusPlus as PlusPlusNetwork
from trilemma.networks.transformer.bidirectional import BidirectionalTransformer
from trilemma.networks.transformer.causal import CausalTransformer
from trilemma.networks.transformer.encoder_decoder import EncoderDecoderTransformer
from trilemma.networks.transformer.vq_diffusion import VQDiffusionTransformer
from trilemma.networks.unet.encoder import UNetEncoder
from trilemma.networks.unet.latent_unet import LatentMapping, LatentUNet
from trilemma.networks.unet.unet import UNet
from trilemma.networks.vector_coder import VectorDecoder, VectorEncoder
from trilemma.processes.categorical.closed_form import MaskAndReplace, Uniform
from trilemma.processes.categorical.schedules import Linear, VQDiffusionPaper
from trilemma.processes.gaussian.parameterization import Eps
from trilemma.processes.gaussian.process import GaussianProcess
from trilemma.processes.gaussian.schedules import VPSDE, CosineBeta
from trilemma.samplers.autoregressive import AutoregressiveSampler
from trilemma.samplers.categorical.ancestral import Ancestral
from trilemma.samplers.gaussian.ancestral import GaussianAncestral
from trilemma.samplers.gaussian.ddim import DDIM
from trilemma.samplers.guidance import ClassifierFree, Guidance
from trilemma.training.adversarial import Hinge, Relativistic
from trilemma.training.adversary import Adversary
from trilemma.training.augmentation import DifferentiableAugmentation
from trilemma.training.loss_weights import Simple
from trilemma.training.muon import MuonAdamW
from trilemma.training.reconstruction import SquaredError
from trilemma.training.timesteps import ImportanceTimesteps, UniformTimesteps

K, T, SIDE, LABELS, BATCH = 4, 4, 8, 3, 8


def adamw(named):
    # A large epsilon: of a gradient near zero, rounding must not become a whole step.
    return torch.optim.AdamW(named, lr=0.01, eps=1e-3, fused=True)


def muon(named):
    return MuonAdamW(named, lr=0.01)


def decay(optimizer):
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: 1 / (n + 1))


def opinionated(network):
    """A zero head knows nothing, and what lies behind it learns nothing."""
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    return network


def unet(**options):
    options = {"channel_mults": (1, 2), "num_res_blocks": 1, "attention_resolutions": (4,), **options}
    return opinionated(UNet(in_channels=1, out_channels=1, image_size=SIDE, channels=8, scale_shift=True, **options))


def tokens(network=BidirectionalTransformer, **options):
    process = MaskAndReplace(K, VQDiffusionPaper())
    made = network(
        num_states=process.num_states,
        num_classes=K,
        code_shape=(SIDE, SIDE),
        dim=16,
        depth=2,
        num_heads=2,
        condition_dim=16,
        **options.pop("network_options", {}),
    )
    return DiscreteDiffusion(
        codec=PixelLevels((1, SIDE, SIDE), K),
        process=process,
        network=opinionated(made),
        condition=LabelCondition(LABELS, 16),
        sampler=Ancestral(3),
        guidance=ClassifierFree(2.0),
        times=ImportanceTimesteps(T),
        weight=Simple(),
        **{"optimizer": muon, **options},
    )


def ddpm(**options):
    learned = options.get("variance") == "learned"
    return DDPM(
        codec=Pixels((1, SIDE, SIDE)),
        process=GaussianProcess(CosineBeta(T)),
        network=unet(condition_dim=8, learn_variance=learned),
        condition=LabelCondition(LABELS, 8),
        sampler=DDIM(3),
        guidance=ClassifierFree(2.0),
        parameterization=Eps(),
        weight=Simple(),
        optimizer=adamw,
        **{"times": ImportanceTimesteps(T, min_count=1), **options},
    )


def ddgan(**options):
    return DDGAN(
        codec=Pixels((1, SIDE, SIDE)),
        process=GaussianProcess(VPSDE()),
        network=LatentUNet(unet=unet(condition_dim=8), mapping=LatentMapping(latent_dim=4, hidden_dim=8, out_dim=8)),
        discriminator=TimeDiscriminator(in_channels=1, image_size=SIDE, channels=(8, 16), condition_dim=8),
        condition=LabelCondition(LABELS, 8),
        discriminator_condition=LabelCondition(LABELS, 8),
        sampler=GaussianAncestral(T),
        guidance=Guidance(),
        num_timesteps=T,
        r1_interval=2,
        optimizer=adamw,
        scheduler=decay,
        gradient_clip_val=0.5,
        discriminator_gradient_clip_val=0.5,
        **options,
    )


def dcgan():
    """With batch normalisation in both networks, under penalties, which differentiate it twice."""
    sizes = {"image_size": SIDE, "condition_dim": 8}
    return GAN(
        codec=Pixels((1, SIDE, SIDE)),
        network=DCGenerator(latent_dim=4, out_channels=1, channels=(8, 8), **sizes),
        discriminator=DCDiscriminator(in_channels=1, channels=(8, 8), **sizes),
        condition=LabelCondition(LABELS, 8),
        discriminator_condition=LabelCondition(LABELS, 8),
        guidance=Guidance(),
        objective=Relativistic(),
        augment=DifferentiableAugmentation(),
        r1_weight=0.1,
        r2_weight=0.1,
        penalty_interval=2,
        optimizer=adamw,
        scheduler=decay,
    )


def encoder(out_channels):
    return ConvEncoder(in_channels=1, channels=8, out_channels=out_channels, num_downsamples=1, num_res_blocks=1)


def decoder(in_channels):
    return ConvDecoder(in_channels=in_channels, channels=8, out_channels=1, num_upsamples=1, num_res_blocks=1)


def vqvae():
    # No k-means and no restarts: those draw from torch's global generators, which differ between processes.
    quantizer = EMAQuantizer(codebook_size=5, dim=4, kmeans_init=False, dead_code_threshold=0.0, decay=0.8)
    codec = VQ(encoder=encoder(4), decoder=decoder(4), quantizer=quantizer, image_shape=(1, SIDE, SIDE))
    return VQVAE(codec=codec, optimizer=adamw)


def vqgan():
    """Its discriminator learns from the third batch on, and acts from the fifth."""
    stage = vqvae()
    discriminator = PatchDiscriminator(in_channels=1, channels=8, num_halvings=1)
    return VQGAN(
        codec=stage.codec,
        reconstruction=SquaredError(),
        adversary=Adversary(discriminator=discriminator, objective=Hinge(), start=4, num_warmup_batches=2),
        optimizer=adamw,
        scheduler=decay,
        accumulate_grad_batches=2,
    )


def autoencoder_kl():
    codec = KL(encoder=encoder(4), decoder=decoder(2), image_shape=(1, SIDE, SIDE))
    return AutoencoderKL(codec=codec, reconstruction=SquaredError(), kl_weight=0.1, optimizer=adamw)


def classifier():
    return Classifier(
        network=SmallConvNet(num_classes=LABELS, in_channels=1, image_size=SIDE, dropout=0.0),
        mirror=True,
        optimizer=adamw,
    )


def noisy_classifier():
    network = UNetEncoder(in_channels=1, image_size=SIDE, num_classes=LABELS, channels=8, channel_mults=(1, 2))
    return NoisyClassifier(
        codec=Pixels((1, SIDE, SIDE)),
        process=GaussianProcess(CosineBeta(T)),
        network=opinionated(network),
        times=UniformTimesteps(),
        num_labels=LABELS,
        optimizer=adamw,
    )


def autoregressive(**options):
    return {
        "condition": LabelCondition(LABELS, 8),
        "sampler": AutoregressiveSampler(),
        "guidance": Guidance(),
        "optimizer": adamw,
        **options,
    }


def pixelcnn():
    network = GatedPixelCNN(
        num_classes=K, code_shape=(SIDE, SIDE), channels=8, depth=2, head_channels=8, condition_dim=8
    )
    codec = PixelLevels((1, SIDE, SIDE), K, stochastic=True)
    return PixelCNN(codec=codec, network=opinionated(network), **autoregressive(guidance=ClassifierFree(2.0)))


def ar_transformer():
    network = CausalTransformer(num_classes=K, code_shape=(SIDE, SIDE), dim=16, depth=2, num_heads=2, condition_dim=8)
    codec = PixelLevels((1, SIDE, SIDE), K, stochastic=True)
    return ARTransformer(codec=codec, network=opinionated(network), **autoregressive(guidance=ClassifierFree(2.0)))


def imagebart():
    network = EncoderDecoderTransformer(
        num_classes=K,
        code_shape=(SIDE, SIDE),
        num_scales=2,
        dim=16,
        encoder_depth=2,
        decoder_depth=2,
        num_heads=2,
        condition_dim=8,
    )
    return ImageBART(
        codec=PixelLevels((1, SIDE, SIDE), K, stochastic=True),
        process=Uniform(K, Linear()),
        network=opinionated(network),
        times=ImportanceTimesteps(2),
        **autoregressive(guidance=ClassifierFree(2.0)),
    )


def pixelcnn_pp():
    network = PlusPlusNetwork(
        in_channels=1, image_size=SIDE, channels=8, num_blocks=1, num_levels=2, dropout=0.0, condition_dim=8
    )
    return PixelCNNPlusPlus(codec=Pixels((1, SIDE, SIDE)), network=opinionated(network), **autoregressive())


def vae():
    coder = {"image_shape": (1, SIDE, SIDE), "hidden_dim": 16, "condition_dim": 8}
    return VAE(
        codec=Pixels((1, SIDE, SIDE)),
        encoder=VectorEncoder(trunk=encoder(4), out_channels=6, **coder),
        decoder=VectorDecoder(trunk=decoder(4), in_channels=3, **coder),
        output=DiscretisedLogisticOutput(256),
        condition=LabelCondition(LABELS, 8),
        guidance=Guidance(),
        free_bits=0.02,
        kl_warmup=8,
        optimizer=adamw,
    )


FAMILIES = {
    "discrete_diffusion": tokens,
    "vq_diffusion_released": lambda: tokens(VQDiffusionTransformer, optimizer=adamw),
    "ddpm": lambda: ddpm(objective="hybrid", variance="learned"),
    "vqvae": vqvae,
    "vqgan": vqgan,
    "autoencoder_kl": autoencoder_kl,
    "vae": vae,
    "classifier": classifier,
    "noisy_classifier": noisy_classifier,
    "pixelcnn": pixelcnn,
    "pixelcnn_pp": pixelcnn_pp,
    "ar_transformer": ar_transformer,
    "imagebart": imagebart,
    "ddgan": lambda: ddgan(accumulate_grad_batches=2),
    "dcgan": dcgan,
}
ADVERSARIAL = ("ddgan", "dcgan", "vqgan")


class Dots(ImageData):
    """Random pictures with labels."""

    name = "dots"

    def read(self):
        generator = torch.Generator().manual_seed(4)

        def split(num, first):
            images = torch.randint(256, (num, 1, SIDE, SIDE), generator=generator, dtype=torch.uint8)
            return Split(
                images=images, labels=torch.arange(num) % LABELS, captions=None, index=first + torch.arange(num)
            )

        return {"train": split(48, 0), "val": split(19, 48), "test": split(8, 67)}, [str(i) for i in range(LABELS)]


class Brightness:
    """A labeller: how bright an image is."""

    def num_classes(self, data):
        return LABELS

    def labels(self, data, images):
        return (images.flatten(1).double().mean(1) * LABELS / 256).long()


def callbacks(every):
    """Everything that calls the model or looks at its weights."""
    return [
        EMA([0.9, 0.5]),
        NonFinite(every_n_batches=2),
        Collapse(2, min_diversity=0.0),
        TimeLoss(max_rise=1e9),
        ModeHistogram(labeller=Brightness(), every_n_batches=4, num_images=6, min_share=0.0),
        SampleGrid(4, num_rows=2, num_columns=2),
        Reconstructions(4),
        ForwardStrip(2),
        ReverseStrip(6, num_rows=1, num_images=2),
        LatentWalk(6, num_rows=1, num_columns=2),
        NoiseThenDenoise(6, num_images=2, strengths=(0.5,)),
        RandomState(),
        LearningRate(),
        Checkpoints(every, keep_last=9, monitor="family"),
    ]


def build(name, *, dropout=False):
    torch.manual_seed(0)
    model = FAMILIES[name]()
    model.noise_seed = 7
    if dropout:
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.3
    return model


def train(folder, model, *, batches=12, every=6, resume=None, accumulate=1, extra=(), **options):
    """Train in this process, as one of however many there are; returns the trainer."""
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    by_hand = not model.automatic_optimization
    trainer = trainer_of(
        folder,
        [*callbacks(every), *extra],
        max_steps=batches // (model.accumulate_grad_batches if by_hand else accumulate),
        logger=CSVLogger(folder),
        val_check_interval=6,
        use_distributed_sampler=False,
        **({} if by_hand else {"gradient_clip_val": 0.5, "accumulate_grad_batches": accumulate}),
        **options,
    )
    data = Dots(batch_size=BATCH, flip=True)
    data.num_train_batches = batches
    trainer.fit(model, datamodule=data, ckpt_path=resume, weights_only=True)
    return trainer
