"""A preempted SLURM job is asked to be started again, unless somebody has decided otherwise."""

import os

import pytest

from trilemma.distributed.requeue import requeue

SCONTROL = """#!/bin/sh
echo "$@" >> {log}
if [ "$1" = show ]; then echo "JobId=17 JobName=train JobState={state} Reason={reason} Dependency=(null)"; fi
if [ "$1" = requeue ]; then echo "{refusal}" >&2; exit {status}; fi
"""


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """slurm(state, ...) -> the calls that `scontrol` then gets."""
    for name in [name for name in os.environ if name.startswith(("SLURM_", "TRILEMMA_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    log = tmp_path / "log"

    def make(state="RUNNING", reason="None", refusal="", status=0):
        log.touch()
        program = tmp_path / "scontrol"
        program.write_text(SCONTROL.format(log=log, state=state, reason=reason, refusal=refusal, status=status))
        program.chmod(0o755)
        return lambda: [line for line in log.read_text().splitlines() if line.startswith("requeue")]

    return make


@pytest.mark.parametrize(("state", "reason"), [("RUNNING", "None"), ("COMPLETING", "TimeLimit")])
def test_once(slurm, capsys, state, reason):
    calls = slurm(state, reason)
    assert requeue() is None
    assert calls() == ["requeue 17"]
    assert capsys.readouterr().out == "SLURM job 17 is requeued\n"


def test_an_array_element_alone(slurm, monkeypatch):
    calls = slurm()
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "16")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    requeue()
    assert calls() == ["requeue 16_3"]


@pytest.mark.parametrize("state", ["COMPLETING", "CANCELLED", "PENDING", "PREEMPTED"])
def test_not_what_is_cancelled_or_requeued_already(slurm, state):
    calls = slurm(state)
    assert requeue() is None
    assert calls() == []


def test_not_where_the_batch_script_does_it(slurm, monkeypatch):
    calls = slurm()
    monkeypatch.setenv("TRILEMMA_REQUEUE", "script")
    assert requeue() is None
    assert calls() == []


def test_not_outside_slurm(slurm, monkeypatch):
    calls = slurm()
    monkeypatch.delenv("SLURM_JOB_ID")
    assert requeue() is None
    assert calls() == []


def test_refused(slurm):
    calls = slurm(refusal="Requested operation is presently disabled", status=1)
    assert requeue() == "SLURM did not requeue job 17 (Requested operation is presently disabled): submit it again"
    assert len(calls()) == 1


def test_no_scontrol_in_a_container(slurm, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert requeue() == "SLURM job 17 is not requeued (no scontrol here): submit it again"
