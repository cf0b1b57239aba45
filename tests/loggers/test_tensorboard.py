import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from trilemma.callbacks.pictures.drawing import ShowsPictures
from trilemma.errors import UserError
from trilemma.loggers.csv_file import CSVLogger
from trilemma.loggers.tensorboard import TensorBoardLogger


def test_numbers_pictures_and_settings_are_on_the_disk(tmp_path):
    log = TensorBoardLogger(tmp_path)
    log.log_hyperparams({"optimizer": {"_target_": "torch.optim.AdamW", "lr": 0.1}, "api_key": "CANARY"})
    for step in range(5):
        log.log_metrics({"train/loss": 0.5**step}, step)
    picture = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))
    log.log_image("samples", [picture], step=3, caption=["batch 3"])
    log.finalize("success")
    (file,) = (tmp_path / "tensorboard").glob("events*")
    events = EventAccumulator(str(file), size_guidance={"images": 0, "scalars": 0})
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(step, 0.5**step) for step in range(5)]
    (image,) = events.Images("samples")
    assert (image.step, image.width, image.height) == (3, 8, 8)
    text = events.Tensors("settings/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "class: AdamW" in text
    assert "lr: 0.1" in text
    assert not [path for path in file.parent.iterdir() if b"CANARY" in path.read_bytes()]


def test_resume_leaves_no_duplicate_and_loses_nothing(tmp_path, monkeypatch):
    for begin, end, sign in ((0, 10, 1), (5, 12, -1)):
        monkeypatch.setattr("time.time", lambda now=1.8e9 + begin: now)  # files are ordered by the second they begin in
        log = TensorBoardLogger(tmp_path)
        for step in range(begin, end):
            log.log_metrics({"a": float(sign * step)}, step)
        log.finalize("success")
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [e.value for e in events.Scalars("a")] == [*range(5), *range(-5, -12, -1)]


def test_which_loggers_take_pictures(tmp_path):
    assert isinstance(TensorBoardLogger(tmp_path), ShowsPictures)
    assert not isinstance(CSVLogger(tmp_path), ShowsPictures)


def test_without_the_package_one_line_names_the_extra(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise ModuleNotFoundError("tensorboard")

    monkeypatch.setattr("lightning.pytorch.loggers.TensorBoardLogger.__init__", refuse)
    with pytest.raises(UserError, match=r"pip install .*trilemma\[tensorboard\]"):
        TensorBoardLogger(tmp_path)
