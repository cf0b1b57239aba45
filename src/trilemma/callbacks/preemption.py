"""Agreement of all processes of a run to stop at the same batch."""

from __future__ import annotations

from contextlib import ExitStack

import lightning as L
import torch
import torch.distributed as dist

from trilemma.distributed import signals


class StopRequests:
    """Shares signals that ask to stop between all processes of a run.

    A signal reaches the processes at different batches, or one of them alone, but they write a checkpoint together. So
    each batch ends with one small asynchronous reduction, whose result is read at the end of the next batch. The host
    never waits for a GPU. A single process reads its signals directly.

    It replaces two mechanisms of Lightning: a broadcast before every batch, which makes the host wait, and a handler of
    SIGTERM that starts a broadcast wherever the program is, where the other processes may not join it.
    """

    def __init__(self) -> None:
        self._until_the_end = ExitStack()
        self._round: _Round | None = None

    def begin(self, trainer: L.Trainer) -> None:
        """Listen from here on. Called before Lightning would register its own handlers."""
        _silence_lightning(trainer)
        if signals.listen():  # for a trainer that no entry point of ours started
            self._until_the_end.callback(signals.stop_listening)
        self._until_the_end.enter_context(signals.waiting(*signals.ALL))

    def end(self) -> None:
        """Stop listening: later signals do not concern this training."""
        self._round = None
        self._until_the_end.close()

    def asked_now(self, trainer: L.Trainer) -> int:
        """Reduce the exit status that a signal asks for, 0 where there was none; every process waits for all."""
        status = signals.asked()
        return status if trainer.world_size == 1 else _Round(status, trainer.strategy.root_device).answer()

    def asked(self, trainer: L.Trainer) -> int:
        """Read the status without waiting: with several processes, the result of the reduction started at the last call."""
        status = signals.asked()
        if trainer.world_size == 1:
            return status
        answer = 0 if self._round is None else self._round.answer()
        self._round = None if answer else _Round(status, trainer.strategy.root_device)
        return answer


class _Round:
    """One asynchronous reduction: the greatest status of all processes."""

    def __init__(self, status: int, device: torch.device) -> None:
        self._said = torch.full((1,), status, dtype=torch.int32, device=device)
        self._work = dist.all_reduce(self._said, op=dist.ReduceOp.MAX, async_op=True)
        self._event = None
        if device.type == "cuda":
            self._work.wait()  # blocks the CUDA stream, not the host
            heard = torch.empty(1, dtype=torch.int32, pin_memory=True)
            self._said = heard.copy_(self._said, non_blocking=True)
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record()

    def answer(self) -> int:
        if self._event is None:
            self._work.wait()
        else:
            self._event.synchronize()
        return int(self._said)


def _silence_lightning(trainer: L.Trainer) -> None:
    """Disable Lightning's own handling of signals, which no option disables."""
    connector, loop = trainer._signal_connector, trainer.fit_loop.epoch_loop
    for owner, method in ((connector, "register_signal_handlers"), (loop, "_broadcast_sigterm_tensor")):
        assert callable(getattr(owner, method))  # fails if another version of Lightning does it elsewhere
        setattr(owner, method, lambda: None)
