"""Run the entry points: one line and exit status 2 for errors that the user can fix."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from trilemma.config import CONF
from trilemma.config.small_options import all_groups, group_nodes, register_options, small_options
from trilemma.distributed import signals
from trilemma.distributed.job import new_run_id, place, this_job
from trilemma.distributed.requeue import requeue
from trilemma.errors import FAILED, INTERRUPTED, PREEMPTED, REFUSED, Stopped, TrainingError, UserError
from trilemma.sweeps.launchers import accept_defaults

if TYPE_CHECKING:
    from omegaconf import DictConfig

T = TypeVar("T")

_AFTER_THE_FIRST = 10.0  # seconds


def register_resolvers() -> None:
    """Register the resolvers `or`, `share`, `new_run_id`, `point_id` and `tasks_per_node`, and the small options."""
    from omegaconf import OmegaConf

    from trilemma.sweeps.points import point_id, tasks_per_node

    resolvers: dict[str, Callable[..., Any]] = {
        "or": lambda value, fallback: fallback if value in (None, "None") else value,
        "share": lambda share, total: int(share * total),
        "new_run_id": new_run_id,
        "point_id": point_id,
        "tasks_per_node": tasks_per_node,
    }
    for name, resolver in resolvers.items():
        OmegaConf.register_new_resolver(name, resolver, replace=True)
    register_options()


def run(main: Callable[[], None], *, together: bool = False) -> None:
    """Run a Hydra entry point; turn input errors into one line and exit status 2, and a request to stop into 75 or 130.

    Args:
        main: The entry point.
        together: Whether its processes end together: the first one then checks for a signal, and the others when it says so, or where
            they have agreed to.
    """
    signals.listen(wait=together and _rank() > 0)
    # With a busy neighbour OpenMP's default spin is 7 to 200 times slower.
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra then raises errors to this function instead of printing them
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # a lost connection is reported in one line of ours
    try:
        from hydra.errors import HydraException
        from omegaconf.errors import OmegaConfBaseException

        register_resolvers()
        accept_defaults()
        _refuse_options()
        main()
    except Stopped as stop:
        _stop(stop)
    except UserError as error:
        _fail(str(error))
    except TrainingError as stop:
        _fail(str(stop), status=FAILED)
    except (HydraException, OmegaConfBaseException) as error:
        cause = error.__cause__
        if isinstance(cause, UserError):
            _fail(str(cause))
        if stop_behind := _stop_behind(error):
            _stop(stop_behind)
        _fail(explain(error))
    except OSError as error:
        if error.filename is None:
            raise
        _fail(
            f"cannot use {error.filename}: {error.strerror}; choose another place with paths.output_dir=... or output_dir=..."
        )
    except KeyboardInterrupt:
        if _rank() == 0:
            print("interrupted; the same command with the same run.id goes on", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None


def _refuse_options() -> None:
    """See that options of this program are not written like those of others, of which Hydra takes prefixes for its own.

    Raises:
        UserError: If one is, with the way it is written here.
    """
    groups = set(all_groups())
    for word, following in zip_longest(sys.argv[1:], sys.argv[2:], fillvalue=""):
        name, equals, value = word.removeprefix("--").partition("=")
        if (
            word.startswith("--")
            and word not in ("--run", "--info", "--cfg")
            and (name in groups or "." in name or name in _nodes())
        ):
            raise UserError(
                f"{word}: options are written without dashes here, {name}={value if equals else following or 'VALUE'}"
            )


def job(run_job: Callable[[DictConfig], Any], cfg: DictConfig) -> Any:
    """Run what an entry point does, inside Hydra's job; for a point of a sweep, return its `PointResult`.

    A `UserError` (status 2), a `TrainingError` (status 1) and a request to stop (75 or 130) end the program here: Hydra would
    otherwise first print a line of its own.
    """
    signals.listen()  # needed where a Hydra launcher started this process
    from trilemma.sweeps.points import in_sweep, run_point

    try:
        return run_point(run_job, cfg) if in_sweep() else run_job(cfg)
    except UserError as error:
        _fail(str(error))
    except TrainingError as stop:
        _fail(str(stop), status=FAILED)
    except Stopped as stop:
        _stop(stop)
    except SystemExit:  # all processes of the job end with this status
        if _is_lightnings_child():
            raise SystemExit(0) from None
        raise


@contextmanager
def checked(check: Callable[[], T]) -> Iterator[T]:
    """Check what needs no torch, in the first process first; inside the block a command imports what does the work.

    The block is given what `check` returns.

    A signal ends a program in the midst of an import. Several processes note it there, for the others would not hear of the end.

    Raises:
        UserError: That of `check`.
    """
    job = this_job()
    with signals.waiting(*(signals.ALL if job.world_size > 1 else ())):
        yield job.rank_zero_first("checked", check)


def _stop(stop: Stopped) -> NoReturn:
    """End with the status of a signal, with all written. Rank 0 prints it, and asks SLURM to requeue the job."""
    if _is_lightnings_child():  # rank 0 would take its status for a failure
        raise SystemExit(0)
    if _rank() == 0:
        if stop.line:
            print(stop.line, file=sys.stderr)
        if stop.status == PREEMPTED and (line := requeue()):
            print(line, file=sys.stderr)
    raise SystemExit(stop.status)


def _stop_behind(error: BaseException | None) -> Stopped | None:
    """Find the request to stop that came while a configuration was composed, where Hydra made an error of its own of it."""
    while error is not None and not isinstance(error, Stopped):
        error = error.__cause__ or error.__context__
    return error


def _fail(line: str, *, status: int = REFUSED) -> NoReturn:
    line = " ".join(line.split())
    if rank := _rank():
        # Rank 0 has usually found the same error, and ends this process.
        time.sleep(_AFTER_THE_FIRST)
        line = f"process {rank}: {line}"
    print(f"error: {line}", file=sys.stderr)
    raise SystemExit(status)


def _rank() -> int:
    try:
        return place().rank
    except UserError:  # raised again, and reported, by the job itself
        return 0


def _is_lightnings_child() -> bool:
    return _rank() > 0 and place().started_by == "lightning"


def explain(error: BaseException) -> str:
    """Explain in one line what Hydra could not compose, with the nearest name that exists."""
    from hydra.errors import OverrideParseException

    text = str(error)
    if match := re.search(r"In '.*?': Could not find '(?P<path>[^']+)'", text) or re.search(
        r"Could not find '(?P<path>[^']+)'", text
    ):
        group, _, option = match["path"].rpartition("/")
        return _unknown_option(match["path"]) or f"there is no {option} in group {group}"
    if match := re.search(r"In 'experiment/(?P<name>[^']+)': Could not override '(?P<key>[^']+)'", text):
        return (
            f"experiment={match['name']} sets {match['key']}, which this command does not have: train with python train.py "
            f"experiment={match['name']}, or measure with python evaluate.py ckpt=... or experiment=oracle/..."
        )
    if match := re.search(r"Could not override '(?P<key>[^']+)'", text):
        if choice := re.search(r"No match in the defaults list", text):
            return f"unknown override {match['key']}: {_near_key(match['key']) or choice[0]}"
        return f"unknown override {match['key']}: {_near_key(match['key']) or 'no such key'}"
    if match := re.search(r"Key '(?P<leaf>[^']+)' is not in struct\s+full_key: (?P<key>\S+)", text):
        return f"unknown override {match['key']}: {_near_key(match['key']) or 'no such key'}"
    if match := re.match(r"Ambiguous value for argument '(?P<given>[^']+)'", text):
        key, _, value = match["given"].partition("=")
        return (
            f"{match['given']} names several values: with -m each is a run of its own (python train.py -m ...); one list is "
            f"{key}=[{value}], and one text {key}=\"'{value}'\""
        )
    if isinstance(error, OverrideParseException):
        given = getattr(error, "override", None) or "an override"
        if "=" not in str(given):
            name = f"experiment={given}" if (CONF / "experiment" / f"{given}.yaml").is_file() else f"{given}=VALUE"
            return f"{given} sets nothing: write {name}"
        return (
            f"cannot read {given}: put a value that holds = , : brackets or spaces in quotes, as in \"ckpt='a=b.ckpt'\""
        )
    return text.strip().splitlines()[0] if text.strip() else type(error).__name__


def _unknown_option(path: str) -> str | None:
    """Suggest the nearest option of the longest existing group, as for `experiment/mnist/vqave`."""
    parts = path.split("/")
    for cut in range(len(parts) - 1, 0, -1):
        group = "/".join(parts[:cut])
        if group not in all_groups():
            continue
        if parts[0] == "experiment":  # experiment names contain slashes: offer all options below the group
            group = parts[0]
            options = sorted(str(p.relative_to(CONF / group).with_suffix("")) for p in (CONF / group).rglob("*.yaml"))
        else:
            options = list(group_nodes(group))
        name = path[len(group) + 1 :]
        near = get_close_matches(name, options, 1)
        hint = f"did you mean {near[0]}? " if near else ""
        return f"unknown {group}={name}: {hint}choose one of {', '.join(options)}"
    return None


def _near_key(key: str) -> str | None:
    """Suggest the nearest config group or key of an entry point, as a question."""
    groups = all_groups()
    nodes = _nodes()
    head = key.split(".")[0].split("@")[0]
    near = get_close_matches(head, [*groups, *nodes], 1)
    if not near:
        return None
    rest = key.split(".")[1:]
    if near[0] == head:
        own = nodes.get(head, [])
        groups_below = [group.removeprefix(f"{head}/") for group in groups if group.startswith(f"{head}/")]
        if rest and (group := get_close_matches(rest[0], groups_below, 1)):
            return f"did you mean {head}/{group[0]}?"
        leaf = get_close_matches(rest[-1], [*own, *_keys_of(head)], 1) if rest else []
        if leaf and leaf[0] != rest[-1]:
            return f"did you mean {'.'.join([head, *rest[:-1], leaf[0]])}?"
        if leaf and head not in nodes:  # a key of other commands
            return f"did you mean {rest[-1]}?" if rest[-1] in nodes else None
        return f"{head} has no such key" + (f"; it has {', '.join(own)}" if own else "")
    return f"did you mean {'.'.join([near[0], *rest])}?"


def _nodes() -> dict[str, list[str]]:
    """List the keys of the command's own configuration, and the keys below each; of all commands' where it is none of ours."""
    from omegaconf import OmegaConf

    nodes: dict[str, list[str]] = {}
    own = CONF / f"{Path(sys.argv[0]).stem}.yaml"
    for path in [own] if own.exists() else sorted(CONF.glob("*.yaml")):
        if path.stem == "options":
            continue
        for name, node in OmegaConf.to_container(OmegaConf.load(path), resolve=False).items():  # type: ignore[union-attr]
            if name not in ("defaults", "hydra"):
                below = [str(k) for k in node] if isinstance(node, dict) else []
                nodes[str(name)] = list(dict.fromkeys([*nodes.get(str(name), []), *below]))
    return nodes


def _keys_of(group: str) -> list[str]:
    """List the keys, at any depth, of the options of a group and of those below it."""
    keys: set[str] = set()
    for path in (CONF / group).rglob("*.yaml"):
        keys.update(re.findall(r"^\s*(\w+):", path.read_text(), re.MULTILINE))
    for name, options in small_options().items():
        if f"{name}/".startswith(f"{group}/"):
            keys.update(key for node in options.values() for key in node)
    return sorted(keys)


# At import, because a process that a Hydra launcher starts imports only this module.
register_resolvers()
accept_defaults()
