"""Weights & Biases that never stands in the way of training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers import WandbLogger as LightningWandbLogger

from trilemma.loggers.settings import shown
from trilemma.loggers.wandb_mode import Decision, Mode
from trilemma.loggers.wandb_profile import Profile
from trilemma.loggers.wandb_run import ATTEMPT, RunPlan, say


class WandbLogger(LightningWandbLogger):
    """Logs a run to wandb, offline by itself where there is no login or no network.

    What it writes lies below `save_dir`, flushed every second, so that a killed job loses no more and an offline run can
    be copied from a cluster and uploaded. A run that is resumed under the same `run_id` goes on in the same wandb run. The
    rows that the process before it wrote after its last checkpoint are then there twice: under the same
    `trainer/global_step`, with the same numbers where training is deterministic, and told apart by `trainer/attempt`,
    which counts the processes of the run. The highest attempt is the run that lives.

    Args:
        project: The wandb project.
        run_id: Identity of the run, the same after a resume.
        group: Runs shown together; the experiment.
        save_dir: The run directory.
        job_type: "train", "sample" or "evaluate".
        tags: Labels to filter by.
        mode: "auto" is online where there is a login and the server answers, offline otherwise; WANDB_MODE has its say.
        profile: "private" records what is logged and nothing of the machine, the user or the command; "full" is
            wandb's own default.
        init_timeout: Seconds that the server may take at the start before the run goes on offline.
        finish_timeout: Seconds that it may take at the end.

    Raises:
        UserError: If WANDB_MODE is no mode, wandb would refuse the project or a tag, or a timeout is not positive.
    """

    def __init__(
        self,
        *,
        project: str,
        run_id: str,
        group: str,
        save_dir: str,
        job_type: str = "train",
        tags: Sequence[str] = (),
        mode: Mode = "auto",
        profile: Profile = "private",
        init_timeout: float = 15.0,
        finish_timeout: float = 300.0,
    ) -> None:
        self._plan = RunPlan(
            project=project,
            run_id=run_id,
            group=group,
            save_dir=Path(save_dir),
            job_type=job_type,
            tags=tuple(tags),
            mode=mode,
            profile=profile,
            init_timeout=init_timeout,
            finish_timeout=finish_timeout,
        )
        super().__init__(project=project, id=self._plan.identity, name=run_id, save_dir=save_dir, log_model=False)
        self.attempt = 1
        self._broken = False
        # One process decides for the job, here, before the trainer exists.
        self._decision = Decision("disabled") if getattr(rank_zero_only, "rank", 0) else self._plan.decide()

    @property
    def mode(self) -> str:
        """What was decided: "online", "offline" or "disabled"."""
        return self._decision.mode

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The wandb run, opened when it is first asked for."""
        if self._experiment is None:
            self._experiment, self.attempt = self._plan.open(self._decision)
        return self._experiment

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any) -> None:
        """Write settings into the run's config: what `shown` lets through."""
        with self._harmless():
            self.experiment.config.update(shown(dict(params)), allow_val_change=True)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Write a row, with the trainer's step and the attempt."""
        if not self._broken:
            with self._harmless():
                run = self.experiment  # opening it says which attempt this is
                super().log_metrics({**metrics, ATTEMPT: self.attempt} if run else metrics, step)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Close the run, so that the next one in this process is another."""
        if self._experiment is not None:
            with self._harmless():
                self._plan.close(self._experiment, exit_code=0 if status == "success" else 1)
            self._experiment = None

    @contextmanager
    def _harmless(self) -> Iterator[None]:
        """Its service process may die, of a full memory say: training goes on, and metrics.csv has every row."""
        import wandb

        try:
            yield
        except (wandb.Error, OSError, RuntimeError) as error:
            if not self._broken:
                say(f"wandb: stopped logging, training goes on ({type(error).__name__}: {str(error).strip()[:200]})")
            self._broken = True
