"""Whatever stops a job, it goes on from its newest checkpoint and ends as if nothing had happened."""

import os
import re
import signal
import time
from pathlib import Path

import pytest

from training import TWO_NODES, assert_same_end

STEPS = 150
ENDS_WITH = Path(__file__).with_name("ends_with.sh")
WORKERS = "data.num_workers=2"
slow = pytest.mark.slow


@pytest.fixture(scope="module")
def whole(module_runs):
    """The run that nobody stops."""
    module_runs.cluster.finish(module_runs.prior("whole", STEPS, WORKERS))
    return module_runs.run_dir("whole")


@pytest.fixture
def started(runs, whole):
    """started(*sbatch options): a run that has written checkpoints and is in the midst of it."""

    def start(*options, overrides=(), **environment):
        job = runs.prior("stopped", STEPS, WORKERS, *overrides, options=(*TWO_NODES, *options), **environment)
        runs.cluster.until(lambda: runs.step("stopped") >= 50, job)
        return job

    return start


@pytest.fixture
def goes_on(runs, cluster, whole):
    """goes_on(job): it ends, after as many restarts as are told, with the weights of the run that nobody stopped."""

    def check(job, *, restarts=1):
        done = cluster.finish(job)
        assert int(done["Restarts"]) == restarts
        resumed = runs.resumed_from(job)
        assert len(resumed) == restarts
        assert min(resumed) >= 50
        assert_same_end(whole, runs.run_dir("stopped"))
        return cluster.log(job)

    return check


def test_usr1_with_loader_workers(started, goes_on, runs, cluster):
    job = started(overrides=("logger=wandb",))
    cluster.call("scancel", "--signal=USR1", job)
    log = goes_on(job)
    assert "status 75 and is requeued" in log
    segments = [path.name for path in (runs.run_dir("stopped") / "wandb").glob("offline-run-*")]
    assert len(segments) == 2  # wandb run segments, one a start
    assert len({re.sub(r"offline-run-\d+_\d+-", "", name) for name in segments}) == 1


@slow
@pytest.mark.parametrize("name", ["USR2", "TERM"])
def test_other_signals(started, goes_on, cluster, name):
    job = started()
    cluster.call("scancel", f"--signal={name}", job)
    goes_on(job)


@slow
def test_a_signal_to_the_batch_script_alone(started, goes_on, cluster):
    job = started()
    cluster.call("scancel", "--signal=USR1", "--batch", job)
    goes_on(job)


def test_kill_9_of_one_rank(started, goes_on, runs, cluster):
    job = started()
    os.kill(cluster.ranks(job)[1], signal.SIGKILL)
    assert "is requeued" in goes_on(job)
    (line,) = (runs.run_dir("stopped") / "slurm/restarts").read_text().splitlines()
    assert line.split()[:2] == [job, "0"]
    assert line.split()[2] not in ("0", "2", "75")


@slow
def test_requeued_by_an_administrator(started, goes_on, cluster):
    job = started()
    cluster.call("scontrol", "requeue", job)
    goes_on(job)


@slow
@pytest.mark.parametrize("node", ["node1", "node2"])
def test_node_down(started, goes_on, cluster, node):
    job = started()
    cluster.call("scontrol", "update", f"nodename={node}", "state=down", "reason=test")
    goes_on(job)


@slow
def test_preempted_by_a_higher_partition(started, goes_on, cluster, runs):
    job = started("--partition=low")
    other = runs.sbatch("--partition=high", "--nodes=2", "--exclusive", "--time=1", "--wrap=sleep 1")
    cluster.finish(other)
    goes_on(job)


@slow
@pytest.mark.parametrize("warned", [True, False], ids=["warned", "unwarned"])
def test_time_limit(started, goes_on, cluster, warned):
    job = started("--signal=USR2@15" if warned else "--signal=URG@1")
    cluster.call("scontrol", "update", f"jobid={job}", "TimeLimit=1")
    ranks = cluster.ranks(job).values()
    while True:  # the run would be over before its time is: hold it until SLURM lets it go on, to be told
        for pid in ranks:
            os.kill(pid, signal.SIGSTOP)
        if warned or cluster.job(job)["RunTime"] >= "00:00:58":
            break
        time.sleep(0.1)
    cluster.until(lambda: cluster.job(job)["Restarts"] == "1", job)
    cluster.call("scontrol", "update", f"jobid={job}", "TimeLimit=60")
    goes_on(job)


def test_signal_before_training_begins(runs, cluster):
    job = runs.prior("stopped", 20, WORKERS)
    cluster.until(lambda: len(cluster.ranks(job)) == 2, job)
    time.sleep(0.8)  # Python imports
    cluster.call("scancel", "--signal=USR1", job)
    cluster.until(lambda: "start 2" in cluster.log(job), job)
    assert "stopped with status 75 and is requeued; newest checkpoint: none" in cluster.log(job)
    assert cluster.finish(job)["Restarts"] == "1"


def test_status_2_is_the_users(runs, cluster):
    job = runs.prior("refused", 10, "optimizer.lrr=1")
    done = cluster.wait_for(job, "FAILED")
    assert (done["ExitCode"], done["Restarts"]) == ("2:0", "0")
    log = cluster.log(job)
    assert log.count("error: unknown override optimizer.lrr") == 1
    assert "requeue" not in log
    assert not runs.run_dir("refused").exists()


def test_a_crash_loop_ends(runs, cluster):
    job = runs.prior("crash", 10, TRILEMMA_PYTHON=f"bash {ENDS_WITH} 1", TRILEMMA_MAX_RESTARTS="1")
    done = cluster.wait_for(job, "FAILED")
    assert (done["ExitCode"], done["Restarts"]) == ("1:0", "1")
    log = cluster.log(job)
    assert log.count("is requeued") == 1
    assert "failed 2 times" in log
    assert "not started again" in log
    assert len((runs.run_dir("crash") / "slurm/restarts").read_text().splitlines()) == 2


@slow
def test_a_loop_of_preemptions_without_progress_ends(runs, cluster):
    job = runs.prior("idle", 10, TRILEMMA_PYTHON=f"bash {ENDS_WITH} 75", TRILEMMA_MAX_RESTARTS="1")
    done = cluster.wait_for(job, "FAILED")
    assert (done["ExitCode"], done["Restarts"]) == ("75:0", "2")


@slow
def test_a_cancelled_job_stays_cancelled(started, runs, cluster):
    job = started()
    cluster.call("scancel", job)
    cluster.wait_for(job, "CANCELLED")
    time.sleep(15)  # longer than it may take to end, and than a requeued job waits
    assert cluster.job(job)["JobState"] == "CANCELLED"
    assert "is requeued" not in cluster.log(job)
    before = runs.step("stopped")
    assert before >= 50
    again = runs.prior("stopped", STEPS, WORKERS)  # the same command goes on
    cluster.finish(again)
    assert runs.resumed_from(again) == [before]


@slow
def test_no_requeue_is_said(started, cluster):
    job = started("--no-requeue")
    cluster.call("scancel", "--signal=USR1", job)
    done = cluster.wait_for(job, "FAILED")
    assert done["ExitCode"] == "75:0"
    assert "could not be requeued (--no-requeue?)" in cluster.log(job)
