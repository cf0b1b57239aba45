"""Points side by side on this machine: Hydra's joblib launcher, for points that may be stopped and may crash."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from hydra.core.utils import JobReturn

from trilemma.distributed import signals
from trilemma.errors import PREEMPTED
from trilemma.sweeps.points import lost, raise_if_stopped

_LOOKS = 0.5  # seconds between two looks for a signal

with suppress(ImportError):
    from hydra_plugins.hydra_joblib_launcher.joblib_launcher import JoblibLauncher as _JoblibLauncher

    class JoblibLauncher(_JoblibLauncher):  # type: ignore[misc, unused-ignore]
        """Hands signals on to its processes, and loses no point because another one crashed."""

        def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
            """Run points.

            Raises:
                Stopped: If a signal asked for it; the points have written what they had to write.
            """
            try:
                with _passing_signals_on():
                    returned: Sequence[JobReturn] = super().launch(job_overrides, initial_job_idx)
            except Exception as error:  # one of its processes is gone, and joblib has ended all
                raise_if_stopped()
                if len(job_overrides) == 1:
                    result = lost(job_overrides[0], error)
                    print(
                        f"error: {result.return_value.point}: {result.return_value.line}", file=sys.stderr, flush=True
                    )
                    return [result]
                # What was finished is finished, and the one that crashes takes no other with it.
                each = [self.launch([one], initial_job_idx + i) for i, one in enumerate(job_overrides)]
                return [result for results in each for result in results]
            raise_if_stopped()
            return returned


@contextmanager
def _passing_signals_on() -> Iterator[None]:
    """Hand the signals on that ask to stop, and wait for what the points write: joblib would kill them with this process.

    Ctrl-C reaches them by itself.
    """
    done = threading.Event()

    def look() -> None:
        while not done.wait(_LOOKS):
            if signals.asked() == PREEMPTED:
                for child in multiprocessing.active_children():
                    if child.pid is not None:
                        os.kill(child.pid, signal.SIGTERM)
                return

    looker = threading.Thread(target=look, daemon=True)
    with signals.waiting(*signals.ALL):
        looker.start()
        try:
            yield
        finally:
            done.set()
            looker.join()
