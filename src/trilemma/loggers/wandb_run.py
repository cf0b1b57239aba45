"""Opening and closing a wandb run, which may take its time but never stops the program."""

from __future__ import annotations

import re
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trilemma.errors import UserError
from trilemma.loggers.wandb_mode import Decision, Mode, decide
from trilemma.loggers.wandb_profile import Profile, profile_settings, set_up
from trilemma.loggers.wandb_segments import next_step, segments
from trilemma.runs.directory import prepare

STEP = "trainer/global_step"
ATTEMPT = "trainer/attempt"


@dataclass(frozen=True)
class RunPlan:
    """A run to be opened.

    Attributes:
        project: The wandb project.
        run_id: Identity of the run, the same after a resume.
        group: Runs shown together; the experiment.
        save_dir: The run directory: all files lie below its `wandb`.
        job_type: "train", "sample" or "evaluate".
        tags: Labels to filter by.
        mode: Where the run goes.
        profile: What is recorded besides what is logged.
        init_timeout: Seconds that a server may take to answer at the start.
        finish_timeout: Seconds that it may take at the end.

    Raises:
        UserError: If wandb would refuse the project or a tag, or a timeout is not positive.
    """

    project: str
    run_id: str
    group: str
    save_dir: Path
    job_type: str
    tags: Sequence[str] = ()
    mode: Mode = "auto"
    profile: Profile = "private"
    init_timeout: float = 15.0
    finish_timeout: float = 300.0

    def __post_init__(self) -> None:
        if min(self.init_timeout, self.finish_timeout) <= 0:
            raise UserError("init_timeout and finish_timeout of the wandb logger are seconds, more than 0")
        if not self.project or re.search(r"[/\\#?%:]", self.project):
            raise UserError(f"the wandb project '{self.project}' may not be empty or hold any of / \\ # ? % :")
        for tag in self.tags:
            if not 1 <= len(tag) <= 64:
                raise UserError(f"the wandb tag '{tag}' must have 1 to 64 characters")

    @property
    def identity(self) -> str:
        """The id as wandb takes it: without the characters it refuses."""
        return re.sub(r"[:;,#?/'\\%\s]", "-", self.run_id)

    def decide(self) -> Decision:
        """Settle the mode; say in one line on stderr if that is offline."""
        decision = decide(self.mode, server=lambda: set_up(self.profile, self.save_dir))
        if decision.mode == "offline":
            say(f"wandb: offline ({decision.reason}); to upload: {self.sync_command}")
        return decision

    @property
    def sync_command(self) -> str:
        """What uploads the run's segments."""
        return f"make sync, or wandb sync {self.save_dir / 'wandb'}/offline-run-*"

    def open(self, decision: Decision) -> tuple[Any, int]:
        """Open the run: offline where the server that was to take it does not.

        Returns:
            The run, whose next row has the number after the last one of earlier segments; and which attempt this is, from 1.

        Raises:
            UserError: If `save_dir` cannot be written.
        """
        import wandb

        if decision.mode == "disabled":
            return self._init("disabled"), 1
        prepare(self.save_dir)
        set_up(self.profile, self.save_dir)
        earlier = segments(self.save_dir, self.identity)
        if earlier and earlier[-1].start == time.strftime("%Y%m%d_%H%M%S"):
            time.sleep(1)  # a folder is named after the second; two of one name would be one
        try:
            run = self._init(decision.mode)
        except wandb.Error as error:  # no connection, no right, no such entity
            reason = str(error).strip().splitlines()[0]
            # The failed attempt still holds the id, in wandb's service process.
            wandb.teardown(exit_code=1)
            set_up(self.profile, self.save_dir)
            for left in segments(self.save_dir, self.identity):
                if left not in earlier:
                    shutil.rmtree(left.folder, ignore_errors=True)
            say(f"wandb: going on offline, the server did not take the run ({reason}); to upload: {self.sync_command}")
            run = self._init("offline")
        run.define_metric(STEP)
        run.define_metric(ATTEMPT, hidden=True)
        run.define_metric("*", step_metric=STEP, step_sync=True)
        if earlier and (step := next_step(earlier)) > run.step:
            run.log({}, step=step)
        return run, len(earlier) + 1

    def _init(self, mode: str) -> Any:
        import wandb

        settings = {
            # The default of 15 s between flushes loses that much when a job is killed.
            "x_transaction_log_flush_interval": 1,
            "silent": mode == "offline",
            "init_timeout": self.init_timeout,
            "finish_timeout": self.finish_timeout,
            "finish_timeout_raises": True,
            **profile_settings(self.profile),
        }
        return wandb.init(
            project=self.project,
            id=self.identity,
            name=self.run_id,
            group=self.group,
            job_type=self.job_type,
            tags=list(self.tags),
            dir=str(self.save_dir),
            mode=mode,  # type: ignore[arg-type]
            resume="allow",
            settings=wandb.Settings(**settings),
        )

    def close(self, run: Any, *, exit_code: int) -> None:
        """Finish the run and wandb itself, which the next run of this process starts anew for its own folder.

        One line is said if the server did not take everything in time.
        """
        import wandb

        try:
            run.finish(exit_code=exit_code)
        except TimeoutError:
            say(
                f"wandb: the server did not take everything within {self.finish_timeout:g} s; nothing is lost, to send the "
                f"rest: wandb sync --include-online {self.save_dir / 'wandb'}/run-*-{self.identity}"
            )
        wandb.teardown()


def say(line: str) -> None:
    """Print a line to stderr."""
    print(line, file=sys.stderr, flush=True)


def as_image(picture: Any, caption: str | None = None) -> Any:
    """A PIL picture or a file as wandb takes it."""
    import wandb

    return wandb.Image(str(picture) if isinstance(picture, Path) else picture, caption=caption)
