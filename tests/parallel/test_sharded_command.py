"""A sharded run from the command line: trained by two processes, sampled by one, gone on with by one and by two."""

import re

import pytest

from command import run

TRAIN = (
    "experiment=demo/vq_diffusion",
    "debug=fast",
    "data.batch_size=16",
    "optimizer=muon",
    "trainer.val_check_interval=2",
    "callbacks.checkpoint.every_n_batches=2",
    "run.id=sharded",
)
TWO = ("trainer=fsdp", "trainer.devices=2", "activation_checkpointing=true")


@pytest.mark.slow
def test_train_by_two_sample_by_one_go_on_by_one_and_by_two(tmp_path):
    place = f"paths.output_dir={tmp_path}"
    run(
        "train", "experiment=demo/vqvae", "debug=fast", place
    )  # the first stage, which processes may not train together
    first = run("train", *TRAIN, *TWO, "trainer.max_steps=4", place)
    assert "Finished" in first.stdout
    folder = tmp_path / "demo" / "vq_diffusion" / "sharded"
    sampled = run(
        "sample", f"ckpt={folder / 'checkpoints' / 'last.ckpt'}", "num_images=4", f"output_dir={tmp_path / 'images'}"
    )
    assert "4 images" in sampled.stdout
    for options, batches in (((), 6), (TWO, 8)):
        done = run("train", *TRAIN, *options, f"trainer.max_steps={batches}", place)
        assert f"Resuming from {folder / 'checkpoints'}" in done.stdout
        assert re.search(rf"Finished: .*step-0000000{batches}\.ckpt", done.stdout)
