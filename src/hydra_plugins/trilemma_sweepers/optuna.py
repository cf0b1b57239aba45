"""A search by Optuna that survives its trials and its own end: what was tried is kept in a file, and the same command goes on."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from trilemma.errors import REFUSED, TrainingError, UserError
from trilemma.sweeps.launchers import explained
from trilemma.sweeps.points import PointResult, check_sweep

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial, Trial

    from trilemma.sweeps.search_space import SearchSpace

Direction = Literal["minimize", "maximize"]
_ERROR = "error"  # attribute of a trial that failed by itself, and not with the sweep
_SAME_REFUSALS = 3  # so many points refused for one reason, and no other outcome: it does not lie in what is varied


class OptunaSweeper(Sweeper):
    """Asks Optuna for points until a study has `n_trials`.

    A trial fails if its run is refused, stops by a monitor, crashes, or ends with a value that is no finite number; the search
    goes on. Trials that were running when a search was stopped are tried again first, and their runs go on where they were.

    Args:
        n_trials: Of the study, those of earlier runs of the command included.
        n_jobs: Trials that are launched at a time.
        direction: "minimize" or "maximize"; None follows the model's own metric.
        storage: URL of a database; None is the file optuna.db in the sweep's directory.
        study_name: None names it after the experiment and what is varied and fixed.
        sampler: Makes a sampler of Optuna's; its `seed` is given if it takes one.
        seed: Of the sampler.
        params: What is varied beside the command line.
    """

    def __init__(
        self,
        n_trials: int,
        n_jobs: int,
        direction: Direction | None,
        storage: str | None,
        study_name: str | None,
        sampler: Callable[..., Any],
        seed: int,
        params: DictConfig | None,
    ) -> None:
        self.n_trials, self.n_jobs, self.direction = n_trials, n_jobs, direction
        self.storage, self.study_name = storage, study_name
        self.sampler, self.seed, self.params = sampler, seed, params
        self.config: DictConfig | None = None
        self.hydra_context: HydraContext | None = None
        self.launcher: Launcher | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Make the launcher.

        Raises:
            UserError: If it is not installed.
        """
        self.config, self.hydra_context = config, hydra_context
        with explained(config):
            self.launcher = Plugins.instance().instantiate_launcher(
                hydra_context=hydra_context, task_function=task_function, config=config
            )

    def sweep(self, arguments: list[str]) -> None:
        """Search.

        Raises:
            UserError: If the search cannot run so, or its points are refused whatever is varied.
            TrainingError: If no trial succeeded.
        """
        from trilemma.sweeps.search_space import SearchSpace

        assert self.config is not None
        assert self.hydra_context is not None
        typed = [f"{key!s}={value}" for key, value in (self.params or {}).items()] + arguments
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        space = SearchSpace.of(parser.parse_overrides(typed))
        folder = Path(self.config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        study = self._study(space, folder)
        _take_up(study)
        print(f"study {study.study_name}: {_num_done(study)} of {self.n_trials} trials are done", flush=True)
        while (missing := self.n_trials - _num_done(study)) > 0:
            trials = [study.ask(space.varied) for _ in range(min(self.n_jobs, missing))]
            self._run(study, trials, [space.overrides(trial.params) for trial in trials])
            _refuse_the_hopeless(study)
        self._conclude(study, space, folder)

    def _study(self, space: SearchSpace, folder: Path) -> Study:
        import optuna

        assert self.config is not None
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = optuna.create_study(
            storage=self.storage or f"sqlite:///{folder / 'optuna.db'}",
            study_name=self.study_name or space.study(folder.name),
            direction=self.direction or _direction_of(self.config),
            load_if_exists=True,
        )
        # Each start of the search draws anew: with the same seed it would ask for what it has asked for before.
        seeded = "seed" in inspect.signature(getattr(self.sampler, "func", self.sampler)).parameters
        study.sampler = self.sampler(seed=self.seed + len(study.trials)) if seeded else self.sampler()
        return study

    def _run(self, study: Study, trials: Sequence[Trial], overrides: Sequence[Sequence[str]]) -> None:
        """Launch trials, and tell the study what became of each."""
        assert self.config is not None
        assert self.hydra_context is not None
        assert self.launcher is not None
        loader = self.hydra_context.config_loader
        check_sweep(
            (loader.load_sweep_config(self.config, list(one)) for one in overrides), type(self.launcher).__name__
        )
        returned = self.launcher.launch(overrides, initial_job_idx=trials[0].number)
        for trial, result in zip(trials, returned, strict=True):
            _tell(study, trial, result.return_value)

    def _conclude(self, study: Study, space: SearchSpace, folder: Path) -> None:
        from optuna.trial import TrialState

        complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        if not complete:
            raise TrainingError(f"none of the {len(study.trials)} trials of study {study.study_name} succeeded")
        best = study.best_trial
        found = {
            "best_value": best.value,
            "best_params": best.params,
            "best_run": best.user_attrs["run"],
            "num_complete": len(complete),
            "num_failed": _num_done(study) - len(complete),
        }
        OmegaConf.save(OmegaConf.create(found), folder / f"{study.study_name}.yaml")
        varied = " ".join(space.overrides(best.params)[: len(space.varied)])
        print(
            f"{len(complete)} trials, {found['num_failed']} failed; best: {best.value:.6g} with {varied} ({folder / found['best_run']})"
        )


def _direction_of(config: DictConfig) -> Direction:
    """That of the model's own metric.

    Raises:
        UserError: If it has none, or another metric was asked for.
    """
    from trilemma.sweeps.objective import monitor_of

    wanted = OmegaConf.select(config, "optimized_metric")
    if OmegaConf.select(config, "model._target_") is None:
        raise UserError("hydra/sweeper=optuna searches trainings: name an experiment, as in experiment=mnist/vqvae")
    monitor = monitor_of(config)
    if monitor is not None and wanted in (None, monitor[0]):
        return "minimize" if monitor[1] == "min" else "maximize"
    what = (
        f"optimized_metric={wanted}"
        if wanted
        else "the model names no metric that it is judged by: give optimized_metric=... and"
    )
    raise UserError(f"{what} needs hydra.sweeper.direction=minimize or maximize")


def _take_up(study: Study) -> None:
    """Ask again for what was running when the search was stopped."""
    from optuna.trial import TrialState

    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)
        if trial.params:
            study.enqueue_trial(trial.params)


def _num_done(study: Study) -> int:
    """Trials that came to an end of their own."""
    return sum(trial.state.is_finished() and _has_outcome(trial) for trial in study.get_trials(deepcopy=False))


def _has_outcome(trial: FrozenTrial) -> bool:
    return trial.value is not None or _ERROR in trial.user_attrs


def _tell(study: Study, trial: Trial, outcome: PointResult) -> None:
    from optuna.trial import TrialState

    trial.set_user_attr("run", outcome.point)
    if outcome.status == 0 and math.isfinite(float(outcome)):
        study.tell(trial, float(outcome))
        return
    nothing = "it was never validated (trainer.val_check_interval)"
    line = outcome.line or (nothing if outcome.value is None else f"its value is {outcome.value}")
    trial.set_user_attr(_ERROR, line)
    trial.set_user_attr("status", outcome.status)
    study.tell(trial, state=TrialState.FAIL)
    why = "" if outcome.line else f": {line}"  # else the point has said it
    print(f"trial {trial.number} failed: {outcome.point}{why}", flush=True)


def _refuse_the_hopeless(study: Study) -> None:
    """End a search whose points are refused for a reason that does not lie in what is varied."""
    done = [trial for trial in study.get_trials(deepcopy=False) if trial.state.is_finished() and _has_outcome(trial)]
    lines = {trial.user_attrs.get(_ERROR) if trial.user_attrs.get("status") == REFUSED else None for trial in done}
    if len(done) >= _SAME_REFUSALS and len(lines) == 1 and (line := lines.pop()):
        raise UserError(f"every trial of study {study.study_name} was refused: {line}")
