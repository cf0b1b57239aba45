"""Interruptions of a training over two nodes, drawn at random from all that SLURM knows, and the table of what became of it."""

from __future__ import annotations

import os
import random
import re
import signal
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import torch

from tiny_run import assert_equal
from training import Runs, state_of

KINDS = (
    "USR1",
    "USR2",
    "TERM",
    "time limit",
    "scontrol requeue",
    "node down",
    "kill -9 of one rank",
    "preemption",
    "array element",
)
STEPS = 700
PER_JOB = 4
FIRST = 30  # batches by which a first checkpoint stands
OVERRIDES = ("data.num_workers=2", "data.max_val_images=500", "trainer.log_every_n_steps=1")
# The script gives up after so many; here they are asked for.
LIMIT = {"TRILEMMA_MAX_RESTARTS": "20"}


@dataclass
class Interruption:
    """One of them, and what came of it.

    Attributes:
        number: In the order in which they happened.
        kind: Of `KINDS`, with a detail.
        job: Number of the job, or of the array's element.
        batch: Batches trained when it happened.
        in_validation: Whether the checkpoint written then lacks its validation.
        resumed: The batch that the next start went on from.
        seconds: Until that start went on.
        state: Of the job at its end.
        equal: Whether the run ended with the weights of the one that nobody interrupted.
    """

    number: int
    kind: str
    job: str
    batch: int
    in_validation: bool = False
    resumed: int = 0
    seconds: float = 0.0
    state: str = ""
    equal: bool = False


@dataclass
class Interruptions:
    """Interrupts trainings and keeps the account.

    Args:
        runs: What submits them.
        number: How many interruptions.
        seed: Of all that is drawn.
    """

    runs: Runs
    number: int = 20
    seed: int = 0
    done: list[Interruption] = field(default_factory=list)
    unasked: list[tuple[str, int]] = field(default_factory=list)  # restarts that nobody here asked for: job, batch

    def __post_init__(self) -> None:
        self.draw = random.Random(self.seed)
        # Each kind once, the others as they come.
        self.kinds = [*KINDS, *self.draw.choices(KINDS, k=self.number - len(KINDS))][: self.number]
        self.draw.shuffle(self.kinds)

    def run(self) -> list[Interruption]:
        """Train one run that is left alone, then interrupt others."""
        self.runs.cluster.finish(self.runs.prior("alone", STEPS, *OVERRIDES))
        kinds = [kind for kind in self.kinds if kind != "array element"]
        for start in range(0, len(kinds), PER_JOB):
            self._one_job(f"interrupted-{start // PER_JOB}", kinds[start : start + PER_JOB])
        if of_array := self.kinds.count("array element"):
            self._array(of_array)
        return self.done

    def _one_job(self, run_id: str, kinds: list[str]) -> None:
        options = ("--nodes=2", "--ntasks-per-node=1", "--partition=low")
        job = self.runs.prior(run_id, STEPS, *OVERRIDES, options=options, **LIMIT)
        mine = [self._interrupt(kind, job, run_id) for kind in kinds]
        self._judge(mine, job, run_id)

    def _array(self, number: int) -> None:
        options = ("--nodes=2", "--ntasks-per-node=1", "--partition=low", "--array=1-2")
        overrides = self.runs.overrides(STEPS, *OVERRIDES)
        array = self.runs.train(*overrides, options=options, **LIMIT)
        job, other = f"{array}_2", f"{array}_1"
        self.runs.cluster.until(lambda: self.runs.cluster.state(job) == "RUNNING", job)
        mine = [self._interrupt("array element", job, f"train-{job}") for _ in range(number)]
        self._judge(mine, job, f"train-{job}")
        assert self.runs.cluster.finish(other)["Restarts"] == "0", "another element was interrupted too"

    def _interrupt(self, kind: str, job: str, run_id: str) -> Interruption:
        cluster, runs = self.runs.cluster, self.runs
        begin = max([FIRST, *runs.resumed_from(job)])
        at_least = begin + self.draw.randint(0, 100)
        cluster.until(lambda: self._batch(run_id) >= at_least and runs.step(run_id) > 0, job, every=0.02)
        time.sleep(
            self.draw.uniform(0, 0.5)
        )  # wherever that is: in a batch, in a validation, while a checkpoint is written
        this = Interruption(len(self.done) + 1, kind, job, self._batch(run_id))
        self.done.append(this)
        starts, began = len(runs.resumed_from(job)), time.monotonic()
        this.kind = self._do(kind, job)
        cluster.until(
            lambda: "PENDING" in cluster.job(job)["JobState"] or cluster.job(job)["Restarts"] == str(starts + 1), job
        )
        this.in_validation = _lacks_validation(runs.run_dir(run_id))
        cluster.until(lambda: len(runs.resumed_from(job)) == starts + 1, job)
        this.seconds = time.monotonic() - began
        this.resumed = runs.resumed_from(job)[-1]
        if kind == "time limit":
            cluster.call("scontrol", "update", f"jobid={job}", "TimeLimit=60")
        return this

    def _do(self, kind: str, job: str) -> str:
        """Do it; returns what exactly was done."""
        cluster = self.runs.cluster
        if kind in ("USR1", "USR2", "TERM"):
            cluster.call("scancel", f"--signal={kind}", job)
            return f"`scancel --signal={kind}`"
        if kind == "scontrol requeue":
            cluster.call("scontrol", "requeue", job)
            return "`scontrol requeue`"
        if kind == "node down":
            node = self.draw.choice(("node1", "node2"))
            cluster.call("scontrol", "update", f"nodename={node}", "state=down", "reason=test")
            return f"{node} down"
        if kind == "kill -9 of one rank":
            rank = self.draw.choice((0, 1))
            os.kill(cluster.ranks(job)[rank], signal.SIGKILL)
            return f"`kill -9` of rank {rank}"
        if kind == "preemption":
            self.runs.sbatch("--partition=high", "--nodes=2", "--exclusive", "--time=1", "--wrap=sleep 1")
            return "preempted by partition `high`"
        if kind == "time limit":
            cluster.call("scontrol", "update", f"jobid={job}", "TimeLimit=1")
            for pid in cluster.ranks(
                job
            ).values():  # the run would be over before its time is; SLURM's warning wakes it
                os.kill(pid, signal.SIGSTOP)
            return "time limit, warned by USR2"
        inner = self.draw.choice(("USR1", "scontrol requeue", "kill -9 of one rank"))
        return f"array element: {self._do(inner, job)}"

    def _batch(self, run_id: str) -> int:
        try:
            rows = (self.runs.run_dir(run_id) / "metrics.csv").read_text().splitlines()
            return int(rows[-1].split(",")[0]) if len(rows) > 1 else 0
        except (OSError, ValueError):  # not there yet, or being written anew
            return 0

    def _judge(self, mine: list[Interruption], job: str, run_id: str) -> None:
        ended = self.runs.cluster.finish(job, seconds=600)
        alone, this = (state_of(self.runs.run_dir(name)) for name in ("alone", run_id))
        try:
            assert_equal(alone, this)
            equal = True
        except AssertionError:
            equal = False
        resumed = self.runs.resumed_from(job)
        # A node that was down may, coming back, take the job that has just begun anew for the one it had.
        assert int(ended["Restarts"]) >= len(resumed) >= len(mine), self.runs.cluster.log(job)
        unasked = Counter(resumed) - Counter(interruption.resumed for interruption in mine)
        if unasked:  # SLURM may preempt a job twice for one other
            print(self.runs.cluster.log(job))
            print(self.runs.cluster.call("grep", job, str(self.runs.cluster.run / "slurmctld.log")))
        self.unasked += [(job, step) for step in unasked.elements()]
        for interruption in mine:
            interruption.state, interruption.equal = ended["JobState"], equal


def table(interruptions: list[Interruption]) -> str:
    """The account, in markdown."""
    lines = [
        "| | interruption | job | at batch | resumed from | waited, s | end of the job | weights equal |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for this in interruptions:
        at = f"{this.batch}, validating" if this.in_validation else str(this.batch)
        job = this.job if "_" not in this.job else f"{this.job} (array)"
        lines.append(
            f"| {this.number} | {this.kind} | {job} | {at} | {this.resumed} | {this.seconds:.0f} | {this.state} | "
            f"{'yes' if this.equal else 'NO'} |"
        )
    return "\n".join(lines) + "\n"


def write_table(text: str, path: Path) -> None:
    """Put the table between the marks of a document."""
    document = path.read_text()
    marks = r"(<!-- table -->\n).*(<!-- end -->)"
    assert re.search(marks, document, re.DOTALL), f"{path} has no place for the table"
    path.write_text(re.sub(marks, lambda found: found[1] + text + found[2], document, flags=re.DOTALL))


def _lacks_validation(run_dir: Path) -> bool:
    try:
        checkpoint = torch.load(run_dir / "checkpoints/last.ckpt", weights_only=True)
    except OSError:
        return False
    return bool(checkpoint["callbacks"]["Checkpoints"].get("validation_due"))
