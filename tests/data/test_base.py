import contextlib

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from trilemma.data.images import to_float
from trilemma.data.loader import BatchStream
from trilemma.errors import UserError


class Recorder(LightningModule):
    """Writes down what it trains and validates on."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.trained, self.validated = [], []

    def training_step(self, batch, batch_idx):
        self.trained.append((batch_idx, batch["image"]))
        return self.layer(batch["image"].mean().reshape(1, 1)).sum()

    def validation_step(self, batch, batch_idx):
        self.validated.append(batch["index"])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class KillAfter(Callback):
    """Save between two batches, then die."""

    def __init__(self, num_batches, path):
        self.num_batches, self.path = num_batches, path

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx + 1 == self.num_batches:
            trainer.save_checkpoint(self.path)
            raise KeyboardInterrupt


def fit(data, *, ckpt_path=None, callbacks=(), **options):
    model = Recorder()
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        max_epochs=-1,
        callbacks=list(callbacks),
        **options,
    )
    with contextlib.suppress(SystemExit):  # what Lightning makes of KeyboardInterrupt
        trainer.fit(model, datamodule=data, ckpt_path=ckpt_path, weights_only=True)
    return model


@pytest.mark.parametrize("stop", [1, 4, 7, 10])
@pytest.mark.parametrize(("accumulate", "num_workers"), [(1, 0), (2, 0), (1, 2)])
def test_a_killed_run_resumes_in_mid_stream_and_sees_exactly_what_was_left(
    toy, tmp_path, stop, accumulate, num_workers
):
    options = {
        "max_steps": 12 // accumulate,
        "accumulate_grad_batches": accumulate,
        "val_check_interval": 4,
        "check_val_every_n_epoch": None,
    }
    torch.manual_seed(0)
    whole = fit(toy(batch_size=3, flip=True), **options)
    expected = [batch["image"] for batch in BatchStream(toy().split("train"), batch_size=3, num_batches=12, flip=True)]
    assert [n for n, _ in whole.trained] == list(range(12))
    assert all(torch.equal(a, b) for (_, a), b in zip(whole.trained, expected, strict=True))

    path = tmp_path / "killed.ckpt"
    data = toy(batch_size=3, flip=True, num_workers=num_workers)
    killed = fit(data, callbacks=[KillAfter(stop, path)], **options)
    assert len(killed.trained) == stop
    resumed = fit(toy(batch_size=3, flip=True, num_workers=num_workers), ckpt_path=path, **options)
    assert [n for n, _ in resumed.trained] == list(range(stop, 12))
    assert all(torch.equal(a, b) for (_, a), b in zip(resumed.trained, expected[stop:], strict=True))


def test_training_draws_nothing_from_the_global_generator(toy):
    before = torch.get_rng_state()
    data = toy()
    data.setup()
    loader = data.train_dataloader()
    list(loader)
    assert torch.equal(before, torch.get_rng_state())


def test_resuming_with_another_batch_size_is_refused(toy, tmp_path):
    path = tmp_path / "killed.ckpt"
    fit(toy(batch_size=3), callbacks=[KillAfter(2, path)], max_steps=5)
    with pytest.raises(UserError, match="batch_size 3, this one has 5"):
        fit(toy(batch_size=5), ckpt_path=path, max_steps=5)


def test_a_longer_run_goes_on_from_a_finished_one(toy, tmp_path):
    path = tmp_path / "end.ckpt"
    fit(toy(batch_size=3), callbacks=[KillAfter(5, path)], max_steps=5)
    resumed = fit(toy(batch_size=3), ckpt_path=path, max_steps=8)
    assert [n for n, _ in resumed.trained] == [5, 6, 7]


def test_the_length_of_the_run_follows_from_the_trainer_unless_it_is_set(toy):
    data = toy(num_train=20)
    assert len(data.train_dataloader()) == 5
    data.trainer = Trainer(max_steps=7, accumulate_grad_batches=3, accelerator="cpu", logger=False)
    assert len(data.train_dataloader()) == 21
    data.num_train_batches = 4
    assert len(data.train_dataloader()) == 4


def test_validation_is_limited_and_testing_is_not(toy):
    data = toy(max_val_images=5)
    model = fit(data, max_steps=1, val_check_interval=1, check_val_every_n_epoch=None, num_sanity_val_steps=0)
    assert [index.tolist() for index in model.validated] == [[100, 101, 102, 103], [104]]
    assert [len(batch["index"]) for batch in data.test_dataloader()] == [4, 1]


def test_the_source_is_read_once_and_on_demand(toy):
    data = toy()
    assert data.num_reads == 0
    assert (data.image_shape, data.num_labels, data.label_names) == ((3, 4, 6), 2, ["even", "odd"])
    data.setup("fit")
    data.train_dataloader(), data.val_dataloader(), data.fingerprint
    assert data.num_reads == 1


def test_fingerprint_is_of_the_content(toy):
    assert toy(batch_size=2, seed=1, flip=True).fingerprint == toy().fingerprint
    assert toy(num_val=6).fingerprint != toy().fingerprint
    record = toy().split_record()
    assert record["fingerprint"] == toy().fingerprint
    assert {name: part["size"] for name, part in record["splits"].items()} == {"train": 10, "val": 7, "test": 5}


@pytest.mark.parametrize(("largest", "dtype"), [(255, torch.uint8), (256, torch.int16), (40_000, torch.int32)])
def test_codes_are_kept_small_and_served_whole(toy, largest, dtype):
    data = toy(num_train=4)
    codes = {"train": torch.tensor([[0], [1], [2], [largest]]), "val": torch.arange(7)[:, None]}
    data.use_codes(codes)
    assert data._codes["train"].dtype == dtype
    (batch,) = data.train_dataloader()
    assert "image" not in batch
    assert torch.equal(batch["code"], codes["train"][batch["index"] - 100])
    val = next(iter(data.val_dataloader()))
    assert torch.equal(val["code"], codes["val"][:4])
    assert torch.equal(val["image"], to_float(data.split("val").images[:4]))


def test_continuous_codes_are_served_as_they_are(toy):
    data = toy(num_train=4, flip=True)
    codes = {"train": torch.rand(2, 4, 5, 1, 3) * 1e-3, "val": torch.rand(7, 5, 1, 3)}
    data.use_codes(codes)
    (batch,) = data.train_dataloader()
    rows = batch["index"] - 100
    straight, mirrored = codes["train"][:, rows]
    same = torch.stack([(batch["code"] == c).flatten(1).all(1) for c in (straight, mirrored)])
    assert same.sum(0).tolist() == [1] * 4
    assert same.any(1).all()  # with this seed some are mirrored and some are not
    val = next(iter(data.val_dataloader()))
    assert torch.equal(val["code"], codes["val"][:4])


def test_codes_of_the_wrong_shape_are_an_error(toy):
    val = torch.zeros(7, 3, dtype=torch.int64)
    with pytest.raises(ValueError, match="'train'"):
        toy().use_codes({"train": torch.zeros(9, 3), "val": val})
    with pytest.raises(ValueError, match=r"\(2, 10, '\.\.\.'\)"):
        toy(flip=True).use_codes({"train": torch.zeros(10, 3), "val": val})
    with pytest.raises(ValueError, match="'val'"):
        toy().use_codes({"train": torch.zeros(10, 3)})
    with pytest.raises(ValueError, match=r"got \(10,\)"):
        toy().use_codes({"train": torch.zeros(10), "val": val})


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"batch_size": 11}, {"seed": -1}, {"max_val_images": 0}])
def test_arguments_out_of_range_are_refused(toy, wrong):
    with pytest.raises(UserError, match=rf"data\.{next(iter(wrong))}={next(iter(wrong.values()))}"):
        toy(**wrong).setup()
