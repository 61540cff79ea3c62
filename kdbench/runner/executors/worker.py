"""A worker process: is set up once, then runs the jobs that its driver sends, until there are no more.

Started by `ProcessExecutor` as `python -m kdbench.runner.executors.worker FD`, with its end of a pipe.
"""

from __future__ import annotations

import logging
import os
import pickle
import queue
import sys
import threading
import time
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdbench.core.errors import DeviceLost, Interrupted, UserError
from kdbench.core.events import Event, StepEnd
from kdbench.core.jobs import Job
from kdbench.core.trial import Trial, Value
from kdbench.runner.executors.messages import END, STOP, Log, Raised, Ready, Setup, Stopped, dumps, receive

if TYPE_CHECKING:
    from kdbench.runner.executors.local import Loads, LocalExecutor

STEP_SECONDS = 0.2  # at least, between two steps that are told: more would only be read, never seen


class Worker:
    """The worker's side of the pipe."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.inbox: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self.stop = threading.Event()
        self.job: Any = None
        self.throttle = Throttle(STEP_SECONDS)
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        """Read while torch is imported and while a job is trained, so that the driver never waits."""
        while (message := receive(self.connection)) is not None:
            if message == STOP:
                self.stop.set()
            else:
                self.inbox.put(message)
        os._exit(1)  # the driver is gone, and with it whoever could keep results

    def send(self, message: Any) -> None:
        self.connection.send_bytes(dumps(message, self.job))

    def emit(self, event: Event) -> None:
        """Pass an event on; of the steps of an epoch only some."""
        if self.throttle.passes(event):
            self.send(event)

    def run(self) -> None:
        """Run jobs until the driver says that there are no more."""
        import_torch()  # the driver makes its plan meanwhile
        from kdbench.train.checkpoint import Checkpoints

        setup: Setup = pickle.loads(self.inbox.get())
        datasets, folder = self.inbox.get(), self.inbox.get()
        checkpoints = Checkpoints(Path(os.fsdecode(folder)))
        executor, environment = open_executor(setup, datasets, checkpoints, self.stop.is_set)
        self.send(Ready(environment))
        while (message := self.inbox.get()) != END:
            self.job = pickle.loads(message)
            check_code(self.job)
            executor.run(iter([self.job]), self.emit)


def import_torch() -> None:
    """Import what every job needs."""
    import torch

    from kdbench.distill import registry

    registry.discover()
    torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)  # the first optimizer loads torch._dynamo


def open_executor(
    setup: Setup, datasets: bytes, checkpoints: Loads, stop: Callable[[], bool]
) -> tuple[LocalExecutor, Mapping[str, Value]]:
    """The executor of a worker, and the environment of its records.

    `datasets` are pickled apart, since they may be of a plugin's class. Raises UserError.
    """
    import torch

    from kdbench.runner.executors.local import LocalExecutor
    from kdbench.runner.plugins import load_plugins
    from kdbench.train.device import configure_torch, describe_environment

    if setup.plugins is not None:
        load_plugins(setup.plugins)
    device = torch.device(setup.device)
    configure_torch(device, setup.precision, setup.threads, setup.compiles)
    if device.type == "cuda" and setup.gpu_share < 1:
        torch.cuda.set_per_process_memory_fraction(setup.gpu_share, device)
    executor = LocalExecutor(pickle.loads(datasets), device, checkpoints, setup.interval, stop)
    return executor, {**describe_environment(device), "jobs": setup.jobs}


def check_code(job: Job) -> None:
    """Raise UserError if this process has other code of a job's methods than the command that sent it."""
    from kdbench.distill import registry

    trials = [trial for trial in job.items if isinstance(trial, Trial) and trial.teachers]
    differing = {trial.base: None for trial in trials if registry.code(trial.base) != trial.code}
    if differing:
        raise UserError(f"a worker's code of {', '.join(differing)} is another than that of the command")


class Throttle:
    """Lets few of the steps of an epoch pass, and every other event."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.last = seconds, 0.0

    def passes(self, event: Event) -> bool:
        """Whether the event is to be told."""
        if not isinstance(event, StepEnd) or event.step == event.steps:
            return True
        now = time.monotonic()
        due = now - self.last >= self.seconds
        if due:
            self.last = now
        return due


class LogSender(logging.Handler):
    """Lets the driver say what a worker would log, since the terminal is the driver's."""

    def __init__(self, send: Callable[[Any], None]) -> None:
        super().__init__()
        self.send = send

    def emit(self, record: logging.LogRecord) -> None:
        self.send(Log(record.levelno, record.getMessage()))


def redirect_log(send: Callable[[Any], None]) -> None:
    """Send what is logged to the driver from now on."""
    logger = logging.getLogger("kdbench")
    logger.handlers, logger.propagate = [LogSender(send)], False
    logger.setLevel(logging.INFO)


def main(descriptor: int) -> None:
    """Work for the driver at the other end of this pipe."""
    worker = Worker(Connection(descriptor))
    redirect_log(worker.send)
    try:
        worker.run()
    except Interrupted:
        worker.send(Stopped())
    except DeviceLost as error:
        logging.getLogger("kdbench").warning("%s", error)
        os._exit(1)  # another process may use the device; to the driver this job is lost
    except Exception as error:
        worker.send(Raised(error))


if __name__ == "__main__":
    main(int(sys.argv[1]))
    sys.stdout.flush()
    os._exit(0)  # the driver waits, and torch takes a second to be torn down
