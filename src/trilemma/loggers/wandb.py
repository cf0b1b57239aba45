"""Weights & Biases that never stands in the way of training."""

from __future__ import annotations

import re
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import wandb
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers import WandbLogger as LightningWandbLogger

from trilemma.errors import UserError
from trilemma.loggers.settings import shown
from trilemma.loggers.wandb_mode import Mode, decide
from trilemma.loggers.wandb_profile import PRIVATE, Profile, refusals, set_up
from trilemma.loggers.wandb_segments import next_step, segments, start_of

_ATTEMPT = "trainer/attempt"


class WandbLogger(LightningWandbLogger):
    """Logs a run to wandb, offline by itself where there is no login or no network.

    What it writes lies below `save_dir`, flushed every second, so that a killed job loses no more and an offline run can
    be copied from a cluster and uploaded. A run that is resumed under the same `run_id` and `identity` goes on in the same wandb run. The
    rows that the process before it wrote after its last checkpoint are then there twice: under the same
    `trainer/global_step`, with the same numbers where training is deterministic, and told apart by `trainer/attempt`,
    which counts the processes of the run. The highest attempt is the run that lives.

    Args:
        project: The wandb project.
        run_id: Name of the run.
        identity: What tells it from other runs of that name (another seed or folder, or begun anew), the same after a resume.
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
        UserError: If wandb would refuse the project, a tag or a variable WANDB_..., or a timeout is not positive.
    """

    def __init__(
        self,
        *,
        project: str,
        run_id: str,
        identity: str | None = None,
        group: str,
        save_dir: str,
        job_type: str = "train",
        tags: Sequence[str] = (),
        mode: Mode = "auto",
        profile: Profile = "private",
        init_timeout: float = 15.0,
        finish_timeout: float = 300.0,
    ) -> None:
        if not project or min(init_timeout, finish_timeout) <= 0:
            raise UserError("logger.wandb needs a project, and timeouts of more than 0 seconds")
        self._profile: Profile = profile
        self._folder = Path(save_dir)
        self._broken = False
        self.attempt = 1
        with refusals():
            settings = wandb.Settings(
                project=project,
                run_tags=tuple(tags),
                # The default of 15 s between flushes loses that much when a job is killed.
                x_transaction_log_flush_interval=1,
                init_timeout=init_timeout,
                finish_timeout=finish_timeout,
                finish_timeout_raises=True,
                **(PRIVATE if profile == "private" else {}),
            )
        # One process decides for the job, here, before the trainer exists.
        is_first = getattr(rank_zero_only, "rank", 0) == 0
        decided, reason = (mode, f"mode={mode}") if is_first else ("disabled", None)
        if decided == "auto":
            decided, reason = decide(set_up(profile, self._folder))
        super().__init__(
            project=project,
            id=re.sub(
                r"[:;,#?/'\\%\s]", "-", run_id if identity is None else f"{run_id}-{identity}"
            ),  # without what wandb refuses
            name=run_id,
            save_dir=save_dir,
            group=group,
            job_type=job_type,
            mode=decided,
            settings=settings,
        )
        del self._wandb_init["anonymous"]  # wandb warns of it
        if decided == "offline":
            self._go_offline(f"offline ({reason})")

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The wandb run, opened when it is first asked for: offline where the server that was to take it does not."""
        if self._experiment is None:
            earlier = segments(self._folder, self._wandb_init["id"])
            if earlier and start_of(earlier[-1]) == time.strftime("%Y%m%d_%H%M%S"):
                time.sleep(1)  # a folder is named after the second; two of one name would be one
            try:
                run = self._start()
            except wandb.Error as error:  # no connection, no right, no such entity
                # The failed attempt still holds the id, in wandb's service process.
                wandb.teardown(exit_code=1)
                for left in set(segments(self._folder, self._wandb_init["id"])) - set(earlier):
                    shutil.rmtree(left.parent, ignore_errors=True)
                self._go_offline(f"going on offline, the server did not take the run ({str(error).splitlines()[0]})")
                run = self._start()
            run.define_metric(_ATTEMPT, hidden=True)
            if earlier and (step := next_step(earlier)) > run.step:
                run.log({}, step=step)
            self.attempt = len(earlier) + 1
        return self._experiment

    def _start(self) -> Any:
        if self.mode != "disabled":
            set_up(self._profile, self._folder)
        return super().experiment

    def _go_offline(self, why: str) -> None:
        self._wandb_init["mode"] = "offline"
        self._wandb_init["settings"].silent = True
        _say(f"{why}; to upload: make sync, or wandb sync {self._folder / 'wandb'}/offline-run-*")

    @property
    def mode(self) -> str:
        """Where the run goes: "online", "offline" or "disabled"."""
        return str(self._wandb_init["mode"])

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any) -> None:
        """Write settings into the run's config: what `shown` lets through."""
        with self._harmless():
            super().log_hyperparams(shown(dict(params)))

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Write a row, with the trainer's step and the attempt."""
        if self._broken:
            return
        with self._harmless():
            _ = self.experiment  # opening it says which attempt this is
            super().log_metrics({**metrics, _ATTEMPT: self.attempt}, step)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Close the run and wandb itself, which the next run of this process starts anew for its own folder."""
        if self._experiment is None:
            return
        with self._harmless():
            try:
                self._experiment.finish(exit_code=0 if status == "success" else 1)
            except TimeoutError:
                seconds, log = self._wandb_init["settings"].finish_timeout, f"run-*-{self._wandb_init['id']}"
                _say(
                    f"the server did not take everything within {seconds:g} s; nothing is lost, to send the rest: "
                    f"wandb sync --include-online {self._folder / 'wandb' / log}"
                )
            wandb.teardown()
        self._experiment = None

    @contextmanager
    def _harmless(self) -> Iterator[None]:
        """Its service process may die, of a full memory say: training goes on, and metrics.csv has every row."""
        try:
            yield
        except (wandb.Error, OSError, RuntimeError) as error:
            if not self._broken:
                _say(f"stopped logging, training goes on ({type(error).__name__}: {str(error).strip()[:200]})")
            self._broken = True


def _say(line: str) -> None:
    print(f"wandb: {line}", file=sys.stderr, flush=True)
