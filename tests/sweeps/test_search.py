"""A search by Optuna goes on whatever becomes of a trial, and where it was stopped."""

import math

import pytest
from omegaconf import OmegaConf

from trilemma.errors import Stopped, TrainingError, UserError

optuna = pytest.importorskip("optuna")
SEARCH = ["hydra/sweeper=optuna", "optimizer.lr=tag(log,interval(1e-4,1e-1))"]


def study_of(sweep):
    storage = f"sqlite:///{sweep.folder}/optuna.db"
    [name] = optuna.get_all_study_names(storage)
    return optuna.load_study(study_name=name, storage=storage)


def states(sweep):
    return [trial.state.name for trial in study_of(sweep).trials]


def test_a_trial_that_fails_does_not_end_the_search(sweep):
    def train(rate, cfg):
        number = len(sweep.runs)
        if number == 1:
            raise TrainingError("diverged")
        if number == 2:
            return math.nan
        if number == 3:
            raise MemoryError
        return None if number == 4 else -abs(rate - 0.01)

    done = sweep(*SEARCH, "hydra.sweeper.n_trials=6", train=train)
    assert done.status == 0, done.err
    assert states(sweep) == ["FAIL"] * 4 + ["COMPLETE"] * 2
    assert "2 trials, 4 failed; best: " in done.out
    best = study_of(sweep).best_trial
    assert best.value == max(-abs(rate - 0.01) for rate, _ in sweep.runs[4:])  # the model's own metric is to grow
    [written] = sweep.folder.glob("vqvae-*.yaml")
    found = OmegaConf.load(written)
    assert found.best_run == best.user_attrs["run"] == dict(sweep.runs)[best.params["optimizer.lr"]]


def test_the_same_command_goes_on_with_the_study(sweep):
    sweep(*SEARCH, "hydra.sweeper.n_trials=2")
    done = sweep(*SEARCH, "hydra.sweeper.n_trials=4")
    assert "2 of 4 trials are done" in done.out
    assert len(sweep.runs) == 4
    assert len(set(sweep.runs)) == 4  # none is asked for twice
    sweep(*SEARCH, "hydra.sweeper.n_trials=4")
    assert len(sweep.runs) == 4


def test_a_trial_that_was_stopped_is_tried_again_under_its_name(sweep):
    def stopped(rate, cfg):
        if len(sweep.runs) == 2:
            raise Stopped(75, "stopped by SIGTERM")
        return rate

    assert sweep(*SEARCH, "hydra.sweeper.n_trials=3", train=stopped).status == 75
    assert states(sweep) == ["COMPLETE", "RUNNING"]
    done = sweep(*SEARCH, "hydra.sweeper.n_trials=3")
    assert done.status == 0, done.err
    assert sweep.runs[2] == sweep.runs[1]
    assert len(sweep.runs) == 4
    assert "3 trials, 0 failed" in done.out


def test_choices_and_ranges_are_asked_for_as_they_are_typed(sweep):
    seen = set()

    def train(rate, cfg):
        seen.add((cfg.seed, cfg.trainer.precision, cfg.deterministic, cfg.init_from))
        return 1.0

    values = {
        "seed": ("range(3,9,3)", {3, 6}),
        "trainer.precision": ("'32-true',bf16-mixed", {"32-true", "bf16-mixed"}),
        "deterministic": ("true,false", {True, False}),
        "init_from": ("null,a", {None, "a"}),
    }
    varied = [f"{key}={typed}" for key, (typed, _) in values.items()]
    done = sweep("hydra/sweeper=optuna", "hydra.sweeper.n_trials=6", *varied, train=train)
    assert done.status == 0, done.err
    for column, (_, choices) in zip(zip(*seen, strict=True), values.values(), strict=True):
        assert set(column) <= choices
    assert len(seen) > 2


def test_another_search_has_a_study_of_its_own(sweep):
    sweep(*SEARCH, "hydra.sweeper.n_trials=1")
    sweep(*SEARCH, "hydra.sweeper.n_trials=1", "seed=1")
    assert len(sweep.runs) == 2
    assert len(optuna.get_all_study_names(f"sqlite:///{sweep.folder}/optuna.db")) == 2


def test_a_search_whose_points_are_all_refused_alike_ends(sweep):
    def refused(rate, cfg):
        raise UserError("there is no data")

    done = sweep(*SEARCH, train=refused)
    assert done.status == 2
    assert len(sweep.runs) == 3
    assert done.err.splitlines()[-1].endswith("was refused: there is no data")


def test_a_search_in_which_nothing_succeeds_fails(sweep):
    def diverges(rate, cfg):
        raise TrainingError("diverged")

    done = sweep(*SEARCH, "hydra.sweeper.n_trials=4", train=diverges)
    assert done.status == 1
    assert "none of the 4 trials" in done.err


def test_a_metric_of_ones_own_needs_a_direction(sweep):
    assert "hydra.sweeper.direction" in sweep(*SEARCH, "optimized_metric=val/mse").err
    done = sweep(*SEARCH, "optimized_metric=val/mse", "hydra.sweeper.direction=minimize", "hydra.sweeper.n_trials=2")
    assert done.status == 0, done.err
    assert study_of(sweep).direction.name == "MINIMIZE"
