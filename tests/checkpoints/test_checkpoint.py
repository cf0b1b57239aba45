import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch

from tiny_run import Tiny
from trilemma.checkpoints.load import init_weights
from trilemma.checkpoints.read import newest_valid, read_checkpoint
from trilemma.checkpoints.write import AtomicCheckpointIO
from trilemma.errors import UserError
from trilemma.models.base import CHECKPOINT_FORMAT


def good(step=1):
    weights = {"w": torch.arange(3000.0) + step, "b": torch.ones(7)}
    return {
        "state_dict": weights,
        "global_step": step,
        "trilemma": {"format": CHECKPOINT_FORMAT, "version": "0.1.0", "config": {}},
    }


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "step-00000001.ckpt"
    AtomicCheckpointIO().save_checkpoint(good(), path)
    return path


def test_round_trip(path):
    checkpoint = AtomicCheckpointIO().load_checkpoint(path)
    assert checkpoint["trilemma"] == good()["trilemma"]
    assert torch.equal(checkpoint["state_dict"]["w"], good()["state_dict"]["w"])


def test_missing(tmp_path):
    with pytest.raises(UserError, match=r"there is no checkpoint .*no\.ckpt"):
        read_checkpoint(tmp_path / "no.ckpt")
    with pytest.raises(UserError, match="there is no checkpoint"):
        read_checkpoint(tmp_path)


def test_truncated_anywhere(path):
    data = path.read_bytes()
    for size in {0, 1, 2, 3, 30, 100, *range(0, len(data), 997), len(data) - 22, len(data) - 1}:
        path.write_bytes(data[:size])
        with pytest.raises(UserError, match=r"truncated or damaged|not a Trilemma checkpoint") as error:
            read_checkpoint(path)
        assert "\n" not in str(error.value)
        if size != 1:
            assert "damaged" in str(error.value), size


def test_flipped_bits(path):
    """Checksums cover the records themselves, so a single wrong bit in a weight is found."""
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        weight = next(info for info in archive.infolist() if info.filename.endswith("data/0"))
    middle = data.find(torch.arange(1.0, 4.0).numpy().tobytes()) + 4 * 1500
    assert weight.header_offset < middle < weight.header_offset + weight.file_size
    data[middle] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match="truncated or damaged"):
        read_checkpoint(path)


def test_foreign_files(tmp_path):
    path = tmp_path / "x.ckpt"
    path.write_bytes(b"\x89PNG\r\n and so on")
    with pytest.raises(UserError, match="not a Trilemma checkpoint"):
        read_checkpoint(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("hello.txt", "a zip, but no checkpoint")
    with pytest.raises(UserError, match="not a Trilemma checkpoint"):
        read_checkpoint(path)
    for foreign in ({"state_dict": {}}, [1, 2], {"trilemma": 3}, {"trilemma": {"config": {}}}):
        torch.save(foreign, path)
        with pytest.raises(UserError, match="not a Trilemma checkpoint"):
            read_checkpoint(path)


@pytest.mark.parametrize(("step", "age"), [(-1, "an older"), (1, "a newer")])
def test_other_format(tmp_path, step, age):
    path = tmp_path / "x.ckpt"
    found = CHECKPOINT_FORMAT + step
    torch.save({**good(), "trilemma": {"format": found, "version": "3.1", "config": {}}}, path)
    with pytest.raises(
        UserError, match=rf"{age} Trilemma \(checkpoint format {found}, this one reads {CHECKPOINT_FORMAT}\)"
    ):
        read_checkpoint(path)


class Payload:
    def __init__(self, victim):
        self.victim = victim

    def __reduce__(self):
        return os.system, (f"touch {self.victim}",)


@pytest.mark.parametrize("legacy", [False, True])
def test_pickled_payload_is_refused_unexecuted(tmp_path, legacy):
    victim, path = tmp_path / "owned", tmp_path / "x.ckpt"
    torch.save({**good(), "extra": Payload(victim)}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(UserError, match="is refused.*system" if not legacy else "not a Trilemma") as error:
        read_checkpoint(path)
    assert "\n" not in str(error.value)
    for weights_only in (False, None):
        with pytest.raises(UserError):
            AtomicCheckpointIO().load_checkpoint(path, weights_only=weights_only)
    assert not victim.exists()
    torch.load(path, weights_only=False)  # the payload is a live one
    assert victim.exists()


def test_bare_pickle_is_refused(tmp_path):
    victim, path = tmp_path / "owned", tmp_path / "x.ckpt"
    path.write_bytes(pickle.dumps(Payload(victim)))
    with pytest.raises(UserError, match="not a Trilemma checkpoint"):
        read_checkpoint(path)
    assert not victim.exists()


def test_objects_are_not_written(path):
    before = path.read_bytes()
    with pytest.raises(TypeError, match=r"pathlib\.\w*Path"):
        AtomicCheckpointIO().save_checkpoint({**good(), "where": Path("x")}, path)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_newest_valid_passes_over_the_damaged_loudly(tmp_path, capsys):
    assert newest_valid(tmp_path) is None
    for step in (5, 10, 15):
        AtomicCheckpointIO().save_checkpoint(good(step), tmp_path / f"step-{step:08d}.ckpt")
    AtomicCheckpointIO().save_checkpoint(good(20), tmp_path / "best.ckpt")
    assert newest_valid(tmp_path).name == "step-00000015.ckpt"
    assert capsys.readouterr().err == ""
    newest = tmp_path / "step-00000015.ckpt"
    newest.write_bytes(newest.read_bytes()[:-100])
    assert newest_valid(tmp_path).name == "step-00000010.ckpt"
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "step-00000015.ckpt is truncated or damaged" in lines[0]


def save_weights(path, weights):
    AtomicCheckpointIO().save_checkpoint({**good(), "state_dict": weights}, path)


def test_starting_weights_are_counted_in_one_line(tmp_path):
    model = Tiny()
    weights = {name: torch.full_like(weight, 2.0) for name, weight in model.state_dict().items()}
    weights["net.2.bias"] = torch.zeros(7)
    weights["extra"] = weights.pop("net.0.bias")
    save_weights(tmp_path / "a.ckpt", weights)
    line = init_weights(model, tmp_path / "a.ckpt")
    assert line == (
        "5 of 7 tensors loaded; 1 of another shape (net.2.bias); 1 not in the checkpoint (net.0.bias); 1 not in this model (extra)"
    )
    assert bool((model.net[0].weight == 2.0).all())


def test_weights_of_another_family_are_refused(tmp_path):
    """A counter and a frozen layer of the same name are no weights to start from."""
    model = Tiny()
    save_weights(
        tmp_path / "a.ckpt", {"count": torch.zeros(()), "frozen.weight": torch.zeros(2, 2), "other": torch.ones(3)}
    )
    with pytest.raises(UserError, match="no weight of it has the name and shape"):
        init_weights(model, tmp_path / "a.ckpt")
