"""What `--cluster` takes, and what it says of the rest."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from modegap.engine.cluster import Cluster, connect, parse
from modegap.engine.cluster.launch import launch, visible_gpus
from modegap.engine.errors import EngineError


def test_the_three_forms(tmp_path: Path) -> None:
    assert parse("local").kind == "local"
    assert parse("local:3").workers == 3
    assert parse("tcp://10.0.0.1:8786").address == "tcp://10.0.0.1:8786"
    file = tmp_path / "c.yaml"
    file.write_text(
        "cluster: dask_jobqueue.SLURMCluster\noptions: {cores: 8, memory: 64GB}\nminimum: 0\nmaximum: 64\nwait: 3600"
    )
    spec = parse(str(file))
    assert spec.wait == 3600
    assert (spec.path, spec.options, spec.adapt) == (
        "dask_jobqueue.SLURMCluster",
        {"cores": 8, "memory": "64GB"},
        (0, 64),
    )


@pytest.mark.parametrize("text", ["local:0", "local:x", "local:-1", "8786", "host:8786", "", "http://a"])
def test_other_words(text: str) -> None:
    with pytest.raises(ValueError, match="expected local"):
        parse(text)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1", "is not YAML"),
        ("a: 1", "must say `cluster: module.Class`"),
        ("cluster: os.system", "a cluster class is one of dask_cuda, dask_jobqueue"),
        ("cluster: SLURMCluster", "a cluster class is one of"),
        ("cluster: dask_jobqueue.x; import os", "a cluster class is one of"),
        ("cluster: distributed.LocalCluster\nworker: 3", "did you mean 'workers'"),
        ("cluster: distributed.LocalCluster\nworkers: many", "must be a number of workers"),
        ("cluster: distributed.LocalCluster\nworkers: 0", "must be a number of workers"),
        ("cluster: distributed.LocalCluster\nminimum: 1", "minimum without maximum"),
        ("cluster: distributed.LocalCluster\noptions: [1]", "settings by name"),
        ("cluster: distributed.LocalCluster\nworkers: 2\nmaximum: 4", "gives workers and maximum"),
        ("cluster: distributed.LocalCluster\nwait: 1h", "must be seconds, got '1h'"),
    ],
)
def test_files_that_say_something_else(content: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(content)
    with pytest.raises(EngineError, match=message):
        parse(str(file))
    with pytest.raises(EngineError, match="there is no file"):
        parse(str(tmp_path / "none.yaml"))


def test_packages_that_are_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("cluster: dask_cuda.LocalCUDACluster")
    monkeypatch.setitem(sys.modules, "dask_cuda", None)
    with pytest.raises(EngineError, match="pip install dask-cuda"):
        launch(parse(str(file)))
    file.write_text("cluster: distributed.NoSuchCluster")
    with pytest.raises(EngineError, match="has no class NoSuchCluster"):
        launch(parse(str(file)))
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(EngineError, match="a cluster needs Dask"):
        launch(parse("local:1"))


def _offered(monkeypatch: pytest.MonkeyPatch, offered: type) -> None:
    """A package of job queues with this class."""
    fake = ModuleType("dask_jobqueue")
    setattr(fake, offered.__name__, offered)
    monkeypatch.setitem(sys.modules, "dask_jobqueue", fake)


def test_a_class_gets_its_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[Any] = []

    class SLURMCluster:
        def __init__(self, **options: Any) -> None:
            if "queue" not in options:
                raise ValueError("no queue")
            said.append(options)

        def scale(self, count: int) -> None:
            said.append(count)

        def adapt(self, **limits: int) -> None:
            said.append(limits)

    _offered(monkeypatch, SLURMCluster)
    file = tmp_path / "c.yaml"
    file.write_text("cluster: dask_jobqueue.SLURMCluster\noptions: {queue: cpu}\nworkers: 7")
    assert isinstance(launch(parse(str(file))), SLURMCluster)
    file.write_text("cluster: dask_jobqueue.SLURMCluster\noptions: {queue: cpu}\nminimum: 1\nmaximum: 5")
    launch(parse(str(file)))
    assert said == [{"queue": "cpu"}, 7, {"queue": "cpu"}, {"minimum": 1, "maximum": 5}]
    file.write_text("cluster: dask_jobqueue.SLURMCluster")
    with pytest.raises(EngineError, match="did not start: no queue"):
        launch(parse(str(file)))


def test_what_is_no_cluster_is_closed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[bool] = []

    class Client:
        def close(self) -> None:
            closed.append(True)

    _offered(monkeypatch, Client)
    file = tmp_path / "c.yaml"
    file.write_text("cluster: dask_jobqueue.Client")
    with pytest.raises(EngineError, match=r"dask_jobqueue\.Client of .* is no class of clusters"):
        launch(parse(str(file)))
    assert closed == [True]


def test_what_a_job_queue_refuses_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Dask asks for the workers in the background, and a client would wait for them."""
    distributed = pytest.importorskip("distributed")
    from distributed.deploy.spec import ProcessInterface

    class Job(ProcessInterface):  # type: ignore[misc]
        def __init__(self, scheduler: str, name: Any = None) -> None:
            super().__init__(scheduler, name)

        async def start(self) -> None:
            raise RuntimeError("sbatch: error:\n invalid partition specified: cpuu")

    class QueueCluster(distributed.SpecCluster):  # type: ignore[misc]
        def __init__(self) -> None:
            options = {"host": "127.0.0.1", "dashboard": False}
            scheduler = {"cls": distributed.Scheduler, "options": options}
            super().__init__(scheduler=scheduler, worker={"cls": Job})

    fake = ModuleType("dask_jobqueue")
    fake.QueueCluster = QueueCluster  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "dask_jobqueue", fake)
    file = tmp_path / "c.yaml"
    file.write_text("cluster: dask_jobqueue.QueueCluster\nworkers: 2")
    with pytest.raises(EngineError, match="did not start: sbatch: error: invalid partition specified: cpuu"):
        launch(parse(str(file)))
    assert "Traceback" not in capfd.readouterr().err


def test_a_cluster_that_grows_with_its_work_has_none_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modegap.engine.cluster.session._PATIENCE", 10.0)
    file = tmp_path / "c.yaml"
    file.write_text(
        "cluster: distributed.LocalCluster\nminimum: 0\nmaximum: 1\n"
        "options: {n_workers: 0, threads_per_worker: 1, processes: false, dashboard_address: null}\n"
    )
    with connect(str(file)) as cluster:
        assert len(cluster.ready()) == 1


def test_all_workers_are_waited_for_once(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some of a job queue may never come, and a command has many passes."""
    asked: list[int] = []
    monkeypatch.setattr(cluster._client, "wait_for_workers", lambda count, timeout: asked.append(count))
    monkeypatch.setattr(cluster, "_met", False)
    cluster.ready()
    cluster.ready()
    assert asked == [1, 2, 1]


def test_a_real_job_queue_class_makes_its_script(tmp_path: Path) -> None:
    jobqueue = pytest.importorskip("dask_jobqueue")
    file = tmp_path / "c.yaml"
    file.write_text(
        "cluster: dask_jobqueue.SLURMCluster\n"
        "options: {cores: 2, processes: 2, memory: 4GB, queue: cpu, walltime: '00:10:00',\n"
        "          scheduler_options: {dashboard_address: ':0', host: 127.0.0.1}}\n"
    )
    cluster = launch(parse(str(file)))
    try:
        assert isinstance(cluster, jobqueue.SLURMCluster)
        assert "#SBATCH -p cpu" in cluster.job_script()
    finally:
        cluster.close()


def test_gpus_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for said, found in (("0,2", ["0", "2"]), ("", []), ("-1", []), ("GPU-ab", ["GPU-ab"])):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", said)
        assert visible_gpus() == found
