"""A local cluster of two workers with one core each: `jclnf.distributed` and `--ray`."""

import csv
import importlib.util
import os
import socket
import sys
from pathlib import Path

import numpy as np
import pytest
from support.cluster_work import Squares
from support.videos import frames, write_video

import jclnf
from jclnf.cli import main
from jclnf.distributed import _cluster
from jclnf.errors import ClusterError, ParamsError, VideoError
from jclnf.video import Settings, process_videos

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray is not installed: pip install 'jclnf[ray]'"
)


@pytest.fixture(scope="module")
def ray():
    """Connected to the cluster, which the commands then use."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        # Workers are to find this module.
        path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
        patch.setenv("PYTHONPATH", path)
        import ray

        ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
        yield
        ray.shutdown()


@needs_ray
@pytest.mark.slow
@pytest.mark.usefixtures("ray")
def test_work_whose_process_is_killed_is_begun_again(tmp_path):
    """A few times; all other work is done once, by processes of one thread each."""
    tries = _cluster.TRIES
    done = dict(_cluster.each(Squares, (tmp_path, {1: 1, 3: tries}), range(5)))
    assert done == {0: 0, 1: 1, 2: 4, 3: None, 4: 16}
    notes = {int(path.name): path.read_text() for path in tmp_path.iterdir()}
    assert notes == {n: "1\n" * {1: 2, 3: tries}.get(n, 1) for n in range(5)}


def read(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@needs_ray
@pytest.mark.slow
@pytest.mark.usefixtures("ray")
def test_videos(tmp_path, capsys, monkeypatch):
    """The tables are those of a run without a cluster, and what cannot be read is a row."""
    monkeypatch.chdir(tmp_path)
    videos = tmp_path / "videos"
    videos.mkdir()
    for name, count in (("a.avi", 12), ("c.avi", 6)):
        write_video(videos / name, frames(count))
    (videos / "b.mp4").write_bytes(b"no video at all")
    asked = ["video", "videos", "--out", "out", "--no-plot", "--ray"]
    assert main(asked) == 1
    said = capsys.readouterr()
    assert "videos/b.mp4: cannot be decoded" in said.err
    assert "videos/a.avi: 12 frames, 12 rows, 100.0 % with success, in out/a.csv" in said.out
    report = read(tmp_path / "out" / "report.csv")
    assert [(Path(row["video"]).name, row["status"], row["rows"]) for row in report] == [
        ("a.avi", "done", "12"),
        ("b.mp4", "failed", ""),
        ("c.avi", "done", "6"),
    ]
    assert "cannot be decoded" in report[1]["problems"]

    names = [str(videos / name) for name in ("a.avi", "c.avi")]
    plain = tmp_path / "plain"
    for done in process_videos(Settings(plot=False), names, plain):
        assert not done.problems
        stem = Path(done.path).stem
        ours, theirs = (read(folder / f"{stem}.csv") for folder in (tmp_path / "out", plain))
        assert [row["frame"] for row in ours] == [row["frame"] for row in theirs]
        for one, other in zip(ours, theirs, strict=True):
            points = [[float(row[f"x_{i}"]) for i in range(68)] for row in (one, other)]
            np.testing.assert_allclose(*points, atol=0.11)  # one of the last digit


def on_cluster(tmp_path, paths=("a.avi",), settings=None, **options):
    settings = Settings() if settings is None else settings
    return list(
        jclnf.distributed.process_videos(settings, list(paths), tmp_path / "out", **options)
    )


class TestErrors:
    """A line, before anything is written."""

    @pytest.fixture(autouse=True)
    def _nothing_is_written(self, tmp_path):
        yield
        assert not (tmp_path / "out").exists()

    def test_without_ray(self, monkeypatch, tmp_path, capsys):
        monkeypatch.setitem(sys.modules, "ray", None)
        clip = write_video(tmp_path / "a.avi", frames(2))
        assert main(["video", str(clip), "--out", str(tmp_path / "out"), "--ray"]) == 2
        err = capsys.readouterr().err
        assert "pip install 'jclnf[ray]'" in err
        assert err.count("\n") == 1

    def test_a_camera(self, tmp_path):
        with pytest.raises(VideoError, match="camera 0"):
            on_cluster(tmp_path, ["0"])

    @needs_ray
    @pytest.mark.parametrize("address", ["videos/", "host:", "10.0.0.1:many"])
    def test_what_is_no_address(self, tmp_path, monkeypatch, address):
        monkeypatch.setattr("ray.is_initialized", lambda: False)
        with pytest.raises(ClusterError, match="HOST:PORT or auto"):
            on_cluster(tmp_path, address=address)

    @needs_ray
    def test_nobody_answers(self, tmp_path, monkeypatch):
        monkeypatch.setattr("ray.is_initialized", lambda: False)
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(ClusterError, match=f"no Ray cluster at {address}: Connection refused"):
            on_cluster(tmp_path, address=address)

    @pytest.mark.parametrize(
        ("device", "there", "match"),
        [
            ("gpu", {"CPU": 4.0}, "no GPU"),
            ("0", {"CPU": 4.0, "GPU": 1.0}, "cpu or gpu"),
            (None, {}, "no processor cores"),
        ],
    )
    def test_devices_that_the_cluster_has_not(self, device, there, match):
        with pytest.raises(ParamsError, match=match):
            _cluster._devices(there, device)


def test_a_process_for_each_device():
    there = {"CPU": 8.0, "GPU": 2.0}
    assert _cluster._devices(there, None) == (True, 2)
    assert _cluster._devices(there, "cpu") == (False, 8)
    assert _cluster._devices({"CPU": 8.0}, None) == (False, 8)
