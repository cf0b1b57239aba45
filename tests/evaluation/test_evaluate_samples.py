import dataclasses
import getpass
import logging
import math
import socket

import pytest
import torch

from trilemma.data.split import Split
from trilemma.errors import UserError
from trilemma.evaluation.metrics.authenticity import authenticity
from trilemma.evaluation.metrics.fd_infinity import fd_infinity
from trilemma.evaluation.metrics.frechet import Moments, frechet_distance
from trilemma.evaluation.metrics.kid import kid
from trilemma.evaluation.metrics.prdc import prdc
from trilemma.evaluation.protocol import Machine, Protocol
from trilemma.evaluation.samples import evaluate_samples


def as_split(images, labels=None) -> Split:
    return Split(images=images, labels=labels, captions=None, index=torch.arange(len(images)))


@pytest.fixture
def real(random_images) -> Split:
    return as_split(random_images(120, seed=2))


@pytest.fixture
def held_out(random_images) -> Split:
    return as_split(random_images(60, seed=3))


@pytest.fixture
def protocol(extractor) -> Protocol:
    return Protocol(
        data="toy_set",
        data_fingerprint="ab" * 32,
        split="train",
        num_images=60,
        extractor=extractor.name,
        model="a model",
        weights="ema",
        seed=0,
        machine=Machine(cpu="a CPU", num_cores=2, num_threads=1, accelerator=None, torch_version="2.13.0"),
    )


def test_numbers_are_those_of_the_metrics(extractor, real, held_out, random_images):
    samples = random_images(60, seed=4)
    predicted = extractor.logits(samples).argmax(1)
    labels = predicted.clone()
    labels[:15] = (labels[:15] + 1) % 3
    scores = evaluate_samples(samples, labels, real=real, held_out=held_out, extractor=extractor)
    features = extractor.features(samples)
    assert scores.metrics[f"FD[{extractor.name}]"] == pytest.approx(
        frechet_distance(features, extractor.features(real.images)), rel=1e-9
    )
    assert scores.metrics["label_accuracy"] == 0.75
    shares = [scores.metrics[f"class_share/{name}"] for name in "abc"]
    assert shares == pytest.approx([float((predicted == k).double().mean()) for k in range(3)])
    assert scores.metrics["num_images"] == scores.held_out_baseline["num_images"] == 60
    for name in ("precision", "coverage"):
        assert scores.metrics[f"{name}_ratio"] == scores.metrics[name] / scores.held_out_baseline[name]


def test_the_floor_is_what_held_out_images_score(extractor, real, held_out):
    # Held-out images as samples: the same subset, so that every number is its own floor.
    scores = evaluate_samples(held_out.images, real=real, held_out=held_out, extractor=extractor)
    floor = {name: pytest.approx(value, rel=1e-9, abs=1e-12) for name, value in scores.held_out_baseline.items()}
    # C_T compares halves of the held-out images, and these samples are both halves.
    # The jackknife leaves out other tenths, since samples and held-out images are shuffled each in their own way.
    loose = ("ct", f"FD_stderr[{extractor.name}]")
    for name in loose:
        del floor[name]
    own = (name for name in scores.metrics if name not in loose and not name.endswith("_ratio"))
    assert {name: scores.metrics[name] for name in own} == floor
    assert scores.metrics["precision_ratio"] == scores.metrics["coverage_ratio"] == 1.0


def test_a_real_subset_of_equal_size_is_the_reference(extractor, random_images):
    # As many real images as samples: the subset is the whole, and prdc can be told directly.
    real, samples = random_images(30, seed=5), random_images(30, seed=6)
    split = as_split(real)
    scores = evaluate_samples(samples, real=split, held_out=as_split(random_images(30, seed=7)), extractor=extractor)
    expected = prdc(extractor.features(real), extractor.features(samples))
    assert [scores.metrics[n] for n in ("precision", "recall", "density", "coverage")] == [
        expected.precision,
        expected.recall,
        expected.density,
        expected.coverage,
    ]


def test_distances_and_copies_are_those_of_their_metrics(extractor, random_images):
    # As many real images as samples, so that the subset is the whole.
    real, samples, held_out = (random_images(60, seed=seed) for seed in (5, 6, 7))
    scores = evaluate_samples(samples, real=as_split(real), held_out=as_split(held_out), extractor=extractor)
    a, b = extractor.features(samples), extractor.features(real)
    kernel, limit = kid(a, b), fd_infinity(a, Moments.of(b))
    name = extractor.name
    assert scores.metrics[f"KID[{name}]"] == pytest.approx(kernel.value, rel=1e-9)
    assert scores.metrics[f"KID_stderr[{name}]"] == pytest.approx(kernel.stderr, rel=1e-9)
    assert scores.metrics[f"FD_inf[{name}]"] == pytest.approx(limit.value, rel=1e-9)
    assert scores.metrics[f"FD_inf_stderr[{name}]"] == pytest.approx(limit.stderr, rel=1e-9)
    assert scores.metrics["authenticity"] == authenticity(b, a)
    assert 0 < scores.metrics["authenticity"] < 1


def test_no_extrapolation_from_few_samples(extractor, real, held_out, random_images):
    # A fifth of 35 images is more than the 6 dimensions, a fifth of 34 is not.
    for num, told in ((35, True), (34, False)):
        scores = evaluate_samples(random_images(num, seed=16), real=real, held_out=held_out, extractor=extractor)
        assert (f"FD_inf[{extractor.name}]" in scores.metrics) is told


def test_the_copycat_has_the_best_distance_and_no_authenticity(extractor, held_out, random_images):
    # As many training images as samples: the copycat is the training set, and its distance is zero.
    real = as_split(random_images(60, seed=2))
    samples = random_images(60, seed=17)
    scores = evaluate_samples(samples, real=real, held_out=held_out, extractor=extractor)
    name = f"FD[{extractor.name}]"
    assert scores.training_set_baseline[name] < 1e-9 < 1e-6 < min(scores.held_out_baseline[name], scores.metrics[name])
    assert scores.training_set_baseline["authenticity"] == 0.0 < scores.held_out_baseline["authenticity"]
    assert scores.training_set_baseline["ct"] < -5 < -2 < scores.held_out_baseline["ct"] < 2
    assert {n for n in scores.metrics if not n.endswith("_ratio")} == set(scores.training_set_baseline)


def test_a_generator_that_copies_is_seen(extractor, real, held_out):
    scores = evaluate_samples(real.images[10:70], real=real, held_out=held_out, extractor=extractor)
    assert scores.metrics["authenticity"] == 0.0
    assert scores.metrics["ct"] < -5


def test_real_labels_give_the_ceiling_of_label_accuracy(extractor, real, held_out):
    labels = extractor.logits(held_out.images).argmax(1)
    labels[::4] = (labels[::4] + 1) % 3
    floor = as_split(held_out.images, labels)
    scores = evaluate_samples(held_out.images, real=real, held_out=floor, extractor=extractor)
    assert scores.held_out_baseline["label_accuracy"] == 0.75
    assert "label_accuracy" not in scores.metrics
    foreign = as_split(held_out.images, labels + 7)
    scores = evaluate_samples(held_out.images, real=real, held_out=foreign, extractor=extractor)
    assert "label_accuracy" not in scores.held_out_baseline


@pytest.mark.parametrize("num", [60, 90])  # all samples, and some chosen from them
def test_order_changes_nothing_but_rounding(extractor, real, held_out, random_images, num):
    samples = random_images(num, seed=8)
    order = torch.randperm(num, generator=torch.Generator().manual_seed(0))
    a, b = (evaluate_samples(s, real=real, held_out=held_out, extractor=extractor) for s in (samples, samples[order]))
    assert a.metrics == {name: pytest.approx(value, rel=1e-9, abs=1e-10) for name, value in b.metrics.items()}


def test_the_size_of_batches_changes_nothing_but_rounding(extractor, real, held_out, random_images):
    samples = random_images(90, seed=8)
    a = evaluate_samples(samples, real=real, held_out=held_out, extractor=extractor)
    extractor.batch_size = 7
    b = evaluate_samples(samples, real=real, held_out=held_out, extractor=extractor)
    for one, other in (
        (a.metrics, b.metrics),
        (a.held_out_baseline, b.held_out_baseline),
        (a.training_set_baseline, b.training_set_baseline),
    ):
        assert one == {name: pytest.approx(value, rel=1e-3, abs=1e-6) for name, value in other.items()}


def test_fewer_held_out_images_than_samples_is_said(extractor, real, held_out, random_images, caplog):
    with caplog.at_level(logging.WARNING):
        scores = evaluate_samples(random_images(90, seed=9), real=real, held_out=held_out, extractor=extractor)
    assert "only 60 real images for 90 samples" in caplog.text
    assert (scores.metrics["num_images"], scores.held_out_baseline["num_images"]) == (90, 60)


def test_subsets_are_drawn_from_the_whole(extractor, real, random_images):
    # The first half is one image over and over: whoever takes the first few sees no variety.
    sorted_images = torch.cat([random_images(1, seed=13).expand(40, -1, -1, -1), random_images(40, seed=14)])
    few = random_images(30, seed=15)
    scores = evaluate_samples(few, real=real, held_out=as_split(sorted_images), extractor=extractor)
    assert scores.held_out_baseline["recall"] > 0
    scores = evaluate_samples(sorted_images, real=real, held_out=as_split(few), extractor=extractor)
    assert scores.metrics["recall"] > 0
    scores = evaluate_samples(few, real=as_split(sorted_images), held_out=as_split(few), extractor=extractor)
    assert scores.metrics["coverage"] > 0


def test_a_collapsed_generator_has_numbers(extractor, real, held_out, random_images):
    samples = random_images(1, seed=10).expand(60, -1, -1, -1)
    scores = evaluate_samples(samples, real=real, held_out=held_out, extractor=extractor)
    assert all(math.isfinite(value) for value in scores.metrics.values())
    assert scores.metrics["recall"] == 0.0
    assert scores.metrics["modes_hit"] == 1


@pytest.mark.parametrize("num", [1, 5])
def test_too_few_samples_are_refused(extractor, real, held_out, random_images, num):
    with pytest.raises(UserError, match="at least 6"):
        evaluate_samples(random_images(num, seed=11), real=real, held_out=held_out, extractor=extractor)


@pytest.mark.parametrize(
    ("labels", "words"), [(torch.zeros(59).long(), "one label a sample"), (torch.full((60,), 3), "not classes of")]
)
def test_labels_that_do_not_fit_are_refused(extractor, real, held_out, random_images, labels, words):
    with pytest.raises(UserError, match=words):
        evaluate_samples(random_images(60, seed=12), labels, real=real, held_out=held_out, extractor=extractor)


def test_two_thousand_images_are_no_smoke(protocol):
    assert dataclasses.replace(protocol, num_images=1999).tier == "smoke"
    assert dataclasses.replace(protocol, num_images=2000).tier == "standard"


def test_a_protocol_names_no_host_or_user():
    machine = Machine.here()
    assert machine.num_cores >= 1
    assert machine.cpu
    text = repr(machine)
    assert socket.gethostname() not in text
    assert machine.torch_version == torch.__version__
    assert f"/{getpass.getuser()}" not in text


def test_neighbours_are_those_of_the_features(extractor, real, held_out, random_images):
    samples = torch.cat([random_images(20, seed=4), real.images[7:8]])
    found = evaluate_samples(samples, real=real, held_out=held_out, extractor=extractor)
    assert found.neighbours.indices[20, 0] == 7
    assert found.neighbours.distances[20, 0] == 0
    distances = torch.cdist(extractor.features(samples).double(), extractor.features(real.images).double())
    assert torch.equal(found.neighbours.indices[:, 0], distances.argmin(dim=1))
    assert found.closeness[20] == 0
    assert float((found.closeness > 1).double().mean()) == pytest.approx(
        authenticity(extractor.features(real.images), extractor.features(samples))
    )
