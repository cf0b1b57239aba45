"""Two batches of an experiment, each once however many ask for it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from every_config import Case, Scale, composed, shrunk
from omegaconf import DictConfig, OmegaConf

from command import Result, run_here
from trilemma.config.small_options import group_nodes


@dataclass(frozen=True)
class Training:
    """A training that came to its end, well or not."""

    result: Result
    checkpoint: Path

    @property
    def succeeded(self) -> bool:
        return self.result.status == 0 and self.checkpoint.is_file()


@dataclass
class Trainings:
    """Trains cases in this process, the first stage of a prior before the prior.

    Attributes:
        folder: Where runs go.
        scale: How much is shrunk.
        data: Gives the overrides that name the data of a configuration, all but codes.
        done: What was trained.
    """

    folder: Path
    scale: Scale
    data: Callable[[DictConfig], list[str]]
    done: dict[Case, Training] = field(default_factory=dict)

    def of(self, case: Case) -> Training:
        """Train a case, unless that was done."""
        if case not in self.done:
            result = run_here("train", *self.arguments(case), f"run.id={case.slug}", f"paths.output_dir={self.folder}")
            checkpoint = self.folder / case.experiment / case.slug / "checkpoints" / "last.ckpt"
            self.done[case] = Training(result, checkpoint)
        return self.done[case]

    def arguments(self, case: Case) -> list[str]:
        """What is typed after `train.py`."""
        cfg = composed(case)
        given = list(case.overrides)
        recipe = None if OmegaConf.select(cfg, "codec._target_") else OmegaConf.select(cfg, "codec.experiment")
        first = None if recipe is None else Case(recipe)
        if first is not None:
            trained = self.of(first)
            assert trained.succeeded, f"{first.experiment}, the first stage of {case.experiment}: {trained.result.err}"
            given.append(f"codec.checkpoint={trained.checkpoint}")
        if first is not None and cfg.data._target_.endswith(".TokenData"):
            given.append(f"data.root={self._tokens(first)}")
        else:
            given += self.data(cfg)
        small = shrunk(composed(case, *given), self.scale)
        return [f"experiment={case.experiment}", "debug=fast", "trainer.accelerator=cpu", *given, *small]

    def _tokens(self, first: Case) -> Path:
        """The codes of a first stage's data."""
        folder = self.folder / "tokens" / first.slug
        if not folder.is_dir():
            overrides = [text for text in self.arguments(first) if not text.startswith("experiment=")]
            node: Any = OmegaConf.to_container(composed(first, *overrides).data, resolve=False)
            option = next(name for name, other in group_nodes("data").items() if other["_target_"] == node["_target_"])
            said = [f"data.{key}={value}" for key, value in node.items() if _is_plain(key, value)]
            result = run_here(
                "src/trilemma/tokenize",
                f"ckpt={self.of(first).checkpoint}",
                f"output_dir={folder}",
                f"paths.output_dir={self.folder}",
                f"data={option}",
                *said,
            )
            assert result.status == 0, result.err
        return folder


def _is_plain(key: str, value: Any) -> bool:
    return key != "_target_" and value is not None and "${" not in str(value)
