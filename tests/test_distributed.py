"""`jclnf.distributed` and `--ray`, on a local cluster of two workers with one core each."""

import contextlib
import csv
import dataclasses
import importlib.util
import json
import os
import pickle
import socket
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from support.cluster_work import Squares
from support.videos import frames, write_video

import jclnf
from jclnf.cli import main
from jclnf.distributed import _cluster, _photographs, _videos
from jclnf.distributed._sources import find_photographs
from jclnf.errors import ClusterError, ImageError, ParamsError, VideoError
from jclnf.video import Settings, process_videos

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray is not installed: pip install 'jclnf[ray]'"
)


@pytest.fixture(scope="module")
def ray():
    """Connected to the cluster, which the commands then use."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        # Workers are to find the tests' modules.
        patch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), *sys.path]))
        import ray

        ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
        yield
        ray.shutdown()


def each_here(make, arguments, items, **_):
    """The same work in this process."""
    work = make(*pickle.loads(pickle.dumps(tuple(arguments))))
    for at, item in enumerate(items):
        yield at, pickle.loads(pickle.dumps(work(pickle.loads(pickle.dumps(item)))))


@pytest.fixture(params=["here", pytest.param("cluster", marks=[pytest.mark.cluster, needs_ray])])
def somewhere(request, monkeypatch):
    """What is done by a cluster; by default all but the processes, which would compile anew."""
    if request.param == "cluster":
        request.getfixturevalue("ray")
        return
    for module in (_photographs, _videos):
        monkeypatch.setattr(module, "cluster", lambda _: contextlib.nullcontext())
        monkeypatch.setattr(module, "each", each_here)
    # Which would move the cache that the tests share.
    monkeypatch.setattr("jclnf.cli._fit_cluster.use_device", lambda _: None)


@needs_ray
@pytest.mark.cluster
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


@pytest.mark.usefixtures("somewhere")
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


SEGMENTS = Settings(segment=1.0, plot=False, pts=True)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Three seconds."""
    path = tmp_path_factory.mktemp("long") / "long.avi"
    return str(write_video(path, frames(30), rate=10))


@pytest.fixture(scope="module")
def whole(clip, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    (done,) = process_videos(SEGMENTS, [clip], out)
    assert not done.problems
    return out


class TestSegments:
    def test_each_is_a_run_of_its_own(self, clip, whole, tmp_path):
        rows = read(whole / "long.csv")
        assert [int(row["frame"]) for row in rows] == list(range(1, 31))
        assert [row["face_id"] for row in rows] == 10 * ["0"] + 10 * ["1"] + 10 * ["2"]
        alone = dataclasses.replace(SEGMENTS, segment=None, begin=1.0, end=1.95)
        (done,) = process_videos(alone, [clip], tmp_path)
        assert not done.problems
        for row, other in zip(rows[10:20], read(tmp_path / "long.csv"), strict=True):
            assert row == {**other, "face_id": "1"}
        names = {f"{n:06}_{(n - 1) // 10}.pts" for n in range(1, 31)}
        assert {path.name for path in (whole / "long_pts").iterdir()} == names

    def test_what_is_told_of_them(self, whole):
        about = json.loads((whole / "long.json").read_bytes())
        assert about["segments"] == [0.0, 1.0, 2.0]
        assert (about["frames"], about["rows"], about["rows_with_success"]) == (30, 30, 30)
        assert not (whole / ".long.segments").exists()

    @pytest.mark.usefixtures("somewhere")
    def test_a_cluster_gives_the_same_and_goes_on(self, clip, whole, tmp_path, monkeypatch):
        """Where a run ended after its second segment; those that are there are not done again."""
        out = tmp_path / "out"
        make = _videos._SegmentWorker

        class Ended(Exception):
            pass

        def ends(*arguments):
            work = make(*arguments)

            def do(job):
                if job[2] == 2:
                    raise Ended
                return work(job)

            return do

        if _videos.each is each_here:
            monkeypatch.setattr(_videos, "_SegmentWorker", ends)
            with pytest.raises(Ended):
                on_cluster(tmp_path, [clip], SEGMENTS)
            monkeypatch.setattr(_videos, "_SegmentWorker", make)
            there = {p: p.stat().st_mtime_ns for p in (out / ".long.segments").glob("*.csv")}
            assert len(there) == 2
        (done,) = on_cluster(tmp_path, [clip], SEGMENTS, resume=True)
        assert not done.problems
        if _videos.each is each_here:
            assert (out / "long.csv").read_bytes() == (whole / "long.csv").read_bytes()
        assert [row["face_id"] for row in read(out / "long.csv")][::10] == ["0", "1", "2"]
        assert not (out / ".long.segments").exists()

    @pytest.mark.parametrize("other", [{"aus": True}, {"boxes": "b.csv"}, {"segment": 0.5}])
    def test_what_cannot_be(self, other):
        with pytest.raises(ParamsError, match="segment"):
            Settings(**{"segment": 2.0, **other})


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


class TestPhotographs:
    def test_where_they_are_found(self, tmp_path):
        """In folders, in Parquet files, and through pyarrow's file systems, in stretches."""
        from pyarrow import fs

        images, _ = photographs(tmp_path)
        (tmp_path / "notes.txt").write_text("no image")
        table = str(parquet_of(tmp_path / "more.parquet", images))
        for source in (str(tmp_path), f"file://{tmp_path}"):
            found = find_photographs([source], 2, None)
            assert [len(one.paths) for one in found] == [2, 1, 1, 1]
            assert [(one.start, one.stop) for one in found[2:]] == [(0, 2), (2, 3)]
            read = [data for one in found for _, data in one.read()]
            assert read == 2 * [path.read_bytes() for path in images]
        (there,) = find_photographs(
            ["more.parquet"], 9, fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())
        )
        assert [name for name, _ in there.read()] == [f"more.parquet#{n}" for n in range(3)]
        assert [name for name, _ in find_photographs([table], 2, None)[1].read()] == [f"{table}#2"]

    def test_what_holds_none(self, tmp_path):
        from pyarrow import parquet, table

        with pytest.raises(ImageError, match="no such file"):
            find_photographs([str(tmp_path / "gone")], 2, None)
        with pytest.raises(ImageError, match="holds no images"):
            find_photographs([str(tmp_path)], 2, None)
        parquet.write_table(table({"a": [1], "b": ["x"]}), tmp_path / "n.parquet")
        with pytest.raises(ImageError, match=r"none of its columns holds bytes of images: a, b"):
            find_photographs([str(tmp_path)], 2, None)

    @pytest.mark.usefixtures("somewhere")
    def test_the_table(self, tmp_path, capsys):
        """What `jclnf fit` finds, in Parquet; what cannot be read is a row. A stretch that is
        there is left as it is, and one that is missing is done."""
        import pandas

        images, bad = photographs(tmp_path / "photos")
        there = f"file://{tmp_path}/photos"
        sources = [there, str(parquet_of(tmp_path / "p.parquet", images[:1]))]
        out = tmp_path / "out"
        assert main(["fit", *sources, "--out", str(out), "--ray", "--quiet"]) == 1
        assert capsys.readouterr().err.count(f"{there}/b.png: ") == 1
        found = pandas.read_parquet(out / "faces.parquet")
        assert [Path(name).name for name in found["image"]] == [*NAMES, "p.parquet#0"]
        assert list(found["status"].where(found["success"] != 1)[1:3]) == ["unreadable", "no_face"]
        assert list(found["success"]) == [1, 0, 0, 1]
        assert str(bad) in found["message"][1]
        assert found["x_30"].notna().tolist() == [True, False, False, True]

        assert main(["fit", str(images[0]), "--out", str(tmp_path / "plain"), "--quiet"]) == 0
        plain = pandas.read_csv(tmp_path / "plain" / "landmarks.csv")
        columns = [name for name in plain if name not in ("image", "status")]
        assert list(found)[:-1] == list(plain)
        for row in (0, 3):
            np.testing.assert_allclose(
                found.loc[row, columns].astype(float),
                plain.loc[0, columns].astype(float),
                atol=2e-3,
            )

        parts = sorted((out / "faces.parquet").glob("part-*"))
        before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in parts}
        assert len(before) == 2
        parts[1].unlink()
        asked = ["fit", *sources, "--out", str(out), "--ray", "--quiet", "--resume"]
        assert main(asked) == 1
        again = pandas.read_parquet(out / "faces.parquet")
        # Another process may have other last digits, if it compiled what the first one did not.
        pandas.testing.assert_frame_equal(again, found, check_exact=False, rtol=0, atol=1e-3)
        if _photographs.each is each_here:
            assert parts[1].read_bytes() == before[parts[1]][0]
        assert parts[0].stat().st_mtime_ns == before[parts[0]][1]
        assert main([*asked, "--one"]) == 2
        assert "other settings, or something else has changed: one" in capsys.readouterr().err

    def test_what_is_of_one_machine_only(self, tmp_path, capsys):
        asked = ["fit", "a.png", "--out", str(tmp_path / "out"), "--ray"]
        assert main([*asked, "--openface-csv"]) == 2
        assert "--openface-csv is not for --ray" in capsys.readouterr().err


NAMES = ["a.png", "b.png", "c.png"]


def photographs(folder):
    """One of a face, one that cannot be read and one without a face."""
    folder.mkdir(exist_ok=True)
    images = [folder / name for name in NAMES]
    cv2.imwrite(str(images[0]), frames(1)[0])
    images[1].write_bytes(b"no image")
    cv2.imwrite(str(images[2]), np.full((120, 160, 3), 90, np.uint8))
    return images, images[1]


def parquet_of(path, images):
    """A Parquet file as data sets of images have it."""
    from pyarrow import parquet, table

    rows = [{"bytes": image.read_bytes(), "path": image.name} for image in images]
    parquet.write_table(table({"label": [0] * len(rows), "image": rows}), path, row_group_size=2)
    return path
