"""The dashboard shows what runs log, and fails in one line where it cannot be made."""

import dataclasses
import json
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig

from trilemma.cli.main import register_resolvers
from trilemma.dashboard import panels, workspace
from trilemma.dashboard.panels import Lines, Pictures, RunComparer, Scatter, Section
from trilemma.errors import UserError
from trilemma.evaluation.cost.throughput import Throughput
from trilemma.evaluation.protocol import Protocol
from trilemma.loggers.wandb_evaluation import evaluation_metrics

ROOT = Path(__file__).parents[2]
EXTRACTOR = "mnist-a1a57248"


def configured(*overrides):
    register_resolvers()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("dashboard", list(overrides), return_hydra_config=True)
        HydraConfig.instance().set_config(cfg)
    return cfg


def all_panels(cfg):
    return [panel for section in workspace.sections_of(cfg) for panel in section.panels]


def evaluation_keys():
    """What an evaluation logs, from a row of results, with the fields of a ledger that it may lack."""
    row = json.loads(next((ROOT / "docs/results").glob("mnist-vq_diffusion-*.json")).read_text())
    rate = {field.name: 1.0 for field in dataclasses.fields(Throughput)}
    return set(evaluation_metrics(row | {"ledger": {"throughput": rate}}))


def test_every_key_is_one_that_runs_log(logged):
    """Of every panel: pictures, metrics and what lies below them."""
    shown = {key for panel in all_panels(configured(f"extractor={EXTRACTOR}")) for key in panel.keys}
    assert {key for key in shown if key.startswith("eval/")} <= evaluation_keys()
    assert {key for key in shown if not key.startswith("eval/")} <= logged
    assert {"train/loss", "val/bits_per_token", "samples", "reconstructions", "val/modes_hit"} <= shown


def test_every_setting_is_one_that_evaluations_record():
    """The config of an evaluation's run is its protocol."""
    row = json.loads(next((ROOT / "docs/results").glob("mnist-vq_diffusion-*.json")).read_text())
    for panel in all_panels(configured()):
        for setting in panel.settings:
            node = row["protocol"]
            assert setting.split(".")[0] in {field.name for field in dataclasses.fields(Protocol)}
            for part in setting.split("."):
                node = node[part]
            assert isinstance(node, (int, float))


def test_the_workspace_holds_every_panel_with_its_keys():
    """As wandb writes it down: kinds, keys and axes in the order of the configuration."""
    pytest.importorskip("wandb_workspaces")
    sections = [
        Section(
            title="One",
            panels=[
                Lines(title="a", keys=["train/loss", "val/loss"], log_y=True),
                Pictures(title="b", keys=["samples"]),
            ],
        ),
        Section(
            title="Two",
            is_open=False,
            panels=[
                Scatter(title="c", x="eval/speed", y="eval/FD[x]", log_x=True),
                Scatter(title="d", x_setting="budget.max_steps", y="eval/FD[x]"),
                RunComparer(),
            ],
        ),
    ]
    found = workspace.to_json("Name", sections, entity="me", project="p")
    assert (found["displayName"], found["entity"], found["project"]) == ("Name", "me", "p")
    written = found["spec"]["section"]["panelBankConfig"]["sections"]
    assert [(section["name"], section["isOpen"]) for section in written] == [("One", True), ("Two", False)]
    kinds = [(panel["viewType"], panel["config"]) for section in written for panel in section["panels"]]
    assert kinds == [
        (
            "Run History Line Plot",
            {"chartTitle": "a", "xAxis": panels.STEP, "metrics": ["train/loss", "val/loss"], "yLogScale": True},
        ),
        ("Media Browser", {"chartTitle": "b", "mediaKeys": ["samples"]}),
        (
            "Scatter Plot",
            {"chartTitle": "c", "xAxis": "summary:eval/speed", "yAxis": "summary:eval/FD[x]", "xAxisLogScale": True},
        ),
        (
            "Scatter Plot",
            {"chartTitle": "d", "xAxis": "config:budget.value.max_steps", "yAxis": "summary:eval/FD[x]"},
        ),
        ("Run Comparer", {"diffOnly": True}),
    ]
    assert "__id__" not in json.dumps(found)


def run_module(monkeypatch, capsys, *arguments):
    """`python -m trilemma.dashboard` in this process: exit status, stdout, lines of stderr."""
    import runpy

    GlobalHydra.instance().clear()
    monkeypatch.setattr(sys, "argv", ["dashboard", *arguments])
    try:
        runpy.run_module("trilemma.dashboard", run_name="__main__")
        status = 0
    except SystemExit as stop:
        status = stop.code
    captured = capsys.readouterr()
    return status, captured.out, captured.err.splitlines()


def test_printed_where_nothing_is_saved(monkeypatch, capsys):
    pytest.importorskip("wandb_workspaces")
    status, out, err = run_module(monkeypatch, capsys, "save=false", "entity=me", "extractor=other-1")
    assert (status, err) == (0, [])
    assert json.loads(out)["entity"] == "me"
    assert "summary:eval/FD[other-1]" in out


def test_without_a_login(monkeypatch, capsys, tmp_path):
    pytest.importorskip("wandb_workspaces")
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    status, out, err = run_module(monkeypatch, capsys, "entity=me")
    assert (status, out, len(err)) == (2, "", 1)
    assert err[0].startswith("error: wandb does not take the dashboard (")
    assert "wandb login" in err[0]


def test_without_the_package(monkeypatch, capsys):
    for name in ("wandb_workspaces", "wandb_workspaces.workspaces", "wandb_workspaces.reports.v2"):
        monkeypatch.setitem(sys.modules, name, None)
    status, _, err = run_module(monkeypatch, capsys, "save=false")
    assert status == 2
    assert len(err) == 1
    assert err[0].startswith("error: the dashboard needs wandb_workspaces")
    assert "pip install" in err[0]


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("+dashboard.sections.runs.titl=x", "did you mean dashboard.sections.runs.title?"),
        ("dashboard.sections.runs.panels=[]", "needs panels"),
        ("+dashboard.sections.more=3", "dashboard.sections.more"),
        ("projekt=x", "unknown override projekt"),
    ],
)
def test_bad_input_is_one_line(monkeypatch, capsys, override, line):
    status, out, err = run_module(monkeypatch, capsys, override, "save=false")
    assert (status, out, len(err)) == (2, "", 1)
    assert line in err[0]


@pytest.mark.parametrize(
    "build",
    [
        lambda: Lines(title="a", keys=[]),
        lambda: Pictures(title="a", keys=[]),
        lambda: Scatter(title="a", y="b"),
        lambda: Scatter(title="a", y="b", x="c", x_setting="d"),
        lambda: Section(title="a", panels=["train/loss"]),
    ],
)
def test_refuses_panels_that_show_nothing(build):
    with pytest.raises(UserError, match=r"^dashboard: the "):
        build()
