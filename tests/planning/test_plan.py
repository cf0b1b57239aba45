"""`debug=plan` for every experiment, and its figures against counts of another kind."""

from functools import cache

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf, open_dict

import command
from trilemma.cli.main import register_resolvers
from trilemma.cli.train import train
from trilemma.config import CONF
from trilemma.datasets.mnist_5k import MNIST5k
from trilemma.errors import UserError
from trilemma.networks.transformer.layers import SelfAttention
from trilemma.networks.unet.layers import Upsample
from trilemma.planning.cluster import setup_of
from trilemma.planning.model import plan_model
from trilemma.planning.plan import falls_at, make_plan, time_on, ways_to_fit
from trilemma.planning.table import plan_text, scaling_text

EIGHT = ("trainer=ddp", "trainer.devices=4", "trainer.num_nodes=2")

EXPERIMENTS = sorted(
    str(p.relative_to(CONF / "experiment").with_suffix(""))
    for p in (CONF / "experiment").rglob("*.yaml")
    if p.parent.name != "oracle"
)


@pytest.fixture(autouse=True)
def hydra():
    register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


def composed(name, *overrides):
    cfg = compose("train", [f"experiment={name}", "debug=plan", *overrides], return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    with open_dict(cfg):
        del cfg["hydra"]
    return cfg


@cache
def planned(name, *overrides):
    return make_plan(composed(name, *overrides))


LARGE = ("cifar10/", "ffhq/")  # seconds each; imagenet's presets are planned below


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * name.startswith(LARGE)) for name in EXPERIMENTS]
)
def test_every_experiment_can_be_planned(name):
    plan = planned(name)
    text = plan_text(plan)
    assert text.startswith(f"Plan of {name} on a100-40gb, single")
    for words in ("in all", "of an image", "It fits." if plan.fits else "It does not fit", "the run"):
        assert words in text
    assert plan.work.flops > 0
    assert plan.memory > 4 * plan.sizes.num_trainable


# --- against counts of another kind -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("imagenet/vq_diffusion", 0.52),
        ("ffhq/vq_diffusion", 0.41),
        ("imagenet/vq_transformer", 1.41),
        ("ffhq/imagebart", 0.18),
    ],
)
def test_the_presets_have_the_size_of_the_released_configurations(name, billions):
    """Those of VQ-Diffusion to the parameter: tests/networks/test_vq_diffusion_network.py."""
    assert round(planned(name).sizes.num_trainable / 1e9, 2) == billions


def test_operations_of_the_imagenet_preset_are_those_of_its_matrices():
    """Every weight of a matrix or a kernel meets every token once; attention adds its products."""
    plan = planned("imagenet/vq_diffusion", *EIGHT)
    d, L, layers, K, B = 512, 256, 24, 1024, 32
    token = 4 * d * d + 2 * 9 * d * 4 * d  # attention, and two convolutions as if the grid had no edge
    attention = 2 * L * d  # scores and their sum, for a token
    steering = 2 * 2 * d * d  # for an image: by time and by class
    image = layers * (L * (token + attention) + steering) + L * K * d
    assert plan.setup.batch_per_gpu == B
    assert plan.work.forward_flops == 2 * B * image
    # Twice that, as what multiplies and what is multiplied each have a gradient; but for attention, whose scores are made again.
    again = layers * L * L * d
    assert plan.work.backward_flops == 2 * B * (2 * image + again)


def test_memory_of_the_imagenet_preset_is_the_sum_of_what_is_known():
    plan = planned("imagenet/vq_diffusion", *EIGHT)
    P = plan.sizes.num_trainable
    rows = {name: size for name, size, _ in plan.rows}
    assert rows["weights"] == rows["buckets of gradients"] == rows["averages"] == 4 * P
    assert rows["states of the optimiser"] == pytest.approx(8 * P, rel=1e-5)  # AdamW, and a count a weight
    rows = {name: size for name, size, _ in plan.under(strategy="fsdp").rows}
    for name, times in {"weights": 4, "gradients": 4, "states of the optimiser": 8, "averages": 4}.items():
        assert rows[name] == pytest.approx(times * P / 8, rel=1e-5)
    assert sum(rows.values()) < plan.memory


def test_a_unet_takes_three_times_its_forward_pass():
    plan = planned("cifar10/ddpm")
    assert plan.sizes.num_trainable == 35_746_307
    assert plan.work.backward_flops == pytest.approx(2 * plan.work.forward_flops, rel=0.02)
    assert plan.work.forward_flops == counted_by_layer(plan)


def counted_by_layer(plan):
    """Operations of a U-Net's forward pass, layer by layer: products of weights and cells, and those of attention."""
    network, total = plan.model.family.network, 0

    def add(module, inputs, output):
        nonlocal total
        x = inputs[0]
        if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear)):
            width = module.weight.shape[0]
            total += 2 * (output.numel() // width) * module.weight.numel()
        elif isinstance(module, SelfAttention):
            total += 2 * 2 * len(x) * x.shape[1] ** 2 * x.shape[2]
        elif isinstance(module, Upsample):  # 16 products a cell and pair of channels, from a kernel summed of nine
            channels = x.shape[1]
            total += 2 * 16 * channels**2 * (x.numel() // channels + 9)

    hooks = [module.register_forward_hook(add) for module in network.modules()]
    size = plan.setup.batch
    network(torch.empty(size, *plan.model.image_shape, device="meta"), torch.empty(size, device="meta"))
    for hook in hooks:
        hook.remove()
    return total


def test_both_networks_of_an_adversarial_family_are_counted():
    plan = planned("mnist/ddgan")
    assert set(plan.sizes.parts) == {"network", "discriminator"}
    assert not plan.model.family.shardable
    # The discriminator's turn makes an image without gradients, the generator's one with: forward passes of G, G, and of D, D, D.
    assert plan.work.backward_flops < 2 * plan.work.forward_flops


def test_activations_are_kept_or_computed_twice():
    kept = planned("mnist/vq_diffusion")
    twice = planned("mnist/vq_diffusion", "activation_checkpointing=true")
    assert (twice.work, kept.work) == (kept.otherwise, twice.otherwise)
    assert "activation_checkpointing=true would take activations from 0.16 to" in plan_text(kept)
    assert "Activations are computed twice, for" in plan_text(twice)
    assert twice.work.kept_bytes < 0.5 * kept.work.kept_bytes
    assert twice.work.forward_flops == kept.work.forward_flops
    assert kept.work.flops < twice.work.flops < kept.work.flops + kept.work.forward_flops
    with pytest.raises(UserError, match="has blocks to recompute"):
        plan_text(planned("mnist/vqvae", "activation_checkpointing=true"))


def test_weights_that_are_gathered_in_bfloat16_leave_no_copies():
    """DDP keeps a copy of every matrix for the backward pass, FSDP gathers it again."""
    plan = planned("imagenet/vq_diffusion", *EIGHT)
    shared = plan.under(strategy="fsdp").work
    assert plan.work.kept_bytes - shared.kept_bytes == pytest.approx(2 * plan.sizes.num_trainable, rel=0.04)
    assert shared.flops == plan.work.flops


def test_a_smaller_batch_takes_operations_in_proportion():
    one, two = (planned("mnist/ddpm", f"data.batch_size={size}").work for size in (32, 64))
    assert two.flops == pytest.approx(2 * one.flops, rel=0.01)
    assert two.kept_bytes == pytest.approx(2 * one.kept_bytes, rel=0.01)


# --- what it is told --------------------------------------------------------------------------------------------------


def test_nodes_precision_and_accumulation_are_the_trainers():
    plan = planned(
        "mnist/vq_diffusion",
        "trainer=ddp",
        "trainer.devices=4",
        "trainer.num_nodes=2",
        "trainer.precision=bf16-mixed",
        "trainer.accumulate_grad_batches=3",
    )
    assert (plan.setup.world_size, plan.setup.strategy, plan.setup.batch_per_gpu, plan.setup.batch) == (
        8,
        "ddp",
        8,
        3 * 64,
    )
    assert plan.setup.dtype == torch.bfloat16
    assert plan.time.forward == pytest.approx(3 * plan.work.forward_flops / (0.35 * 312e12))


def test_all_gpus_of_a_node_are_taken_where_no_number_is_given():
    assert setup_of(composed("mnist/vq_diffusion", "trainer=ddp", "trainer.devices=auto")).gpus_per_node == 4
    assert setup_of(composed("mnist/vq_diffusion", "trainer=fsdp", "plan.gpus_per_node=8")).world_size == 8
    assert setup_of(composed("mnist/vq_diffusion", "trainer.devices=auto")).world_size == 1
    assert setup_of(composed("mnist/vq_diffusion", "trainer=ddp", "trainer.devices=[0,3]")).world_size == 2


def test_mixed_precision_keeps_less():
    full, mixed = (planned("mnist/vq_diffusion", f"trainer.precision={p}").work for p in ("32-true", "bf16-mixed"))
    assert mixed.flops == full.flops
    assert mixed.kept_bytes < full.kept_bytes


def test_what_does_not_fit_is_told_what_would():
    large = planned("imagenet/vq_diffusion")
    assert not large.fits
    assert ways_to_fit(large) == [
        "activation_checkpointing=true",
        "data.batch_size=128 trainer.accumulate_grad_batches=2",
        "plan.gpu=a100-80gb",
    ]
    small = ("mnist/vq_diffusion", "plan.gpu=v100-16gb", "plan.memory_share=0.008")
    (fewer,) = (way for way in ways_to_fit(planned(*small)) if way.startswith("data.batch_size="))
    assert planned(*small, *fewer.split()).fits
    shared = ("mnist/vq_diffusion", "plan.memory_share=0.00145", "trainer=ddp", "trainer.devices=4")
    assert not planned(*shared).fits
    assert "trainer=fsdp" in ways_to_fit(planned(*shared))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["plan.gpu=a100-41gb"], "did you mean a100-40gb"),
        (["trainer=ddp", "trainer.devices=3"], "multiple of 3"),
        (["trainer.strategy=deepspeed"], "a plan knows auto, ddp and fsdp"),
        (["trainer.precision=64-true"], "trainer.precision=64-true: a plan knows"),
        (["plan.utilisation=0"], "plan.utilisation=0 is a share"),
        (
            ["plan.gpu=v100-16gb", "trainer.precision=bf16-mixed"],
            "no blocks for bfloat16: take trainer.precision=16-mixed",
        ),
        (["+model.typo=1"], "unknown override model.typo"),
    ],
    ids=["gpu", "batch", "strategy", "precision", "share", "bfloat16", "typo"],
)
def test_what_is_wrong_is_said_in_a_line(overrides, words):
    with pytest.raises(UserError, match=words):
        planned("mnist/vq_diffusion", *overrides)


def test_an_adversarial_family_is_not_shared_out():
    with pytest.raises(UserError, match="adversarial family"):
        planned("mnist/ddgan", "trainer=fsdp", "trainer.devices=2")


# --- facts ------------------------------------------------------------------------------------------------------------


def test_shapes_that_are_known_are_those_of_the_data():
    data, declared = MNIST5k(), MNIST5k.declared({"val_size": 500, "test_size": 500})
    assert (data.image_shape, data.num_labels) == (declared.image_shape, declared.num_labels)
    assert len(data.split("train")) == declared.num_train_images
    assert plan_model(composed("demo/vqvae")).num_train_images == declared.num_train_images
    assert (
        plan_model(composed("mnist/vqvae", "~data.val_size")).num_train_images == 55_000
    )  # the default of the data set
    stacked = plan_model(composed("mnist/vqvae", "data=stacked_mnist", "data.train_size=700"))
    assert (stacked.image_shape, stacked.num_labels, stacked.num_train_images) == ((3, 28, 28), 1000, 700)
    folder = plan_model(composed("images/vqvae"))
    assert (folder.image_shape, folder.num_labels, folder.num_train_images) == ((3, 32, 32), None, None)
    with pytest.raises(UserError, match=r"a plan reads no data: give facts\.image_shape"):
        plan_model(composed("mnist/vqvae", "data=tokens"))


def test_labels_that_nobody_knows_are_assumed_and_said():
    plan = planned("images/vq_diffusion")
    assert plan.model.notes == ["1000 labels are assumed: facts.num_labels=N says otherwise"]
    assert planned("images/vq_diffusion", "facts.num_labels=7").model.notes == []


def test_a_codec_without_a_recipe_needs_its_shapes():
    bare = ["codec.experiment=???", "model=vq_diffusion"]
    with pytest.raises(UserError, match=r"give codec\.experiment=RECIPE, or facts\.code_shape"):
        planned("mnist/vq_diffusion", *bare)
    plan = planned("mnist/vq_diffusion", *bare, "facts.code_shape=[7,7]", "facts.num_classes=128")
    assert plan.sizes.num_frozen == 0
    assert plan.model.notes == ["the codec's own weights are not counted: no recipe of it is named"]


# --- scaling ----------------------------------------------------------------------------------------------------------


def test_efficiency_falls_as_the_formula_says():
    plan = planned("imagenet/vq_diffusion", *EIGHT)
    plan = plan.under(assumed=OmegaConf.merge(plan.setup.assumed, {"latency_us": 0.0}))
    computing = plan.time.forward + plan.time.backward + plan.time.optimiser
    for nodes in (2, 4, 16):
        N = 4 * nodes
        sent = 2 * (N - 1) / N * plan.sizes.weights / (0.8 * 25e9)
        apart = time_on(plan, "ddp", nodes, "gpu", overlap=False)
        assert apart.efficiency == pytest.approx(computing / (computing + sent))
        assert time_on(plan, "ddp", nodes, "gpu").seconds == pytest.approx(computing + sent - plan.time.backward)
    # Of the batch of all, each GPU's part shrinks, and what is sent does not.
    half, whole = (time_on(plan, "ddp", 4, fixed, overlap=False) for fixed in ("all", "gpu"))
    assert half.forward == pytest.approx(plan.time.forward / 2)
    assert half.exposed == whole.exposed


def test_the_node_count_at_which_efficiency_falls_is_the_first():
    plan = planned("imagenet/vq_diffusion", *EIGHT)
    for fixed in ("gpu", "all"):
        for strategy in ("ddp", "fsdp"):
            nodes = falls_at(plan, strategy, fixed, overlap=True)
            assert time_on(plan, strategy, nodes, fixed).efficiency < 0.8
            assert time_on(plan, strategy, nodes - 1, fixed).efficiency >= 0.8
    assert falls_at(plan, "ddp", "gpu", overlap=True, below=0.01) is None


def test_the_table_of_nodes_has_a_row_for_each():
    plan = planned("imagenet/vq_diffusion", *EIGHT)
    text = scaling_text(plan, [1, 2, 64])
    for nodes in (1, 2, 64):
        assert sum(line.split()[:2] == [str(nodes), str(4 * nodes)] for line in text.splitlines()) == 4
    assert text.count("Efficiency falls under 80%") == 4
    with pytest.raises(UserError, match="each at least 1"):
        scaling_text(plan, [0])


def test_the_command_prints_a_plan_and_writes_nothing(tmp_path):
    done = command.run("train", "experiment=mnist/vqvae", "debug=plan", f"paths.output_dir={tmp_path}")
    assert done.stdout.startswith("Plan of mnist/vqvae on a100-40gb, single, 32-true, 2,500 updates of 64 images")
    assert done.stderr == ""
    assert list(tmp_path.iterdir()) == []


def test_there_must_be_something_to_plan():
    with pytest.raises(UserError, match="nothing to train: name an experiment"):
        train(compose("train", ["debug=plan"]))
