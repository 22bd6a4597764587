"""The video with the faces drawn in: its times, its sound, and what becomes of half a file."""

import contextlib
import signal
from pathlib import Path

import av
import numpy as np
import pytest
from support.videos import SIZE, frames, write_video

from jclnf.errors import OutputError
from jclnf.video import Selection, open_source
from jclnf.video._overlay import write_overlay

TIMES = [0.0, 0.04, 0.08, 0.2, 0.24, 0.4, 1.4, 1.44]


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Of a video in which there was no face."""
    path = tmp_path_factory.mktemp("table") / "face.csv"
    path.write_text("frame,face_id,timestamp,confidence,success,x_0,y_0\n")
    return path


def overlay(table, clip, out, **selection):
    source = open_source(clip)
    chosen = Selection(**selection)
    write_overlay(table, source.frames(chosen), source, chosen.begin, out)
    return out


def decoded(path):
    """The stream, the times and the images, by PyAV alone."""
    with av.open(str(path)) as file:
        stream = file.streams.video[0]
        found = [(frame.time, frame.to_ndarray(format="bgr24")) for frame in file.decode(stream)]
        return stream.codec_context.name, [t for t, _ in found], [image for _, image in found]


def test_each_frame_is_shown_at_its_time(table, tmp_path):
    clip = write_video(tmp_path / "clip.mkv", frames(len(TIMES)), times=TIMES)
    codec, times, images = decoded(overlay(table, clip, tmp_path / "out.mp4"))
    assert codec == ("h264" if "libx264" in av.codecs_available else "mpeg4")
    np.testing.assert_allclose(times, TIMES, atol=1e-3)
    for image, written in zip(images, frames(len(TIMES)), strict=True):
        assert np.abs(image.astype(int) - written).mean() < 8


@pytest.mark.parametrize("rate", [1000, 7.5, 30000 / 1001])
def test_any_rate(table, tmp_path, rate):
    clip = write_video(tmp_path / "clip.mp4", frames(9), rate=rate)
    _, times, _ = decoded(overlay(table, clip, tmp_path / "out.mp4"))
    np.testing.assert_allclose(times, np.arange(9) / rate, atol=1e-4)
    with av.open(str(tmp_path / "out.mp4")) as file:
        assert abs(file.duration / 1e6 - 9 / rate) < 2e-3


def test_an_odd_size_loses_nothing(table, tmp_path):
    images = [image[:-1, :-1] for image in frames(2)]
    clip = write_video(tmp_path / "clip.avi", images)
    _, _, found = decoded(overlay(table, clip, tmp_path / "out.mp4"))
    assert found[0].shape[:2] == (SIZE[1], SIZE[0])
    assert np.abs(found[0][:-1, :-1].astype(int) - images[0]).mean() < 8


@pytest.mark.parametrize("begin", [0.0, 0.5])
def test_sound_is_kept_where_it_was(table, tmp_path, begin):
    """A tone of 0.9 s in a video of 2 s, of which the beginning may be left out."""
    clip = write_video(tmp_path / "clip.mp4", frames(50), sound=0.9)
    out = overlay(table, clip, tmp_path / "out.mp4", begin=begin)
    with av.open(str(out)) as file:
        parts = [(f.time, f.to_ndarray().mean(0), f.sample_rate) for f in file.decode(audio=0)]
    at = np.concatenate([t + np.arange(len(values)) / rate for t, values, rate in parts])
    loud = at[np.abs(np.concatenate([values for _, values, _ in parts])) > 0.3]
    assert abs(loud[-1] - (0.9 - begin)) < 0.15
    assert loud[0] < 0.15
    assert abs(decoded(out)[1][-1] - (1.96 - begin)) < 0.03


@contextlib.contextmanager
def no_file_beyond(size):
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("size", [4000, 12000])
def test_half_an_overlay_is_removed(table, tmp_path, size):
    """Where the disk has no room, in the middle or only for the end; that of before stays."""
    clip = write_video(tmp_path / "clip.mkv", frames(40))
    out = tmp_path / "out.mp4"
    out.write_bytes(b"before")
    with no_file_beyond(size), pytest.raises(OutputError, match=r"out.mp4: cannot be written"):
        overlay(table, clip, out)
    assert out.read_bytes() == b"before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip.mkv", "out.mp4"]


def test_a_name_with_a_colon_in_the_folder_itself(table, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_video(tmp_path / "clip.mp4", frames(2)).rename("10:30.mp4")
    out = overlay(table, Path("10:30.mp4"), Path("10:30_overlay.mp4"))
    assert len(decoded(tmp_path / out)[1]) == 2
