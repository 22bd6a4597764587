"""`jclnf video`: tables, what is made of them, and going on after a stop."""

import contextlib
import csv
import dataclasses
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import jax
import numpy as np
import pandas
import pyarrow.csv
import pytest
import skimage.data
from pyarrow import parquet
from support.videos import SIZE, frames, write_video

import jclnf
from jclnf.annotations._pts import read_pts
from jclnf.cli import main
from jclnf.openface import OpenFaceTable
from jclnf.outputs import RECORD, locked, outputs_in
from jclnf.runtime import _progress
from jclnf.tracking import OneEuro
from jclnf.video import Settings, find_videos, open_source, process_videos
from jclnf.video import _derived as derived
from jclnf.video import _run as run_module
from jclnf.video import _source as source
from jclnf.video._aligned import MILLIMETRES, aligned_face
from jclnf.video._checkpoint import Checkpoint
from jclnf.video._derived import rows_of
from jclnf.video._source import Frame

MODES = 40
"""Of the bundled model."""
COUNT = 40


def read(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file, skipinitialspace=True))


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("clip") / "face.avi", frames(COUNT))


@pytest.fixture(scope="module")
def whole(clip, tmp_path_factory):
    """A run that nothing disturbed, with everything that can be had."""
    out = tmp_path_factory.mktemp("whole")
    asked = ["--parquet", "--smooth", "one-euro", "--overlay", "--pts", "--aligned", "64"]
    assert main(["video", str(clip), "--out", str(out), "--quiet", *asked]) == 0
    return out


class TestTable:
    def test_its_rows_are_what_a_tracker_finds(self, clip, whole):
        rows = read(whole / "face.csv")
        assert [int(row["frame"]) for row in rows] == list(range(1, COUNT + 1))
        assert {row["face_id"] for row in rows} == {"0"}
        assert {row["success"] for row in rows} == {"1"}
        assert list(rows[0]) == OpenFaceTable(68, MODES, video=True, gaze=False, cut=True).columns
        tracker = jclnf.Tracker(jclnf.load_model(), detector=jclnf.detect.default())
        capture = cv2.VideoCapture(str(clip))
        for row in rows[:5]:
            (face,) = tracker.step(capture.read()[1])
            found = [[float(row[f"{axis}_{i}"]) for axis in "xy"] for i in range(68)]
            np.testing.assert_allclose(found, face.result.landmarks, atol=0.051)
            assert abs(float(row["confidence"]) - face.confidence) < 0.0051
            assert abs(float(row["p_ry"]) - face.result.pose.rotation[1]) < 6e-4

    def test_it_follows_the_face(self, whole):
        x = np.array([float(row["x_30"]) for row in read(whole / "face.csv")])
        moved = np.array([round(20 + 12 * np.sin(k / 4)) for k in range(COUNT)])
        assert np.abs((x - x.mean()) - (moved - moved.mean())).max() < 2.0

    def test_times_are_those_of_the_file(self, whole):
        times = [float(row["timestamp"]) for row in read(whole / "face.csv")]
        np.testing.assert_allclose(times, np.arange(COUNT) / 25, atol=6e-4)

    def test_a_cut_has_a_column(self, tmp_path):
        """As in the metadata; there is none in OpenFace's table, and none is looked for in frames
        far apart."""
        astronaut = np.full((SIZE[1], SIZE[0], 3), 90, np.uint8)
        part = np.ascontiguousarray(skimage.data.astronaut()[:300, 80:380, ::-1])
        astronaut[:, 20:220] = cv2.resize(part, (200, 200), interpolation=cv2.INTER_AREA)
        clip = write_video(tmp_path / "two.avi", [*frames(4), *[astronaut] * 2])
        command = ["video", str(clip), "--out", str(tmp_path), "--no-plot", "--quiet"]

        assert main([*command, "--parquet", "--smooth", "one-euro"]) == 0
        table = pandas.read_csv(tmp_path / "two.csv")
        assert table["frame"].tolist() == [1, 2, 3, 4, 5, 6]
        assert table["cut"].tolist() == [0, 0, 0, 0, 1, 0]
        assert table["face_id"].tolist() == [0, 0, 0, 0, 1, 1]
        assert json.loads((tmp_path / "two.json").read_text())["cuts"] == [5]
        stored = parquet.read_table(tmp_path / "two.parquet")["cut"]
        assert (stored.type, stored.to_pylist()) == ("int8", table["cut"].tolist())
        smoothed = pandas.read_csv(tmp_path / "two_smoothed.csv")
        assert smoothed["cut"].tolist() == table["cut"].tolist()

        assert main([*command, "--every", "4"]) == 0
        assert pandas.read_csv(tmp_path / "two.csv")["cut"].isna().all()
        assert main([*command, "--openface-csv", "--to", "0"]) == 0
        names = list(pandas.read_csv(tmp_path / "two.csv"))
        assert names == OpenFaceTable(68, MODES, video=True, gaze=False).columns


class TestWhatIsMadeOfIt:
    def test_metadata(self, whole, clip):
        data = json.loads((whole / "face.json").read_text())
        assert (data["frames"], data["rows"], data["rows_with_success"]) == (COUNT, COUNT, COUNT)
        assert data["size"] == list(SIZE)
        assert data["source"] == str(clip)
        assert data["settings"]["detector"] == "jclnf"
        assert data["problems"] == []
        assert data["camera"] == jclnf.space.Camera.assumed(*SIZE).numbers
        assert not (whole / "face.checkpoint").exists()

    def test_parquet_is_the_table(self, whole):
        table = parquet.read_table(whole / "face.parquet").to_pydict()
        rows = read(whole / "face.csv")
        assert list(table) == list(rows[0])
        for name in ("frame", "timestamp", "y_8", "pose_Tz"):
            np.testing.assert_allclose(table[name], [float(row[name]) for row in rows], rtol=1e-6)

    def test_smoothed_is_the_filter_of_the_table(self, whole):
        rows, smoothed = read(whole / "face.csv"), read(whole / "face_smoothed.csv")
        names = list(rows[0])[6:]
        face = OneEuro()
        for row, other in zip(rows, smoothed, strict=True):
            values = face.step(float(row["timestamp"]), np.array([float(row[n]) for n in names]))
            found = np.array([float(other[n]) for n in names])
            assert np.abs(found - values).max() <= 0.051
            assert row["frame"] == other["frame"]

    def test_smoothed_keeps_all_digits_where_the_table_has_them(self, clip, tmp_path):
        """From a first row on without any: that of a frame in which there is no face."""
        boxes = tmp_path / "boxes.csv"
        boxes.write_text("frame,x,y,w,h\n2,72,46,95,100\n")
        asked = ["--boxes", str(boxes), "--one", "--to", "0.2", "--no-plot", "--quiet"]
        asked += ["--full-precision", "--smooth", "one-euro"]
        assert main(["video", str(clip), "--out", str(tmp_path), *asked]) == 0
        rows, smoothed = read(tmp_path / "face.csv"), read(tmp_path / "face_smoothed.csv")
        assert [row["success"] for row in rows[:2]] == ["0", "1"]
        face = OneEuro()
        for row, other in zip(rows[1:], smoothed[1:], strict=True):
            value = face.step(float(row["timestamp"]), np.array([float(row["p_rx"])]))
            np.testing.assert_allclose(float(other["p_rx"]), value, rtol=1e-8)

    def test_overlay_shows_the_frames_with_something_drawn(self, whole):
        capture = cv2.VideoCapture(str(whole / "face_overlay.mp4"))
        for written in frames(3):
            shown = capture.read()[1].astype(int)
            assert shown.shape == written.shape
            apart = np.abs(shown - written).max(-1)
            assert np.median(apart) < 12
            assert 0.01 < np.mean(apart > 60) < 0.2

    def test_overlay_shows_what_was_asked_for(self, clip, tmp_path):
        asked = ["--overlay", "--no-plot", "--quiet", "--from", "0.35", "--to", "0.5"]
        assert main(["video", str(clip), "--out", str(tmp_path), *asked]) == 0
        numbers = [int(row["frame"]) for row in read(tmp_path / "face.csv")]
        assert numbers == [10, 11, 12, 13]
        capture = cv2.VideoCapture(str(tmp_path / "face_overlay.mp4"))
        for number in numbers:
            apart = np.abs(capture.read()[1].astype(int) - frames(number)[-1]).max(-1)
            assert np.median(apart) < 12
        assert not capture.read()[0]

    def test_pts_count_from_one(self, whole):
        file = whole / "face_pts" / "000007_0.pts"
        row = read(whole / "face.csv")[6]
        x, y = (float(v) for v in file.read_text().splitlines()[3 + 30].split())
        assert abs(x - 1 - float(row["x_30"])) < 0.06
        assert abs(y - 1 - float(row["y_30"])) < 0.06
        cv2.imwrite(str(file.with_suffix(".png")), frames(1)[0])
        try:
            ((_, face),) = read_pts(file)
            assert face.landmarks.shape == (68, 2)
        finally:
            file.with_suffix(".png").unlink()

    def test_aligned_images_show_landmarks_where_the_mean_shape_has_them(self, whole):
        mean = np.asarray(jclnf.load_model().pdm.mean)
        turn = np.deg2rad(20)
        points = 1.7 * mean[:, :2] @ [[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]]
        points += 200
        image = np.zeros((400, 400), np.uint8)
        for x, y in np.rint(points[[36, 45, 8, 30]]).astype(int):
            cv2.circle(image, (x, y), 2, 255, -1)
        found = aligned_face(image, points, mean, 200)
        expected = 200 / MILLIMETRES * (mean - mean.mean(0))[:, :2] + 99.5
        for index in (36, 45, 8, 30):
            x, y = np.rint(expected[index]).astype(int)
            assert found[y - 1 : y + 2, x - 1 : x + 2].max() > 120
        assert len(list((whole / "face_aligned").glob("*.png"))) == COUNT


def ended(group: int, *, within: float) -> bool:
    """Whether no process of a group is left after so many seconds at most."""
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


class TestResume:
    def test_a_killed_run_ends_as_one_that_was_not(self, clip, whole, tmp_path):
        """Killed twice at moments that depend on the machine; what counts is the end."""
        asked = ["--parquet", "--smooth", "one-euro", "--overlay", "--pts", "--aligned", "64"]
        command = [sys.executable, "-m", "jclnf", "video", str(clip), "--out", str(tmp_path)]
        command += ["--quiet", "--resume", "--checkpoint-every", "0", *asked]
        for _ in range(2):
            process = subprocess.Popen(command)
            deadline = time.monotonic() + 120
            checkpoint = tmp_path / "face.checkpoint"
            while not checkpoint.exists() and time.monotonic() < deadline:
                if process.poll() is not None:
                    break
                time.sleep(0.01)
            process.send_signal(signal.SIGKILL)
            process.wait()
        assert main(command[3:]) == 0
        names = sorted(p.relative_to(whole) for p in whole.rglob("*") if p.is_file())
        assert names == sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*") if p.is_file())
        for name in names:
            if name.suffix != ".json":
                assert (whole / name).read_bytes() == (tmp_path / name).read_bytes(), name

    def test_a_run_from_its_checkpoint_continues(self, clip, whole, tmp_path):
        """Ended after the first chunk, by what is told after each frame."""
        from jclnf.video import Settings, load
        from jclnf.video._run import Run
        from jclnf.video._settings import CHUNK

        settings = Settings()
        model = load(settings)

        def run():
            return Run(settings, model, open_source(clip), tmp_path, "face")

        class Stopped(Exception):
            pass

        def stop(frame, _):
            if frame.number == CHUNK + 3:
                raise Stopped
            return True

        with pytest.raises(Stopped):
            run().perform(resume=False, every=0.0, on_frame=stop)
        assert len(read(tmp_path / "face.csv")) == CHUNK
        with (tmp_path / "face.csv").open("a") as file:
            file.write("half a line")
        seen = []
        counts = run().perform(
            resume=True, on_frame=lambda frame, _: seen.append(frame.number) or True
        )
        assert seen == list(range(CHUNK + 1, COUNT + 1))
        assert counts.frames == COUNT
        assert (tmp_path / "face.csv").read_bytes() == (whole / "face.csv").read_bytes()

    def test_a_table_that_another_run_is_writing_is_left_alone(self, clip, tmp_path, capsys):
        command = ["video", str(clip), "--out", str(tmp_path), "--quiet", "--no-plot", "--to"]
        assert main([*command, "0.1"]) == 0
        before = (tmp_path / "face.csv").read_bytes()
        with locked(tmp_path / "face.csv"):
            assert main([*command, "0.2"]) == 1
        assert f"face.csv: is being written by process {os.getpid()}" in capsys.readouterr().err
        assert (tmp_path / "face.csv").read_bytes() == before

    @pytest.mark.slow
    @pytest.mark.skipif(sys.platform == "win32", reason="process groups")
    def test_workers_end_with_the_process_that_began_them(self, tmp_path):
        folder = tmp_path / "videos"
        folder.mkdir()
        for name in ("a.avi", "b.avi"):
            write_video(folder / name, 10 * frames(30))
        command = [sys.executable, "-m", "jclnf", "video", str(folder), "--out", str(tmp_path)]
        command += ["--quiet", "--workers", "2", "--checkpoint-every", "0"]
        process = subprocess.Popen(command, start_new_session=True)
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob("*.checkpoint")) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.kill()
        process.wait()
        assert ended(process.pid, within=30.0)
        assert not (tmp_path / "a.json").exists()

    @pytest.mark.slow
    @pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="asks Linux for children")
    def test_a_killed_worker_takes_no_other_video_with_it(self, tmp_path):
        folder = tmp_path / "videos"
        folder.mkdir()
        for name in ("a.avi", "b.avi", "c.avi"):
            write_video(folder / name, 20 * frames(30) if name == "a.avi" else frames(5))
        command = [sys.executable, "-m", "jclnf", "video", str(folder), "--out", str(tmp_path)]
        command += ["--quiet", "--no-plot", "--one", "--workers", "2", "--checkpoint-every", "0"]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 120
        while not (tmp_path / "a.checkpoint").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(holder(process.pid, tmp_path / "a.csv"), signal.SIGKILL)
        _, err = process.communicate(timeout=120)
        assert process.returncode == 1
        lines = [line for line in err.splitlines() if "ended by the system" in line]
        assert len(lines) == 1
        assert "a.avi" in lines[0]
        assert not (tmp_path / "a.json").exists()
        assert (tmp_path / "b.json").exists()
        assert (tmp_path / "c.json").exists()

    def test_another_runs_checkpoint_is_refused(self, tmp_path):
        file = tmp_path / "x.checkpoint"
        one = {"--from": 0.0, "--plot": True, "--focal": (500.0, 510.0), "the video": "ab"}
        Checkpoint(file, one).save({"a": np.arange(3)}, {"frame": 7})
        arrays, numbers = Checkpoint(file, one).load()
        assert (arrays["a"].tolist(), numbers) == ([0, 1, 2], {"frame": 7})
        two = one | {"--from": 2.5, "--focal": None, "the video": "cd"}
        with pytest.raises(jclnf.JclnfError, match="other settings") as raised:
            Checkpoint(file, two).load()
        differing = "--focal (500.0,510.0 there, not given now), --from (0.0 there, 2.5 now)"
        assert f"{differing}, the video: give the same" in str(raised.value)
        file.write_bytes(file.read_bytes()[:50])
        with pytest.raises(jclnf.JclnfError, match="is damaged"):
            Checkpoint(file, one).load()

    def test_nothing_is_left_of_files_that_a_killed_run_was_writing(self, clip, whole, capsys):
        left = [".face.part.png", ".face.png.lock", "face_aligned/.000003_0.part.png"]
        left += ["face.checkpoint", ".face.part.checkpoint", ".face_overlay.part.mp4"]
        for name in left:
            (whole / name).write_bytes(b"half")
        (whole / ".other.part.png").write_bytes(b"half")
        asked = ["--parquet", "--smooth", "one-euro", "--overlay", "--pts", "--aligned", "64"]
        assert main(["video", str(clip), "--out", str(whole), "--resume", *asked]) == 0
        assert "complete already" in capsys.readouterr().out
        assert [name for name in left if (whole / name).exists()] == []
        (whole / ".other.part.png").unlink()

    def test_what_another_run_left_does_not_mix_with_this_ones(self, clip, tmp_path, capsys):
        """Images of frames that are not used now; boxes that have changed since."""
        boxes = tmp_path / "boxes.csv"
        boxes.write_text("frame,x,y,w,h\n1,72,46,95,100\n")
        asked = ["--boxes", str(boxes), "--pts", "--no-plot", "--quiet", "--to"]
        command = ["video", str(clip), "--out", str(tmp_path), *asked]
        assert main([*command, "0.2"]) == 0
        assert main([*command, "0.1"]) == 0
        names = sorted(path.name for path in (tmp_path / "face_pts").iterdir())
        assert names == [f"00000{number}_0.pts" for number in (1, 2, 3)]
        boxes.write_text("frame,x,y,w,h\n1,73,46,95,100\n")
        before = sorted(path.name for path in tmp_path.iterdir())
        (tmp_path / ".face.part.csv").write_bytes(b"half")  # killed before its first checkpoint
        (tmp_path / ".face_pts.part").mkdir()
        assert main([*command, "0.1", "--resume"]) == 1
        assert "has changed: the boxes: give the same" in capsys.readouterr().err
        assert sorted(path.name for path in tmp_path.iterdir()) == before

    def test_a_complete_run_is_left_alone(self, clip, whole, capsys):
        before = (whole / "face.csv").stat().st_mtime_ns
        asked = ["--parquet", "--smooth", "one-euro", "--overlay", "--pts", "--aligned", "64"]
        assert main(["video", str(clip), "--out", str(whole), "--resume", *asked]) == 0
        assert "complete already" in capsys.readouterr().out
        assert (whole / "face.csv").stat().st_mtime_ns == before
        assert main(["video", str(clip), "--out", str(whole), "--resume", "--quiet"]) == 1
        assert "--smooth (one-euro there, not given now)" in capsys.readouterr().err

    def test_results_of_before_stay_until_there_are_new_ones(self, clip, tmp_path, capsys):
        out, boxes = tmp_path / "out", tmp_path / "boxes.csv"
        command = ["video", str(clip), "--out", str(out), "--quiet", "--pts", "--overlay"]
        assert main([*command, "--to", "0.2"]) == 0

        def contents():
            files = (path for path in out.rglob("*") if path.is_file() and path.suffix != ".lock")
            return {str(path.relative_to(out)): path.read_bytes() for path in files}

        before = contents()
        boxes.write_text("frame,x,y,w,h\n1000,72,46,95,100\n1001,72,46,95,100\n")
        for more, says in (
            (["--from", "99"], "face.avi: --from 99 lies beyond its end"),
            (["--boxes", str(boxes)], "no face was found; "),
        ):
            assert main([*command, *more]) == 1
            assert says in capsys.readouterr().err
            assert contents() == before
        process = subprocess.Popen(
            [sys.executable, "-m", "jclnf", *command, "--checkpoint-every", "0"]
        )
        deadline = time.monotonic() + 120
        part = out / ".face.part.csv"
        while time.monotonic() < deadline and process.poll() is None:
            if part.exists() and part.stat().st_size > 20_000:
                break
            time.sleep(0.01)
        process.kill()
        process.wait()
        found = contents()
        assert ".face.part.csv" in found
        assert {name: found[name] for name in before} == before
        assert main([*command, "--to", "0.3", "--resume"]) == 1
        assert "--to (not given there, 0.3 now): give the same" in capsys.readouterr().err
        assert main([*command, "--to", "0.2", "--resume"]) == 0  # is complete
        assert contents() == found
        assert main([*command, "--resume"]) == 0
        assert set(contents()) - set(before) == {
            f"face_pts/{number:06d}_0.pts" for number in range(7, COUNT + 1)
        }
        assert len(read(out / "face.csv")) == COUNT

    def test_a_video_of_the_same_name_gets_another(self, clip, tmp_path, capsys):
        """Also in a run of its own, and again when it goes on."""
        (tmp_path / "b").mkdir()
        other = tmp_path / "b" / "face.avi"
        write_video(other, frames(5))
        asked = ["--out", str(tmp_path), "--no-plot", "--to", "0.1"]
        for path, stem in ((clip, "face"), (other, "face_2"), (other, "face_2"), (clip, "face")):
            assert main(["video", str(path), *asked]) == 0
            assert f"with success, in {tmp_path / stem}.csv\n" in capsys.readouterr().out
        assert main(["video", str(other), str(clip), *asked, "--resume"]) == 0
        assert capsys.readouterr().out.count("complete already") == 2

    def test_another_device_is_named(self, clip, tmp_path, capsys, monkeypatch):
        asked = ["video", str(clip), "--out", str(tmp_path), "--no-plot", "--to", "0.1"]
        assert main(asked) == 0
        platform = json.loads((tmp_path / "face.json").read_text())["device"]["platform"]
        assert platform == jax.default_backend()
        monkeypatch.setattr(run_module, "device_report", lambda: {"platform": "abacus"})
        assert main([*asked, "--resume"]) == 1
        assert "the device" in capsys.readouterr().err


class TestCommand:
    def test_ctrl_c_says_how_to_go_on(self, clip, tmp_path, capsys, monkeypatch):
        """And so it does: the table is that of a run that was not interrupted."""
        real = jclnf.Tracker.step
        seen = []

        def step(self, frame, boxes=None):
            seen.append(frame)
            if len(seen) == 36:
                raise KeyboardInterrupt
            return real(self, frame, boxes)

        monkeypatch.setattr(jclnf.Tracker, "step", step)
        asked = ["video", str(clip), "--out", str(tmp_path), "--no-plot", "--quiet"]
        assert main([*asked, "--checkpoint-every", "0"]) == 130
        err = capsys.readouterr().err
        assert err == "jclnf: interrupted: the same command goes on from here with --resume\n"
        assert main([*asked, "--resume"]) == 0
        assert len(seen) == 36 + COUNT - 32
        rows = read(tmp_path / "face.csv")
        assert [int(row["frame"]) for row in rows] == list(range(1, COUNT + 1))

    def test_a_name_that_is_not_there_is_told_its_nearest(self, clip, tmp_path, capsys):
        wrong = str(clip.with_name("fcae.avi"))
        assert main(["video", wrong, "--out", str(tmp_path)]) == 1
        err = capsys.readouterr().err
        assert err == f"jclnf: {wrong}: no such file; did you mean face.avi?\n"

    def test_without_a_terminal_it_says_how_far_it_is(self, clip, tmp_path, capsys, monkeypatch):
        monkeypatch.setattr(_progress, "LINES_EVERY", 0.0)
        asked = ["video", str(clip), "--out", str(tmp_path), "--no-plot", "--to", "0.3"]
        assert main(asked) == 0
        lines = capsys.readouterr().out.splitlines()
        assert "face: 8 of 8 frames" in lines[-2]
        assert "8 frames, 8 rows" in lines[-1]

    def test_every_third_frame_between_two_times(self, clip, tmp_path, capsys, monkeypatch):
        monkeypatch.setattr(_progress, "LINES_EVERY", 0.0)
        asked = ["video", str(clip), "--out", str(tmp_path), "--no-plot", "--overlay"]
        assert main([*asked, "--every", "3", "--from", "0.3", "--to", "0.9"]) == 0
        rows = read(tmp_path / "face.csv")
        assert [int(row["frame"]) for row in rows] == [10, 13, 16, 19, 22]
        times = [float(row["timestamp"]) for row in rows]
        np.testing.assert_allclose(times, [0.36, 0.48, 0.60, 0.72, 0.84])
        assert {row["success"] for row in rows} == {"1"}
        assert "face: 5 of 5 frames" in capsys.readouterr().out
        drawn = list(open_source(tmp_path / "face_overlay.mp4").frames())
        np.testing.assert_allclose([f.time for f in drawn], np.arange(5) * 0.12, atol=1e-3)
        assert main([*asked, "--every", "0"]) == 2
        assert "every: at least 1, not 0" in capsys.readouterr().err

    def test_what_is_not_used_is_named(self, clip, tmp_path, capsys):
        folder = tmp_path / "videos"
        (folder / "deep").mkdir(parents=True)
        (folder / "link").symlink_to(tmp_path)
        (folder / "MOV001").write_bytes(clip.read_bytes())
        (folder / "notes.txt").write_text("no video")
        cv2.imwrite(str(folder / "deep" / "a.png"), frames(1)[0])
        boxes = tmp_path / "boxes.csv"
        lines = ["MOV001,1,72,46,95,100", "MOV001,99,72,46,95,100", "gone.mp4,1,1,1,1,1"]
        boxes.write_text("\n".join(["video,frame,x,y,w,h", *lines]))
        asked = ["--out", str(tmp_path / "out"), "--no-plot", "--boxes", str(boxes), "--rate", "9"]
        assert main(["video", str(folder), *asked]) == 1
        err = capsys.readouterr().err
        (left,) = (line for line in err.splitlines() if "left out" in line)
        image = Path("deep", "a.png")
        reasons = f"no videos: notes.txt; images beside videos: {image}; links to folders: link"
        assert left == f"jclnf: {folder}: 3 left out ({reasons})"
        for says in (
            "its rows for 1 other videos are not used: gone.mp4",
            "MOV001: --rate is for folders of images",
            "has boxes in frames that it does not have: 99",
        ):
            assert says in err

    def test_folders_within_a_folder(self, tmp_path):
        """Their videos are taken, or else the images of each; nothing that jclnf has written."""
        for name in ("p1", "p2/left", "out/face_aligned"):
            (tmp_path / name).mkdir(parents=True)
        for name in ("p1/1.png", "p1/2.png", "p2/left/7.png", "out/face.png"):
            cv2.imwrite(str(tmp_path / "image.png"), np.zeros((4, 4, 3), np.uint8))
            (tmp_path / "image.png").rename(tmp_path / name)
        (tmp_path / "out/face_aligned/000001_0.png").write_bytes(b"")
        names = ("face.png", "face_aligned", "face_overlay.mp4")
        record = {"outputs": {name: ["video", "", ""] for name in names}}
        (tmp_path / "out" / RECORD).write_text(json.dumps(record))
        found = find_videos([str(tmp_path)])
        assert found.files == [str(tmp_path / "p1"), str(tmp_path / "p2/left")]
        (tmp_path / "out/face_overlay.mp4").write_bytes(b"")
        (tmp_path / "p2/b.mp4").write_bytes(b"")
        found = find_videos([str(tmp_path)])
        assert found.files == [str(tmp_path / "p2/b.mp4")]
        assert found.problems == []

    @pytest.mark.parametrize("workers", [1, 2])
    def test_without_its_model_nothing_is_made(self, clip, tmp_path, capsys, workers):
        other = tmp_path / "other.avi"
        other.write_bytes(clip.read_bytes())
        asked = ["--model", "gone", "--workers", str(workers), "--out", str(tmp_path / "out")]
        assert main(["video", str(clip), str(other), *asked]) == 2
        err = capsys.readouterr().err
        assert "gone" in err
        assert err.count("\n") == 1
        assert list(tmp_path.iterdir()) == [other]

    def test_one_failure_does_not_stop_the_others(self, clip, tmp_path, capsys):
        folder = tmp_path / "videos"
        folder.mkdir()
        (folder / "a.mp4").write_bytes(b"")
        (folder / "b.avi").write_bytes(clip.read_bytes())
        (folder / "notes.txt").write_text("no video")
        out = tmp_path / "out"
        asked = ["--one", "--to", "0.3", "--no-plot", "--full-precision"]
        assert main(["video", str(folder), "--out", str(out), *asked]) == 1
        captured = capsys.readouterr()
        assert "a.mp4: the file is empty" in captured.err
        assert "8 frames, 8 rows, 100.0 % with success" in captured.out
        rows = read(out / "b.csv")
        assert len(rows) == 8
        assert len(rows[3]["x_4"].replace(".", "")) > 6

    def test_what_nobody_expected_does_not_stop_the_others(
        self, clip, tmp_path, capsys, monkeypatch
    ):
        first = tmp_path / "a.avi"
        first.write_bytes(clip.read_bytes())
        real = jclnf.Tracker.step

        def step(self, frame, boxes=None):
            if first.exists():
                first.unlink()
                raise cv2.error("of all things")
            return real(self, frame, boxes)

        monkeypatch.setattr(jclnf.Tracker, "step", step)
        asked = ["--to", "0.1", "--no-plot", "--out", str(tmp_path)]
        assert main(["video", str(first), str(clip), *asked]) == 1
        captured = capsys.readouterr()
        assert "a.avi: stopped by an error in jclnf: error('of all things')" in captured.err
        assert captured.err.count("\n") == 1
        assert "3 frames" in captured.out

    def test_a_camera_is_recorded_until_ctrl_c(self, tmp_path, capsys, monkeypatch):
        class FakeCamera:
            name, size, rate = "camera7", SIZE, 25.0

            def __init__(self, _number):
                self.problems = []

            def expected(self, _selection):
                return None

            def frames(self, _selection):
                for number, image in enumerate(itertools.cycle(frames(3)), 1):
                    if number == 5:
                        os.kill(os.getpid(), signal.SIGINT)
                    yield Frame(number, number / 25, image)

        monkeypatch.setattr(source, "Camera", FakeCamera)
        before = signal.getsignal(signal.SIGINT)
        asked = ["--out", str(tmp_path), "--no-plot", "--quiet"]
        assert main(["video", "7", *asked]) == 0
        assert signal.getsignal(signal.SIGINT) is before
        data = json.loads((tmp_path / "camera7.json").read_text())
        assert data["frames"] == len(read(tmp_path / "camera7.csv")) > 0
        assert main(["video", "7", *asked, "--overlay"]) == 2
        assert "camera" in capsys.readouterr().err

    def test_a_source_is_not_written_over(self, clip, tmp_path, capsys):
        for name in ("a.avi", "a_overlay.mp4"):
            (tmp_path / name).write_bytes(clip.read_bytes())
        (tmp_path / "a_overlay.csv").write_text("frame,x,y,w,h\n1,72,46,95,100\n")
        mine = {path: path.read_bytes() for path in tmp_path.iterdir()}
        command = ["video", str(tmp_path), "--out", str(tmp_path), "--overlay", "--no-plot"]
        command += ["--to", "0.1", "--boxes", str(tmp_path / "a_overlay.csv")]
        for _ in range(2):  # what the first run has written are no inputs of the second
            assert main(command) == 0
            captured = capsys.readouterr()
            assert captured.out.count("3 frames, 3 rows") == 2
            made = {"a_2.csv", "a_2_overlay.mp4", "a_overlay_2.csv", "a_overlay_2_overlay.mp4"}
            made |= {"a_2.json", "a_overlay_2.json", ".jclnf.json"}
            assert {path.name for path in tmp_path.iterdir()} == made | {p.name for p in mine}
            assert {path: path.read_bytes() for path in mine} == mine
        assert "written by jclnf: a_2_overlay.mp4, a_overlay_2_overlay.mp4" in captured.err

    def test_frames_without_a_face_are_rows_too(self, tmp_path, capsys):
        """Of which pandas and pyarrow know that nothing was measured, or as OpenFace has it."""
        for number in range(3):
            image = np.full((120, 160, 3), 128, np.uint8)
            cv2.imwrite(str(tmp_path / f"{number}.png"), image)
        (tmp_path / "1.png").write_bytes(b"no image")
        out = tmp_path / "out"

        def table(*options):
            command = ["video", str(tmp_path), "--out", str(out), "--no-plot", *options]
            assert main(command) == 1
            assert "no face was found" in capsys.readouterr().err
            return pandas.read_csv(out / f"{tmp_path.name}.csv")

        rows = table("--parquet")
        assert rows["frame"].tolist() == [1, 2, 3]
        assert rows["success"].tolist() == [0, 0, 0]
        assert rows["cut"].tolist() == [0, 0, 0]
        assert rows.drop(columns=["frame", "timestamp", "success", "cut"]).isna().all(axis=None)
        stored = parquet.read_table(out / f"{tmp_path.name}.parquet")
        arrow = pyarrow.csv.read_csv(out / f"{tmp_path.name}.csv")
        for read_back in (stored, arrow):
            assert read_back.column("success").to_pylist() == [0, 0, 0]
            assert read_back.column("x_0").null_count == read_back.column("face_id").null_count == 3
        data = json.loads((out / f"{tmp_path.name}.json").read_text())
        assert data["unreadable_frames"] == [2]
        assert data["frames_without_face"] == 3
        assert "1.png" in data["problems"][0]

        assert table("--one")["face_id"].tolist() == [0, 0, 0]
        assert len(table("--no-empty-rows")) == 0
        assert len(table("--openface-csv")) == 0
        rows = table("--openface-csv", "--one", "--csv-spaces")
        assert rows[" success"].tolist() == [0, 0, 0]
        assert (rows.drop(columns=["frame", " timestamp"]) == 0).all(axis=None)

    def test_a_lost_face_has_no_numbers(self, clip, whole, tmp_path, monkeypatch):
        """In the table and in what is made of it; but in OpenFace's form."""
        lost = range(11, 15)
        real = jclnf.Tracker.step
        numbers = itertools.count(1)

        def step(self, frame, boxes=None):
            number = next(numbers)
            faces = real(self, frame, boxes)
            if number not in lost:
                return faces
            return [dataclasses.replace(face, success=False, confidence=0.125) for face in faces]

        monkeypatch.setattr(jclnf.Tracker, "step", step)
        asked = ["--to", "0.9", "--quiet", "--smooth", "one-euro", "--parquet", "--overlay"]
        assert main(["video", str(clip), "--out", str(tmp_path), *asked]) == 0
        undisturbed = read(whole / "face.csv")
        rows = read(tmp_path / "face.csv")
        smoothed = read(tmp_path / "face_smoothed.csv")
        table = parquet.read_table(tmp_path / "face.parquet").to_pylist()
        frame = pandas.read_csv(tmp_path / "face.csv")
        assert frame["x_30"].isna().sum() == frame["p_33"].isna().sum() == len(lost)
        for row, smooth, stored, before in zip(rows, smoothed, table, undisturbed, strict=False):
            if int(row["frame"]) in lost:
                head = [row["face_id"], row["confidence"], row["success"]]
                assert head == ["0", "0.12", "0"]
                assert {row[name] for name in list(row)[6:]} == {""}
                assert smooth == row
                assert stored["confidence"] == pytest.approx(0.12)
                assert {stored[name] for name in list(row)[6:]} == {None}
            else:
                assert row == before
                assert "" not in smooth.values()
        # Behind the gap the filter begins anew.
        assert smoothed[14] == rows[14]
        assert smoothed[15] != rows[15]

        numbers = itertools.count(1)
        out = tmp_path / "openface"
        asked = ["--to", "0.9", "--quiet", "--no-plot", "--openface-csv"]
        assert main(["video", str(clip), "--out", str(out), *asked]) == 0
        for row, before in zip(read(out / "face.csv"), undisturbed, strict=False):
            if int(row["frame"]) in lost:
                assert (row["success"], row["confidence"]) == ("0", "0.12")
                row |= {name: before[name] for name in ("success", "confidence")}
            assert row | {"cut": "0"} == before
            assert "cut" not in row

    def test_the_plot_has_gaps_where_nothing_was_measured(self, tmp_path):
        (tmp_path / "a.csv").write_text(
            "frame,face_id,timestamp,confidence,success,pose_Rx,pose_Tz,y_62,y_66\n"
            "1,0,0.0,0.9,1,0.1,500,20,22\n2,0,0.1,0.1,0,,,,\n3,,0.2,,0,,,,\n"
            "4,0,0.3,,1,0.2,501,20,23\n"
        )
        (found,) = derived._series(tmp_path / "a.csv").values()
        nan = np.nan
        np.testing.assert_allclose(found["timestamp"], [0.0, 0.1, 0.3])
        np.testing.assert_allclose(found["confidence"], [0.9, 0.1, nan])
        np.testing.assert_allclose(found["pose_Rx"], np.degrees([0.1, nan, 0.2]))
        np.testing.assert_allclose(found["mouth opening"], [2, nan, 3])

    def test_frames_on_their_own_agree_with_following(self, clip, whole, tmp_path):
        asked = ["--independent", "--no-plot", "--quiet", "--to", "0.3"]
        assert main(["video", str(clip), "--out", str(tmp_path), *asked]) == 0
        alone, followed = read(tmp_path / "face.csv"), read(whole / "face.csv")
        assert {row["face_id"] for row in alone} == {"0"}
        for a, b in zip(alone, followed, strict=False):
            points = [[[float(r[f"{c}_{i}"]) for c in "xy"] for i in range(68)] for r in (a, b)]
            apart = np.linalg.norm(np.subtract(*points), axis=1)
            assert apart.mean() < 3.0  # of a face of 110 px

    def test_from_python(self, clip, whole, tmp_path):
        """The same table, by the name of the same model; and what is seen on the way."""
        seen = []
        found = find_videos([str(clip), str(clip.parent), str(tmp_path)])
        assert found.files == [str(clip)]
        assert found.problems == [f"{tmp_path}: no videos and no images in this folder"]
        assert found.notes == []
        (result,) = process_videos(
            Settings(model="default", plot=False),
            found.files,
            tmp_path,
            on_start=lambda source, done, total: seen.append((source.name, done, total)),
            on_frame=lambda frame, _: seen.append(frame.number) or True,
        )
        assert result.problems == []
        assert seen == [("face", 0, COUNT), *range(1, COUNT + 1)]
        assert {"face.csv", "face.json"} <= set(outputs_in(tmp_path))
        assert (tmp_path / "face.csv").read_bytes() == (whole / "face.csv").read_bytes()

    @pytest.mark.parametrize(
        ("options", "says"),
        [
            (["--smooth", "kalman"], "no smoothing"),
            (["--detector", "nothing"], "no detector"),
            (["--focal", "1,2,3"], "one or two numbers"),
            (["--focal=-5"], "focal lengths"),
            (["--boxes", "missing.csv"], "missing.csv"),
            (["--faces", "0"], "at least 1"),
            (["--aligned", "7"], "8 to 4096"),
            (["--independent", "--boxes", "b.csv"], "use a detector"),
            (["--workers", "0"], "at least 1"),
        ],
    )
    def test_wrong_options_are_said_in_a_line(self, clip, tmp_path, capsys, options, says):
        assert main(["video", str(clip), "--out", str(tmp_path), "--quiet", *options]) in (1, 2)
        err = capsys.readouterr().err
        assert says in err
        assert err.count("\n") == 1

    def test_given_boxes_begin_the_face(self, clip, tmp_path):
        boxes = tmp_path / "boxes.csv"
        with boxes.open("w") as file:
            file.write("frame,x,y,w,h\n5,72,46,95,100\n")
        asked = ["--boxes", str(boxes), "--no-plot", "--quiet"]
        assert main(["video", str(clip), "--out", str(tmp_path), *asked]) == 0
        rows = read(tmp_path / "face.csv")
        assert [row["success"] for row in rows] == 4 * ["0"] + (COUNT - 4) * ["1"]
        assert [row["face_id"] for row in rows[:5]] == ["", "", "", "", "0"]


def holder(parent: int, file: Path) -> int:
    """The child process that has a file open."""
    children = Path(f"/proc/{parent}/task").glob("*/children")
    pids = [int(pid) for one in children for pid in one.read_text().split()]
    for pid in pids:
        for fd in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed since it was listed
                if Path(os.readlink(fd)) == file:
                    return pid
    raise AssertionError(f"none of {pids} has {file}")


class TestOneEuro:
    def test_against_the_filter_written_out(self, rng):
        times = np.cumsum(rng.uniform(0.01, 0.1, 30))
        values = np.cumsum(rng.normal(size=30))
        face = OneEuro(1.3, 0.4, 0.8)
        found = [float(face.step(t, np.array([v]))[0]) for t, v in zip(times, values, strict=True)]
        x, dx, expected = values[0], 0.0, [values[0]]
        for k in range(1, 30):
            step = times[k] - times[k - 1]

            def alpha(cutoff, step=step):
                tau = 1 / (2 * np.pi * cutoff)
                return 1 / (1 + tau / step)

            a = alpha(0.8)
            dx = a * (values[k] - x) / step + (1 - a) * dx
            a = alpha(1.3 + 0.4 * abs(dx))
            x = a * values[k] + (1 - a) * x
            expected.append(x)
        np.testing.assert_allclose(found, expected, rtol=1e-12)

    def test_a_gap_begins_anew(self):
        face = OneEuro()
        face.step(0.0, np.array([1.0, 1.0]))
        face.step(0.1, np.array([np.nan, 2.0]))
        assert face.step(0.2, np.array([5.0, 2.0]))[0] == 5.0
        face.reset()
        assert face.step(0.3, np.array([9.0, 9.0])).tolist() == [9.0, 9.0]

    def test_numbers_that_cannot_be(self):
        with pytest.raises(jclnf.errors.ParamsError, match="one-euro"):
            OneEuro(-1.0)


def test_rows_are_read_as_they_were_written(whole):
    names, row = next(rows_of(whole / "face.csv"))
    assert names[:3] == ["frame", "face_id", "timestamp"]
    assert row[0] == "1"
