"""A training that goes wrong ends with one line, status 1, and a run that can be looked at and gone on with."""

import json

import pytest


def test_a_loss_that_is_not_finite(command, tmp_path):
    pytest.importorskip("mlxtend")
    result = command(
        "train", "experiment=demo/vqvae", "debug=fast", "run.id=x", "trainer.max_steps=6", "optimizer.lr=1e30", "scheduler=none",
        "trainer.val_check_interval=100", "callbacks.checkpoint.every_n_batches=1", "callbacks.non_finite.every_n_batches=1",
    )  # fmt: skip
    lines = [line for line in result.err.splitlines() if line.strip()]
    assert result.status == 1, result.err
    assert len(lines) == 1
    run = tmp_path / "outputs/demo/vqvae/x"
    assert lines[0] == (
        "error: training stopped at batch 2: train/reconstruction of batch 2 is not finite; "
        f"the last good checkpoint is {run / 'checkpoints/step-00000001.ckpt'}"
    )
    assert [path.name for path in (run / "checkpoints").glob("step-*.ckpt")] == ["step-00000001.ckpt"]
    record = json.loads((run / "run.json").read_text())
    assert (record["status"], record["checkpoint"]) == ("stopped", "checkpoints/step-00000001.ckpt")
