"""Jobs on a Ray cluster: the same results, whatever happens to a node."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from kdbench.core.errors import Interrupted, UserError
from kdbench.core.events import Checkpoint, EpochEnd, Event, JobLost, JobPlaced, TrialEnd
from kdbench.core.jobs import CohortJob
from kdbench.core.record import Outcome
from kdbench.core.trial import Trial
from kdbench.plan.study import RunOptions
from kdbench.results import Store
from kdbench.runner.executors.cluster import Cluster, ClusterExecutor
from kdbench.runner.runner import DEATHS, run_jobs
from kdbench.train.checkpoint import Checkpoints
from tests.faults.fault_study import Study, end
from tests.train.tiny_study import DATASET, cohort, equal, longer, run_cohort, trial

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install kdbench[ray]")

EPOCHS_TO_KILL_IN = 60
TRIALS = [longer(trial("vanilla", teacher=None, seed=seed), 8) for seed in range(3)]


@pytest.fixture(scope="module", autouse=True)
def quiet_ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No memory monitor, which would kill workers while other tests use the machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_memory_monitor_refresh_ms", "0")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        yield
        ray.shutdown()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Outcome]:
    return alone(tmp_path_factory.mktemp("undisturbed"), TRIALS)


def alone(folder: Path, trials: list[Trial]) -> dict[int, Outcome]:
    """In this process, with as many threads, by seed."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return {each.seed: run_cohort(folder, cohort(each))[0] for each in trials}
    finally:
        torch.set_num_threads(threads)


def run(
    cluster: Cluster,
    folder: Path,
    watch: Callable[[Event], None],
    *trials: Trial,
    jobs: int = 2,
    stop: Callable[[], bool] = lambda: False,
) -> dict[int, Outcome]:
    """The outcomes by seed."""
    events: list[Event] = []
    checkpoints = Checkpoints(folder / "checkpoints")
    executor = ClusterExecutor(cluster, jobs, "fp32", {DATASET.info.content: DATASET}, checkpoints, stop=stop)

    def both(event: Event) -> None:
        events.append(event)
        watch(event)

    run_jobs([CohortJob(cohort(each)) for each in trials], Store(folder), executor, checkpoints, both, {}, stop=stop)
    found = [event.outcome for event in events if isinstance(event, TrialEnd)]
    return {outcome.trial.seed: outcome for outcome in found if isinstance(outcome, Outcome)}


def test_equal_to_one_process_and_stopped_in_an_orderly_way(tmp_path: Path, undisturbed: dict[int, Outcome]) -> None:
    handler = signal.getsignal(signal.SIGTERM)
    cluster = Cluster(RunOptions(cluster="local"))
    assert signal.getsignal(signal.SIGTERM) is handler
    try:
        seen: list[Event] = []
        with pytest.raises(Interrupted):
            run(cluster, tmp_path, seen.append, TRIALS[0], stop=lambda: any(isinstance(e, EpochEnd) for e in seen))
        assert {event.id for event in seen if isinstance(event, Checkpoint)} == {TRIALS[0].id}
        again: list[Event] = []
        found = run(cluster, tmp_path, again.append, TRIALS[0])
        ended = [event.epoch for event in seen + again if isinstance(event, EpochEnd)]
        assert sorted(ended) == list(range(1, 9))  # no epoch that had ended was trained again
        assert equal(found[0], undisturbed[0])
        (record,) = Store(tmp_path).records()
        assert record.environment["threads"] == 1
        assert any(isinstance(event, JobPlaced) and event.place.endswith(", cpu") for event in again)
    finally:
        cluster.close()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"cluster": "ray://somewhere:10001"}, "Ray clients"),
        ({"cluster": "127.0.0.1:1"}, "nobody answers there: .*refused"),
        ({"cluster": "somewhere"}, "none of auto, local and HOST:PORT"),
        ({"cluster": "auto"}, "no Ray cluster that can be used"),
    ],
)
def test_addresses_that_lead_nowhere(options: dict[str, Any], sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_gcs_rpc_server_reconnect_timeout_s", "1")
    with pytest.raises(UserError, match=sentence):
        Cluster(RunOptions(**options))


@pytest.fixture
def two_nodes() -> Iterator[tuple[Any, Any, Any, Cluster]]:
    """A head without processors and two nodes with one each."""
    from ray.cluster_utils import Cluster as Nodes

    nodes = Nodes(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    first, second = nodes.add_node(num_cpus=1), nodes.add_node(num_cpus=1)
    cluster = Cluster(RunOptions(cluster=nodes.address))
    try:
        yield nodes, first, second, cluster
    finally:
        cluster.close()
        nodes.shutdown()


@pytest.mark.slow
def test_a_node_that_is_killed_loses_no_epoch_that_had_ended(
    tmp_path: Path, undisturbed: dict[int, Outcome], two_nodes: tuple[Any, Any, Any, Cluster]
) -> None:
    nodes, first, _, cluster = two_nodes
    assert cluster.rooms() == [1, 1]
    epochs: list[tuple[int, int]] = []
    lost: list[str] = []

    def watch(event: Event) -> None:
        if isinstance(event, EpochEnd):
            epochs.append((event.job.items[0].seed, event.epoch))
            if len(epochs) == 3:
                nodes.remove_node(first, allow_graceful=False)
        elif isinstance(event, JobLost):
            lost.append(event.reason)

    found = run(cluster, tmp_path, watch, *TRIALS)
    assert 1 <= len(lost) < DEATHS  # a new actor may be sent to the dead node before Ray knows
    assert all(equal(found[seed], undisturbed[seed]) for seed in range(3))
    assert sorted(set(epochs)) == sorted((seed, epoch) for seed in range(3) for epoch in range(1, 9))
    assert len(epochs) - len(set(epochs)) <= 1  # at most the epoch under way is trained again


@pytest.mark.slow
def test_a_worker_that_is_killed_loses_no_epoch_that_had_ended(
    tmp_path: Path, two_nodes: tuple[Any, Any, Any, Cluster], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Epochs enough that the worker is at work when the news of its third one has come, and the signal has gone."""
    *_, cluster = two_nodes
    long = [longer(each, EPOCHS_TO_KILL_IN) for each in TRIALS]
    epochs, lost, actors, pids = list[tuple[int, int]](), list[str](), list[Any](), list[int]()
    submit = ClusterExecutor._submit

    def submitted(self: ClusterExecutor, job: Any) -> Any:
        remote = submit(self, job)
        actors.append(remote.actor)
        return remote

    monkeypatch.setattr(ClusterExecutor, "_submit", submitted)

    def watch(event: Event) -> None:
        if isinstance(event, EpochEnd):
            epochs.append((event.job.items[0].seed, event.epoch))
            if not pids:
                pids.append(ray.get(actors[0].__ray_call__.remote(lambda self: os.getpid())))
            if len(epochs) == 3:
                os.kill(pids[0], signal.SIGKILL)
        elif isinstance(event, JobLost):
            lost.append(event.reason)

    found = run(cluster, tmp_path / "cluster", watch, *long)
    assert len(lost) == 1
    expected = alone(tmp_path / "alone", long)
    assert all(equal(found[seed], expected[seed]) for seed in range(3))
    assert set(epochs) == {(seed, epoch) for seed in range(3) for epoch in range(1, EPOCHS_TO_KILL_IN + 1)}
    assert len(epochs) - len(set(epochs)) <= 1  # at most the epoch under way is trained again


@pytest.mark.slow
def test_workers_that_die_before_an_epoch_fail_their_trial_alone(
    tmp_path: Path, undisturbed: dict[int, Outcome], two_nodes: tuple[Any, Any, Any, Cluster]
) -> None:
    *_, cluster = two_nodes
    killed, events = list[int](), list[Event]()

    class Deadly(ClusterExecutor):
        def _submit(self, job: Any) -> Any:
            remote = super()._submit(job)
            if job.items[0].seed == 0:
                self.ray.kill(remote.actor)
                killed.append(job.items[0].seed)
            return remote

    checkpoints = Checkpoints(tmp_path / "checkpoints")
    executor = Deadly(cluster, 2, "fp32", {DATASET.info.content: DATASET}, checkpoints)
    run_jobs(
        [CohortJob(cohort(each)) for each in TRIALS[:2]], Store(tmp_path), executor, checkpoints, events.append, {}
    )
    records = {record.trial.seed: record for record in Store(tmp_path).records()}
    assert killed.count(0) == DEATHS
    assert records[0].status == "failed"
    assert (records[0].reason or "").startswith(f"it was lost {DEATHS} times")
    assert records[1].status == "done"


@pytest.mark.slow
def test_demands_that_no_node_meets_are_said(two_nodes: tuple[Any, Any, Any, Cluster]) -> None:
    nodes, _, _, cluster = two_nodes
    cluster.close()
    for options, words in (({"threads": 4}, "4 processors"), ({"device": "cuda"}, "1 processor and 1 GPU")):
        with pytest.raises(UserError, match=f"no node has {words}; the cluster is 3 nodes"):
            Cluster(RunOptions(cluster=nodes.address, **options))


def under_way(tmp_path: Path, own_group: bool) -> tuple[Study, Study, subprocess.Popen[str]]:
    """A study that was run alone, and the same one on a cluster, with its driver, once it has checkpoints."""
    words = ["--methods", "kd", "--pairs", "wrn_16_2:resnet8", "--dataset", "digits", "--seeds", "1", "--epochs", "6"]
    alone = Study(tmp_path / "alone", [*words, "--threads", "1"])
    alone.run()
    study = Study(tmp_path / "cluster", [*words, "--cluster", "local", "--jobs", "2"])
    driver = study.start(own_group=own_group)
    while not list(study.out.glob("checkpoints/*.pt")):
        assert driver.poll() is None
        time.sleep(0.05)
    return alone, study, driver


@pytest.mark.slow
def test_ctrl_c_in_a_terminal_brings_the_checkpoints_home(tmp_path: Path) -> None:
    """The signal reaches the driver, Ray's own processes and the actors alike."""
    alone, study, driver = under_way(tmp_path, own_group=True)
    before = {path: path.stat().st_mtime for path in study.out.glob("checkpoints/*.pt")}
    os.killpg(driver.pid, signal.SIGINT)
    printed, _ = driver.communicate(timeout=60)
    assert driver.returncode == 128 + signal.SIGINT, printed
    assert "Traceback" not in printed, printed
    assert any(path.stat().st_mtime > when for path, when in before.items() if path.exists())
    assert "resume from checkpoints" in study.run()
    assert study.trials() == alone.trials()


@pytest.mark.slow
def test_a_killed_driver_continues_where_it_was(tmp_path: Path) -> None:
    alone, study, driver = under_way(tmp_path, own_group=False)
    end(driver)
    assert "resume from checkpoints" in study.run()
    assert study.trials() == alone.trials()
    assert study.files() - {"results/study.toml"} == alone.files() - {"results/study.toml"}
