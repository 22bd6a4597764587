"""Frames of videos, folders and damaged files."""

import threading
import time
import wave

import cv2
import numpy as np
import pytest
from support.videos import SIZE, frames, rotated, write_video

from jclnf.errors import VideoError
from jclnf.video._numbering import frame_numbers
from jclnf.video._open import open_source
from jclnf.video._source import Frame, ImageFolder, Prefetcher, Selection
from jclnf.video._video_file import VideoFile


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("clip") / "clip.avi", frames(20))


def test_frames_are_those_that_were_written(clip):
    source = open_source(clip)
    assert (source.size, source.rate, source.count) == (SIZE, 25.0, 20)
    read = list(source.frames())
    assert [frame.number for frame in read] == list(range(1, 21))
    np.testing.assert_allclose([frame.time for frame in read], np.arange(20) / 25, atol=1e-6)
    for frame, written in zip(read, frames(20), strict=True):
        assert np.abs(frame.image.astype(int) - written).mean() < 6  # JPEG
    assert source.problems == []


def test_reading_goes_on_at_a_frame(clip):
    whole = list(open_source(clip).frames())
    rest = list(open_source(clip).frames(Selection(start=14)))
    assert [(f.number, f.time) for f in rest] == [(f.number, f.time) for f in whole[13:]]
    np.testing.assert_array_equal(rest[0].image, whole[13].image)


def test_rotation_in_the_metadata_is_followed(tmp_path):
    plain = write_video(tmp_path / "plain.mp4", frames(3))
    turned = open_source(rotated(plain, tmp_path / "turned.mp4"))
    assert turned.size == SIZE[::-1]
    first, upright = next(turned.frames()).image, next(open_source(plain).frames()).image
    assert np.abs(first.astype(int) - np.rot90(upright, -1)).mean() < 2


def test_time_stamps_of_a_variable_rate_are_kept(tmp_path):
    """Frames of a Matroska file, a part of which was written at half the rate."""
    pyav = pytest.importorskip("av", reason="needs PyAV to write a variable frame rate")
    path = tmp_path / "variable.mkv"
    with pyav.open(str(path), "w") as out:
        stream = out.add_stream("mpeg4", rate=1000)
        stream.width, stream.height = SIZE
        stamps = [0, 40, 80, 200, 240, 400]
        for stamp, picture in zip(stamps, frames(6), strict=True):
            frame = pyav.VideoFrame.from_ndarray(picture, format="bgr24")
            frame.pts = stamp
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    read = list(open_source(path).frames())
    np.testing.assert_allclose([frame.time for frame in read], np.array(stamps) / 1000, atol=2e-3)


def test_a_file_cut_off_gives_what_it_has_and_says_so(clip, tmp_path):
    cut = tmp_path / "cut.avi"
    data = clip.read_bytes()
    cut.write_bytes(data[: len(data) // 2])
    source = open_source(cut)
    read = list(source.frames())
    assert 5 < len(read) < 15
    assert any("ends early" in problem for problem in source.problems)


def nothing(path):
    return path


def empty(path):
    path.write_bytes(b"")
    return path


def text(path):
    path.write_text("#EXTM3U\nhttp://127.0.0.1:1/a.ts\n")
    return path


def headless(path):
    write_video(path, frames(3))
    path.write_bytes(path.read_bytes()[:2000])
    return path


def sound(path):
    with wave.open(str(path), "wb") as out:
        out.setparams((1, 2, 8000, 0, "NONE", ""))
        out.writeframes(bytes(16000))
    return path


@pytest.mark.parametrize(
    ("make", "name", "says"),
    [
        (nothing, "missing.mp4", "no such file"),
        (empty, "empty.mp4", "empty"),
        (text, "list.mp4", "no video"),
        (headless, "headless.mp4", "cut off"),
        (sound, "sound.wav", "sound only"),
    ],
)
def test_what_is_no_video_is_refused_in_a_line(tmp_path, make, name, says):
    path = make(tmp_path / name)
    with pytest.raises(VideoError, match=says) as raised:
        open_source(path)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_name_with_a_pattern_is_one_file(tmp_path):
    for number in range(3):
        cv2.imwrite(str(tmp_path / f"frame{number}.png"), frames(1)[0])
    with pytest.raises(VideoError, match="no such file"):
        VideoFile(tmp_path / "frame%d.png")


class TestImageFolder:
    def test_pictures_are_in_the_order_of_their_numbers(self, tmp_path):
        for number in (10, 9, 1, 2):
            cv2.imwrite(str(tmp_path / f"frame{number}.png"), np.full((8, 9, 3), number, np.uint8))
        (tmp_path / "notes.txt").write_text("no picture")
        source = open_source(tmp_path, rate=10.0)
        read = list(source.frames())
        assert [int(frame.image[0, 0, 0]) for frame in read] == [1, 2, 9, 10]
        assert [frame.number for frame in read] == [1, 2, 9, 10]
        assert [frame.time for frame in read] == [0.0, 0.1, 0.8, 0.9]
        assert [f.number for f in source.frames(Selection(start=9))] == [9, 10]

    @pytest.mark.parametrize(
        ("names", "numbers"),
        [
            (["0.png", "1.png", "3.png"], [1, 2, 4]),
            (["c1_f0010.jpg", "c1_f0020.jpg", "c1_f0050.jpg", "c1_f0060.jpg"], [1, 2, 5, 6]),
            (["t1033.png", "t1066.png", "t1101.png"], [1, 2, 3]),  # time stamps
            (["a1.png", "b2.png", "b7.png"], [1, 2, 3]),
            (["1_1.png", "2_5.png"], [1, 2]),
            (["1.jpg", "1.png", "3.png"], [1, 2, 3]),
            (["only7.png"], [1]),
        ],
    )
    def test_numbers_that_are_left_out_are_gaps(self, names, numbers):
        assert frame_numbers(names) == numbers

    def test_a_damaged_picture_is_a_frame_without_one(self, tmp_path):
        for number in range(3):
            cv2.imwrite(str(tmp_path / f"{number}.png"), np.zeros((8, 9, 3), np.uint8))
        (tmp_path / "1.png").write_bytes(b"\x89PNG\r\n")
        cv2.imwrite(str(tmp_path / "3.png"), np.zeros((8, 10, 3), np.uint8))
        source = ImageFolder(tmp_path, 25.0)
        assert [f.image is None for f in source.frames()] == [False, True, False, True]
        assert "1.png" in source.problems[0]
        assert "3.png is not 9 x 8" in source.problems[1]

    def test_a_folder_without_pictures_is_refused(self, tmp_path):
        with pytest.raises(VideoError, match="none of its 0 images"):
            open_source(tmp_path)


class TestPrefetcher:
    def test_it_is_the_same_frames_and_its_thread_ends(self):
        made = [Frame(k, k / 25, None) for k in range(1, 50)]
        before = threading.active_count()
        with Prefetcher(iter(made), 4) as read:
            assert list(read) == made
        assert threading.active_count() == before

    def test_no_more_is_read_than_is_asked_for(self):
        asked = []

        def endless():
            for k in range(1, 10**6):
                asked.append(k)
                yield Frame(k, 0.0, None)

        with Prefetcher(endless(), 4) as read:
            next(read)
            time.sleep(0.3)
            assert len(asked) <= 7
        assert len(asked) <= 8

    def test_errors_come_where_frames_are_used(self):
        def broken():
            yield Frame(1, 0.0, None)
            raise VideoError("it broke")

        with Prefetcher(broken()) as read:
            assert next(read).number == 1
            with pytest.raises(VideoError, match="it broke"):
                next(read)
