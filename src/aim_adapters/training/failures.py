"""What a run does when something goes wrong: signals, too little memory, losses that are no numbers."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator, Sequence
from types import FrameType

import torch

from aim_adapters.errors import TrainingError


class Interruption:
    """A record of the signal that asks this run to stop after the step that runs.

    Attributes:
        signal: The signal, or None.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:  # the second time somebody means it
            raise KeyboardInterrupt
        self.signal = signal.Signals(number)

    @contextlib.contextmanager
    def watch(self) -> Iterator[Interruption]:
        """Note SIGTERM and SIGINT while inside; only the main thread can."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        before = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: not set by Python

    def leave(self) -> None:
        """End the program as the signal asks: SIGTERM with exit code 0, as all is saved; SIGINT as Python does.

        Raises:
            SystemExit: The signal was SIGTERM, or came to another process.
            KeyboardInterrupt: It was SIGINT.
        """
        if self.signal == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(0)


@contextlib.contextmanager
def explain_memory(batch_size: int, accumulate: int, memory: str | None) -> Iterator[None]:
    """Turn running out of GPU memory into an error that says what to try.

    Args:
        batch_size: Clips of a process in one pass.
        accumulate: Passes of a step.
        memory: Memory mode of the model, or None for a baseline.

    Raises:
        TrainingError: PyTorch ran out of memory.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        tries = []
        if memory == "fast":
            tries.append("aim.set_execution(model, memory='balanced')")
        if memory in ("fast", "balanced"):
            tries.append("aim.set_execution(model, memory='low')")
        if batch_size > 1:
            part = max(size for size in range(1, batch_size // 2 + 1) if batch_size % size == 0)
            tries.append(f"batch_size={part} with accumulate={accumulate * batch_size // part}: the same batch")
        tries.append("layers='top_half' when wrapping, or fewer frames")
        raise TrainingError(
            f"out of memory on {torch.cuda.get_device_name() if torch.cuda.is_available() else 'the device'} with "
            f"batch_size={batch_size} (clips of one process in one pass). Try, in this order: {'; '.join(tries)}"
        ) from error


def not_finite(loss: float, step: int, names: Sequence[str], rates: Sequence[float]) -> TrainingError:
    """Return the error about a loss that is no number.

    Args:
        loss: The loss.
        step: The step.
        names: The step's clips on this process.
        rates: Learning rates.
    """
    clips = ", ".join(map(repr, names[:16])) + (", …" if len(names) > 16 else "")
    where = f"clips {clips}" if names else "clips of another process"
    return TrainingError(
        f"the loss of step {step} is {loss}, with {where} and a learning rate of {max(rates):.3g}; the weights are "
        "those of before the step, and the last checkpoint stays. Lower learning_rate, set max_norm=1.0, look at these "
        "videos, or train in float32 (precision='fp32')"
    )


def compiler_errors() -> tuple[type[Exception], ...]:
    """Return the errors that come from PyTorch's compiler and not from the model or its data."""
    import torch._dynamo.exc
    import torch._inductor.exc

    return torch._dynamo.exc.TorchDynamoException, torch._inductor.exc.InductorError
