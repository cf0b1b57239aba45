from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from trilemma.cli import main as cli
from trilemma.loggers.settings import run_settings, shown


def test_what_is_secret_or_says_where_is_left_out():
    private = {
        "api_key": "abc",
        "HF_TOKEN": 1,
        "password": {"a": 1},
        "hydra": {"lr": 1},
        "paths": {"lr": 1},
        "root": "data",
        "save_dir": "here",
        "a": "/home/someone/data",
        "b": "~/data",
        "c": "../data",
        "d": "https://host.example/x",
        "e": "two words: one@host",
        "f": Path("x"),
        "g": {"deep": {"secret": 1}},
    }
    public = {"lr": 0.1, "flip": False, "shape": [1, 28, 28], "experiment": "mnist/vqvae", "drop_path": 0.1, "x": None}
    assert shown({**private, **public}) == public


def test_a_class_is_named_without_its_modules():
    node = {"_target_": "torch.optim.adamw.AdamW", "_partial_": True, "lr": 0.1}
    assert shown({"optimizer": node}) == {"optimizer": {"class": "AdamW", "lr": 0.1}}


def test_settings_of_a_run():
    cli.register_resolvers()
    with initialize_config_dir(str(cli.CONF), version_base="1.3"):
        private = ["run.budget=CANARY", "data.root=CANARY", "paths.run_dir=/tmp/CANARY"]
        cfg = compose("train", ["experiment=mnist/vq_diffusion", "experiment_name=mnist/vq_diffusion", *private])
    OmegaConf.set_struct(cfg, False)
    settings = run_settings(cfg)
    assert "CANARY" not in str(settings)
    assert settings["experiment"] == "mnist/vq_diffusion"
    assert settings["process"]["class"] == "MaskAndReplace"
    assert settings["network"]["class"] == "BidirectionalTransformer"
    assert settings["trainer"]["max_steps"] == cfg.trainer.max_steps
    assert settings["model"]["class"] == "DiscreteDiffusion"
    assert "network" not in settings["model"]  # said once
