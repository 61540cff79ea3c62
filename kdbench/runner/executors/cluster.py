"""Run jobs on a Ray cluster: one actor a job. Neither a common folder nor the driver's machine is needed by nodes."""

from __future__ import annotations

import logging
import os
import pickle
import queue
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import kdbench
from kdbench.core.checkpoint import CheckpointInterval
from kdbench.core.data import DataInfo
from kdbench.core.errors import Interrupted, UserError
from kdbench.core.events import Emit, JobLost, JobPlaced, JobQueued
from kdbench.core.jobs import Job
from kdbench.core.trial import Value
from kdbench.data.dataset import Dataset
from kdbench.plan.study import RunOptions
from kdbench.runner.executors.messages import Feed, Raised, Ready, Remote, Setup, Stopped, dumps
from kdbench.runner.executors.worker import Throttle, check_code, open_executor, redirect_log
from kdbench.runner.parallel import Parallel, Work, on_cluster
from kdbench.train.checkpoint import Checkpoints
from kdbench.train.device import describe_environment

log = logging.getLogger("kdbench")

STEP_SECONDS = 2.0  # at least, between two steps that travel
QUEUE = 64  # events that wait for the driver before training waits for it
_POLL = 0.5  # seconds between two looks at `stop`, at jobs that have become ready and at the cluster
_TELL = 60.0  # seconds after which a cluster without a fitting node is spoken of again


class Cluster:
    """A connection to a Ray cluster, and what each job takes of it."""

    def __init__(self, run: RunOptions) -> None:
        """Connect to `auto`, `local` (started here) or HOST:PORT. Raises UserError."""
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")  # it would copy torch to every worker
        try:
            import ray
        except ImportError:
            raise UserError('--cluster needs Ray: pip install "kdbench[ray]"') from None
        address = run.cluster or "auto"
        if address.startswith("ray://"):
            raise UserError("--cluster: Ray clients (ray://) are not supported; run the command on a node, with auto")
        _require_reachable(address)
        self.ray: Any = ray
        self.code, self.plugins = stage_code(run.plugins)
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        options: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
        try:
            ray.init(
                address=address,
                log_to_driver=False,
                logging_level=logging.ERROR,
                runtime_env={"working_dir": self.code.name},
                **options,
            )
        except Exception as error:
            reason = " ".join(str(error).split())
            if address == "auto" and isinstance(error, ConnectionError):
                reason = "none runs on this machine; start one with `ray start --head`, or give HOST:PORT"
            else:
                reason += "; if it asks for a token: docs/clusters.md"
            raise UserError(f"--cluster {address}: there is no Ray cluster that can be used: {reason}") from error
        finally:
            if threading.current_thread() is threading.main_thread():  # ray.init takes SIGTERM for itself
                for number, handler in handlers.items():
                    signal.signal(number, handler)
        on_gpu = run.device.startswith("cuda") or (run.device == "auto" and self._total("GPU") > 0)
        self.run, self.device = run, torch.device("cpu")  # of this process
        self.job_device = torch.device("cuda", 0) if on_gpu else torch.device("cpu")
        self.compiles = run.compile
        self.cpus, self.gpus = run.threads or 1, (run.gpus_per_job or 1.0) if on_gpu else 0.0
        problem = "" if self.rooms() else f"--cluster: no node has {self.demand}; the cluster is {self}"
        if run.gpus_per_job is not None and not on_gpu:
            problem = "--gpus-per-job needs GPUs, and the jobs take none; see --device"
        if problem:
            self.close()
            raise UserError(problem)

    def _total(self, resource: str) -> float:
        return float(self.ray.cluster_resources().get(resource, 0.0))

    @property
    def demand(self) -> str:
        """What a job takes, in words."""
        cpus = f"{self.cpus} processor{'s' * (self.cpus > 1)}"
        return f"{cpus} and {self.gpus:g} GPU" if self.gpus else cpus

    def rooms(self) -> list[int]:
        """How many jobs at a time each node that can run one holds."""
        rooms = []
        for node in self.ray.nodes():
            has = node["Resources"] if node["Alive"] else {}
            room = has.get("CPU", 0.0) / self.cpus
            rooms.append(int(min(room, has.get("GPU", 0.0) / self.gpus + 1e-9) if self.gpus else room))
        return [room for room in rooms if room]

    def __str__(self) -> str:
        nodes = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        held = ", ".join(f"{node.get('CPU', 0):g} processors and {node.get('GPU', 0):g} GPUs" for node in nodes)
        return f"{len(nodes)} node{'s' * (len(nodes) != 1)}: {held}"

    def divide(self, work: Work, data: DataInfo, *, by_hand: bool = False) -> Parallel:
        """See `kdbench.runner.placement.Placement`."""
        if by_hand:
            raise UserError(
                "--cluster: a method that was registered in this process is not known to nodes; use --plugins"
            )
        return on_cluster(self.run, self.rooms(), work, self.cpus, self.job_device)

    def describe(self, parallel: Parallel) -> list[str]:
        """See `kdbench.runner.placement.Placement`."""
        jobs = f"up to {parallel.jobs} jobs at a time, {parallel.threads} thread{'s' * (parallel.threads != 1)} each"
        return [f"cluster of {self}", *([jobs] if parallel.jobs > 1 else [])]

    def executor(
        self,
        parallel: Parallel,
        precision: str,
        datasets: Mapping[str, Dataset],
        checkpoints: Checkpoints,
        interval: CheckpointInterval | None,
        stop: Callable[[], bool],
    ) -> ClusterExecutor:
        """See `kdbench.runner.placement.Placement`."""
        return ClusterExecutor(self, parallel.jobs, precision, datasets, checkpoints, interval, stop)

    def close(self) -> None:
        """Leave the cluster; one that was started here ends."""
        self.ray.shutdown()
        self.code.cleanup()


def _require_reachable(address: str) -> None:
    """Ray itself waits for minutes. Raises UserError."""
    if address in ("auto", "local"):
        return
    host, _, port = address.rpartition(":")
    if not (host and port.isdecimal()):
        raise UserError(f"--cluster {address!r} is none of auto, local and HOST:PORT")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise UserError(f"--cluster {address}: nobody answers there: {error}") from error


def stage_code(plugins: Path | None) -> tuple[tempfile.TemporaryDirectory[str], Path | None]:
    """A folder with this code and the plugins, for nodes to import, and where the plugins lie in it."""
    folder = tempfile.TemporaryDirectory(prefix="kdbench-")
    package, unwanted = Path(kdbench.__file__).parent, shutil.ignore_patterns("__pycache__", "*.pyc")
    shutil.copytree(package, Path(folder.name, package.name), ignore=unwanted)
    own = package.parent / "methods"  # of a checkout
    if own.is_dir():
        shutil.copytree(own, Path(folder.name, own.name), ignore=unwanted)
    if plugins is None:
        return folder, None
    place = Path("plugins", plugins.name)
    if plugins.is_dir():
        shutil.copytree(plugins, folder.name / place, ignore=unwanted)
    else:
        Path(folder.name, "plugins").mkdir()
        shutil.copy(plugins, folder.name / place)
    return folder, place


class ClusterExecutor:
    """Runs each job in an actor on some node, with the checkpoints that the driver holds.

    Ray itself repeats nothing: what is lost with its node is handed out again by the runner.
    """

    def __init__(
        self,
        cluster: Cluster,
        jobs: int,
        precision: str,
        datasets: Mapping[str, Dataset],
        checkpoints: Checkpoints,
        interval: CheckpointInterval | None = None,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """`jobs` is how many may be under way; `datasets` are those of the jobs, by their content."""
        self.cluster, self.ray, self.jobs, self.stop = cluster, cluster.ray, jobs, stop
        self.checkpoints = checkpoints
        self.setup = Setup(
            device=str(cluster.job_device),
            precision=precision,
            threads=cluster.cpus,
            jobs=max(cluster.rooms()),
            gpu_share=cluster.gpus or 1.0,
            interval=interval,
            plugins=cluster.plugins,
            compiles=cluster.compiles,
        )
        self.datasets = self.ray.put(pickle.dumps(dict(datasets), pickle.HIGHEST_PROTOCOL))
        self.actor = self.ray.remote(Trainer).options(
            num_cpus=cluster.cpus,
            num_gpus=cluster.gpus,
            max_restarts=0,
            max_task_retries=0,
            max_concurrency=2,  # one thread runs a job, one hears `stop`
        )
        here = describe_environment(torch.device("cpu"))  # its commit is the nodes', which have no checkout
        self.commit: dict[str, Value] = {name: here[name] for name in ("commit", "edited") if name in here}
        self.told = time.monotonic()

    def run(self, jobs: Iterator[Job | None], emit: Emit) -> None:
        """See `kdbench.core.events.Executor`."""
        running: dict[Any, _Remote] = {}  # by their streams of events
        feed, stopping = Feed(jobs), False
        try:
            while True:
                if self.stop() and not stopping:
                    stopping, feed.more = True, False
                    for remote in running.values():
                        remote.actor.stop.remote()
                while len(running) < self.jobs and (job := feed.take()) is not None:
                    remote = self._submit(job)
                    running[remote.stream] = remote
                    emit(JobQueued(job))
                if not running and stopping:
                    raise Interrupted
                if not running and not feed.more:
                    return
                self._warn_if_nothing_fits()
                if not running:
                    time.sleep(_POLL)
                    continue
                ready, _ = self.ray.wait(list(running), num_returns=len(running), timeout=_POLL, fetch_local=True)
                for stream in ready or ():
                    if not self._receive(running[stream], emit):
                        self.ray.kill(running.pop(stream).actor)
        finally:
            for remote in running.values():
                self.ray.kill(remote.actor)

    def _submit(self, job: Job) -> _Remote:
        actor = self.actor.remote()
        states = {item.id: state for item in job.items if (state := self.checkpoints.load(item.id))}
        content = pickle.dumps((self.setup, job, states), pickle.HIGHEST_PROTOCOL)
        stream = actor.run.options(num_returns="streaming").remote(content, self.datasets)
        return _Remote(job, actor, stream, self.setup.device, self.commit)

    def _receive(self, remote: _Remote, emit: Emit) -> bool:
        """Pass on one event. False: the job has ended, is lost or was stopped. Raises what ends the run."""
        assert remote.job is not None
        try:
            content = self.ray.get(next(remote.stream))
        except StopIteration:
            return False
        except self.ray.exceptions.RayTaskError as failure:  # first, since it is a RayError too
            raise UserError(f"--cluster: a node cannot run kdbench: {failure.cause}") from failure
        except self.ray.exceptions.RayError as failure:
            emit(JobLost(remote.job, f"its node or its process is gone; Ray says {type(failure).__name__}"))
            return False
        remote.pass_on(content, emit)
        return remote.job is not None

    def _warn_if_nothing_fits(self) -> None:
        if time.monotonic() - self.told > _TELL:
            self.told = time.monotonic()
            if not self.cluster.rooms():
                log.warning("no node of the cluster has %s now: waiting for one", self.cluster.demand)


class _Remote(Remote):
    """An actor that runs a job, or waits in Ray for a node."""

    def __init__(self, job: Job, actor: Any, stream: Any, device: str, commit: Mapping[str, Value]) -> None:
        super().__init__()
        self.actor, self.stream, self.device, self.commit = actor, stream, device, commit
        self.accept(job)

    def ready(self, environment: Mapping[str, Value], emit: Emit) -> None:
        """Its node has taken it."""
        if (theirs := environment["torch"]) != torch.__version__:
            log.warning("%s has torch %s, and this machine %s", environment["host"], theirs, torch.__version__)
        super().ready({**environment, **self.commit}, emit)
        assert self.job is not None
        emit(JobPlaced(self.job, f"{environment['host']}, {self.device}"))


class Trainer:
    """The actor: runs one job on a node."""

    def __init__(self) -> None:
        self.stopping = threading.Event()

    def stop(self) -> None:
        """Stop after this step, with checkpoints."""
        self.stopping.set()

    def run(self, content: bytes, datasets: bytes) -> Iterator[bytes]:
        """What happens to the job, event by event."""
        out: queue.Queue[bytes | None] = queue.Queue(QUEUE)
        thread = threading.Thread(target=self._train, args=(content, datasets, out), daemon=True)
        thread.start()
        while (message := out.get()) is not None:
            yield message
        thread.join()

    def _train(self, content: bytes, datasets: bytes, out: queue.Queue[bytes | None]) -> None:
        job: Job | None = None

        def send(message: Any) -> None:
            out.put(dumps(message, job))

        redirect_log(send)
        throttle = Throttle(STEP_SECONDS)
        try:
            setup, job, states = pickle.loads(content)
            executor, environment = open_executor(setup, datasets, _Sent(states), self.stopping.is_set)
            send(Ready(environment))
            check_code(job)
            executor.run(iter([job]), lambda event: send(event) if throttle.passes(event) else None)
        except Interrupted:
            send(Stopped())
        except Exception as error:
            send(Raised(error))
        finally:
            out.put(None)


@dataclass(frozen=True)
class _Sent:
    """The checkpoints that came with a job."""

    states: Mapping[str, dict[str, Any]]

    def load(self, trial_id: str) -> dict[str, Any] | None:
        return self.states.get(trial_id)
