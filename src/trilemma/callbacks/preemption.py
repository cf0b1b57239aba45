"""Whether a run was asked to stop, known to all its processes at the same batch."""

from __future__ import annotations

from contextlib import ExitStack

import lightning as L
import torch
import torch.distributed as dist

from trilemma.distributed import signals


class StopRequests:
    """Hears the signals that ask to stop, for all processes of a run together.

    A signal reaches the processes at different batches, or one of them alone, and they write a checkpoint together. So
    each batch ends with one small reduction that nobody waits for: its answer is looked at at the end of the next batch, by
    when it has come. The host never waits for a GPU. A single process knows at once.

    It stands in the place of two things that Lightning does: a broadcast before every batch, which makes the host wait, and
    a handler of SIGTERM that starts a broadcast wherever the signal finds the program, where the others need not join in.
    """

    def __init__(self) -> None:
        self._until_the_end = ExitStack()
        self._round: _Round | None = None

    def begin(self, trainer: L.Trainer) -> None:
        """Listen from here on. Called before Lightning would register handlers of its own."""
        _silence_lightning(trainer)
        if signals.listen():  # a trainer that no entry point of ours started
            self._until_the_end.callback(signals.stop_listening)
        self._until_the_end.enter_context(signals.waiting(*signals.ALL))

    def end(self) -> None:
        """What is asked for from here on is no business of this training."""
        self._round = None
        self._until_the_end.close()

    def asked_now(self, trainer: L.Trainer) -> int:
        """The exit status that a signal asks for, 0 where there was none; every process waits for all."""
        status = signals.asked()
        return status if trainer.world_size == 1 else _Round(status, trainer.strategy.root_device).answer()

    def asked(self, trainer: L.Trainer) -> int:
        """The same, without waiting: with several processes, what was known when this was asked last."""
        status = signals.asked()
        if trainer.world_size == 1:
            return status
        answer = 0 if self._round is None else self._round.answer()
        self._round = None if answer else _Round(status, trainer.strategy.root_device)
        return answer


class _Round:
    """One reduction: the greatest of what the processes say."""

    def __init__(self, status: int, device: torch.device) -> None:
        self._said = torch.full((1,), status, dtype=torch.int32, device=device)
        self._work = dist.all_reduce(self._said, op=dist.ReduceOp.MAX, async_op=True)
        self._event = None
        if device.type == "cuda":
            self._work.wait()  # of the stream; the host goes on
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
    """Keep Lightning from hearing and telling of signals: neither can be switched off by an option."""
    connector, loop = trainer._signal_connector, trainer.fit_loop.epoch_loop
    for owner, method in ((connector, "register_signal_handlers"), (loop, "_broadcast_sigterm_tensor")):
        assert callable(getattr(owner, method))  # else another Lightning does it elsewhere
        setattr(owner, method, lambda: None)
