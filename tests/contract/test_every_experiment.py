"""Every model and every experiment of `conf/` trains, saves, and does from its checkpoint alone what its family can.

The fast part has one experiment a model, tiny, on data that need no download. The slow part, `make test-experiments`, has every experiment,
on its own kind of data, as it is where it is small enough for a CPU. Networks are shrunk by their class: see `SIZES`.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from every_config import ENTRIES, EXPERIMENTS, MODELS, Case, case_of
from omegaconf import DictConfig
from places import gather_real, write_pictures, write_shard
from trainings import Trainings

HERE = Path(__file__).parent
FAST = {model: case for model in MODELS if (case := case_of(model)) is not None}
NATIVE = [Case(name) for name in EXPERIMENTS]


def class_of(cfg: DictConfig) -> str:
    return str(cfg.data._target_).rsplit(".", 1)[-1]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("pictures") / "images")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory, pictures):
    """Trainings of tiny models on digits of a package, or on pictures made on the spot."""

    def data(cfg):
        if class_of(cfg) == "MNIST5k":
            return []
        if class_of(cfg) in ("MNIST", "FashionMNIST"):
            return ["data=mnist_5k"]
        return ["data=image_folder", f"data.root={pictures}"]

    return Trainings(tmp_path_factory.mktemp("tiny"), "tiny", data)


@pytest.fixture(scope="module")
def native(tmp_path_factory, pictures, data_dir):
    """Trainings of experiments as they are, on the data that they name, where these are public."""
    folder = tmp_path_factory.mktemp("native")
    own = {
        "ImageFolder": lambda: [f"data.root={pictures}"],
        "WebDataset": lambda: ["data.shards=train-*.tar", f"data.root={write_shard(pictures, folder / 'shards')}"],
    }
    with pytest.MonkeyPatch.context() as monkeypatch:
        real = gather_real(data_dir, folder / "data", monkeypatch)

        def data(cfg):
            if class_of(cfg) == "CIFAR10" and not (real / "cifar10").is_dir():
                pytest.skip("no CIFAR-10 among the test data")
            return own[class_of(cfg)]() if class_of(cfg) in own else [f"paths.data_dir={real}"]

        yield Trainings(folder / "runs", "native", data)


def assert_trains(trainings, case):
    training = trainings.of(case)
    assert training.result.status == 0, training.result.err
    assert training.checkpoint.is_file()


def assert_one_process_loads(trainings, cases):
    """All checkpoints of cases; those that did not train have failed tests of their own."""
    paths = [training.checkpoint for case in cases if (training := trainings.of(case)).succeeded]
    assert paths
    command = [sys.executable, str(HERE / "load_all.py"), *map(str, paths)]
    loaded = subprocess.run(command, capture_output=True, text=True, check=False)
    assert loaded.returncode == 0, loaded.stderr
    reports = [json.loads(line) for line in loaded.stdout.splitlines()]
    assert len(reports) == len(paths)
    assert not [f"{report['checkpoint']}: {report['failed']}" for report in reports if "failed" in report]
    assert all(report["done"] for report in reports), "every family can do something"


def test_every_model_is_covered():
    missing = [model for model in MODELS if model not in FAST]
    assert not missing, (
        f"no experiment of conf/experiment chooses {', '.join(f'model={model}' for model in missing)}: write one, or add an entry "
        "to ENTRIES of tests/contract/every_config.py"
    )
    assert set(ENTRIES) <= set(MODELS)


@pytest.mark.parametrize("model", FAST)
def test_a_model_trains_and_saves(tiny, model):
    assert_trains(tiny, FAST[model])


def test_one_process_loads_a_checkpoint_of_every_model(tiny):
    assert_one_process_loads(tiny, FAST.values())


@pytest.mark.slow
@pytest.mark.parametrize("case", NATIVE, ids=lambda case: case.experiment)
def test_an_experiment_trains_and_saves(native, case):
    assert_trains(native, case)


@pytest.mark.slow
def test_one_process_loads_a_checkpoint_of_every_experiment(native):
    assert_one_process_loads(native, NATIVE)
