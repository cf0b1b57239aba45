"""The first stage of a two-stage model: find it, or train it first."""

from __future__ import annotations

import hashlib
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from filelock import FileLock
from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from trilemma.checkpoints.load import Weights, load_with_config
from trilemma.codecs.base import Codec
from trilemma.config.build import build
from trilemma.config.nodes import plain
from trilemma.config.swapped import drop_foreign, literal
from trilemma.data.base import ImageData
from trilemma.datasets.tokens import TokenData
from trilemma.distributed import requeue, signals
from trilemma.distributed.devices import is_multi_process
from trilemma.distributed.job import this_job
from trilemma.errors import PREEMPTED, Stopped, UserError
from trilemma.first_stage.recipe import recipe_hash, recipe_of
from trilemma.runs.record import finished_runs

_OWN = (
    "batch_size",
    "seed",
    "max_val_images",
    "num_workers",
    "flip",
)  # of the data's settings, those that each stage has for itself


def resolve_codec(cfg: DictConfig, data: ImageData, resume: str | None = None) -> Codec:
    """Build the codec that `cfg.codec` asks for and put its own configuration in the node's place.

    Args:
        cfg: The prior's configuration; `cfg.codec` is either an object's node, or {checkpoint, experiment, overrides, read_as},
            where `read_as`, if it is there, names a codec whose only argument, `codec`, is the one that was loaded.
        resume: The checkpoint that the run goes on from: it brings its codec with it.
        data: The prior's data: a codec belongs to it if it was trained on the same content.

    Raises:
        UserError: If the checkpoint is missing, wrong, or holds no codec.
    """
    node = cfg.codec
    if "_target_" in node:
        codec = build(plain(cfg, "codec"), where="codec")
        assert isinstance(codec, Codec)
        return codec
    if resume is not None:
        path = Path(resume)  # even if a newer codec has been trained since
    elif node.checkpoint == "auto" and isinstance(data, TokenData):
        raise UserError(
            f"data=tokens needs the codec that made its codes: codec.checkpoint=PATH (a {data.codec['name']} with codes of shape "
            f"{tuple(data.codec['code_shape'])}, hash {data.codec['hash']})"
        )
    elif node.checkpoint == "auto":
        path = Path(this_job().broadcast("codec", lambda: str(_auto(cfg, data))))
    else:
        path = Path(node.checkpoint)
        if not path.is_file():
            raise UserError(
                f"codec.checkpoint={path}: there is no such file; give a checkpoint, or codec.checkpoint=auto"
            )
    codec, described, config = load_codec(path, data, read_as=node.get("read_as"), where="codec.checkpoint")
    if resume is not None:
        cfg.facts.codec = config["facts"]["codec"]
    else:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        cfg.facts.codec = {"checkpoint": str(path), "sha256": digest, "experiment": config.get("experiment")}
    OmegaConf.set_struct(cfg, False)
    cfg.codec = described
    OmegaConf.set_struct(cfg, True)
    return codec


def load_codec(
    path: Path, data: ImageData, *, read_as: str | None, where: str, weights: Weights = "ema"
) -> tuple[Codec, dict[str, Any], dict[str, Any]]:
    """Load the codec in a checkpoint of a first stage or of a prior.

    Args:
        path: The checkpoint.
        data: What it is to encode.
        read_as: A codec whose only argument, `codec`, is the one that was loaded; None takes that itself.
        where: The key that names the checkpoint, for error messages.
        weights: See `load`.

    Returns:
        The codec, the node that describes it, and the checkpoint's configuration.

    Raises:
        UserError: If the checkpoint is missing, wrong, or holds no codec for such images.
    """
    model, config = load_with_config(path, weights=weights)
    codec = getattr(model, "codec", None)
    if not isinstance(codec, Codec):
        raise UserError(
            f"{where}={path}: a {type(model).__name__} has no codec; give a first stage such as mnist/vqvae"
        )
    if tuple(codec.image_shape) != tuple(data.image_shape):
        raise UserError(
            f"{where}={path} was trained on images of shape {tuple(codec.image_shape)}, and data gives {tuple(data.image_shape)}"
        )
    described = config["model"]["codec"]
    # The codec in a prior's checkpoint is already wrapped by `read_as`.
    if read_as is not None and described["_target_"] != read_as:
        codec = build({"_target_": read_as, "codec": codec}, where="codec.read_as")
        described = {"_target_": read_as, "codec": described}
    assert isinstance(codec, Codec)
    return codec, described, config


def _auto(cfg: DictConfig, data: ImageData) -> Path:
    """Find the newest finished run of the recipe on this data; where there is none, train it now in a child process."""
    overrides = [f"experiment={cfg.codec.experiment}", *_same_data(cfg), *[str(o) for o in cfg.codec.overrides]]
    debug = HydraConfig.get().runtime.choices.get("debug") if HydraConfig.initialized() else None
    if debug not in (None, "None") and not any(o.startswith("debug=") for o in overrides):
        overrides.append(f"debug={debug}")
    if not GlobalHydra.instance().is_initialized():
        raise UserError("codec.checkpoint=auto works from train.py only: give a path")
    recipe = compose("train", overrides=[*overrides, "run.id=auto"])
    drop_foreign(recipe, overrides)
    wanted = recipe_hash(recipe_of(recipe))
    output_dir = Path(cfg.paths.output_dir)
    if found := _find(output_dir, wanted, data.fingerprint):
        return found
    name = f"auto-{wanted[:8]}-{data.fingerprint[:8]}"
    places = [f"paths.{key}={literal(cfg.paths[key])}" for key in ("output_dir", "data_dir")]
    command = [*overrides, f"run.id={name}", *places]
    if is_multi_process(cfg):
        raise UserError(
            f"no codec has been trained for this data yet: first run  python train.py {shlex.join(command)}"
        )
    locks = output_dir / ".locks"
    locks.mkdir(parents=True, exist_ok=True)
    with FileLock(locks / f"{name}.lock"):
        if found := _find(output_dir, wanted, data.fingerprint):
            return found
        _check_same_data(compose("train", overrides=command), data)
        print(
            f"First stage: no finished {cfg.codec.experiment} of this recipe for this data yet; training it now "
            "(codec.checkpoint=PATH takes one you have).",
            flush=True,
        )
        entry = Path(sys.argv[0]).resolve()
        status = _run([sys.executable, str(entry), *command])
        if status != 0:
            raise UserError(
                f"training the first stage failed (status {status}); its error is above. Alone it is trained by  "
                f"python train.py {shlex.join(command)}"
            )
    if found := _find(output_dir, wanted, data.fingerprint):
        return found
    raise UserError(f"the first stage finished but is not found under {output_dir}: was its run directory moved?")


def _same_data(cfg: DictConfig) -> list[str]:
    """Override the first stage's data by the prior's: the same data set, with all settings that decide its images."""
    choice = HydraConfig.get().runtime.choices.get("data") if HydraConfig.initialized() else None
    if choice in (None, "None"):
        return []
    node = plain(cfg, "data")
    return [f"data={choice}", *(f"data.{k}={literal(v)}" for k, v in node.items() if k not in (*_OWN, "_target_"))]


def _run(command: list[str]) -> int:
    """Run a child to its end and return its status.

    A signal that asks to stop is passed on: the child, which gets Ctrl-C from the terminal anyway, writes its checkpoint first.

    Raises:
        Stopped: If the child stopped because it was asked to.
    """
    environment = {**os.environ, requeue.BY_WHOM: "script"}  # this process requeues the job, not the child
    with subprocess.Popen(command, env=environment) as child:
        told = False
        while True:
            try:
                status = child.wait(timeout=0.5)
                break
            except subprocess.TimeoutExpired:
                if signals.asked() and not told:
                    child.send_signal(signal.SIGTERM)
                    told = True
            except KeyboardInterrupt:
                child.wait()
                raise
    if status == PREEMPTED:
        raise Stopped(PREEMPTED, "stopped while the first stage was trained; the same command goes on")
    return status


def _check_same_data(recipe: DictConfig, data: ImageData) -> None:
    """Refuse a recipe whose data are not the prior's, before it is trained for an hour."""
    theirs = build(plain(recipe, "data"), where="data")
    theirs.setup("fit")
    if theirs.fingerprint != data.fingerprint:
        raise UserError(
            "codec.checkpoint=auto: the codec's recipe names other data settings than this run, and the two must see the same "
            "images: repeat yours for it, as in codec.overrides=['data.val_size=1000']"
        )


def _find(output_dir: Path, recipe: str, fingerprint: str) -> Path | None:
    runs = [r for r in finished_runs(output_dir) if r["recipe"] == recipe and r["data"] == fingerprint]
    paths = [Path(r["checkpoint"]) for r in sorted(runs, key=lambda r: r["time"], reverse=True)]
    return next((p for p in paths if p.is_file()), None)
