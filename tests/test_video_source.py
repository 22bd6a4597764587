"""Frames of videos, folders and damaged files."""

import gc
import hashlib
import threading
import time
import wave
from fractions import Fraction

import av
import cv2
import numpy as np
import pytest
from support.videos import SIZE, frames, rotated, write_video

from jclnf.errors import VideoError
from jclnf.video._clock import Clock
from jclnf.video._numbering import frame_numbers
from jclnf.video._open import open_source
from jclnf.video._reading import Reading
from jclnf.video._source import Frame, ImageFolder, Prefetcher, Selection
from jclnf.video._video_file import VideoFile


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("clip") / "clip.avi", frames(20))


def test_frames_are_those_that_were_written(clip):
    source = open_source(clip)
    assert (source.size, source.rate, source.expected()) == (SIZE, 25.0, 20)
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


def test_what_was_decoded_is_freed_at_once(clip):
    source = open_source(clip)
    gc.collect()
    gc.disable()  # which frees circles too, but maybe a thousand frames later
    try:
        assert sum(1 for _ in source.frames()) == 20
        kinds = av.VideoFrame, av.container.InputContainer
        left = [type(thing) for thing in gc.get_objects() if issubclass(type(thing), kinds)]
    finally:
        gc.enable()
    assert left == []


@pytest.mark.parametrize(
    "selection",
    [
        Selection(begin=0.2, end=0.48),
        Selection(begin=0.21, every=3),
        Selection(start=6, begin=0.1, end=9.0, every=2),
        Selection(begin=5.0),
    ],
)
def test_as_many_frames_are_expected_as_there_are(clip, tmp_path, selection):
    for number in (1, 2, 3, 5, 6, 9, 10, 14):
        cv2.imwrite(str(tmp_path / f"{number}.png"), np.zeros((4, 4, 3), np.uint8))
    for source in (open_source(clip), open_source(tmp_path, rate=25.0)):
        assert source.expected(selection) == len(list(source.frames(selection)))


def test_rotation_in_the_metadata_is_followed(tmp_path):
    plain = write_video(tmp_path / "plain.mp4", frames(3))
    turned = open_source(rotated(plain, tmp_path / "turned.mp4"))
    assert turned.size == SIZE[::-1]
    first, upright = next(turned.frames()).image, next(open_source(plain).frames()).image
    assert np.abs(first.astype(int) - np.rot90(upright, -1)).mean() < 2


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mpeg4.mp4", {}),
        ("jpeg.avi", {}),
        ("mpeg2.ts", {"codec": "mpeg2video"}),
        ("vp8.webm", {"codec": "libvpx", "options": {"deadline": "realtime"}}),
        ("full.mkv", {"codec": "ffv1", "pixels": "yuv444p", "options": {"level": "3"}}),
        ("grey.mkv", {"codec": "ffv1", "pixels": "gray", "options": {"level": "3"}}),
    ],
)
def test_frames_are_those_of_opencv(tmp_path, name, options):
    """Byte for byte: action units depend on it."""
    clip = write_video(tmp_path / name, frames(4), **options)
    capture = cv2.VideoCapture(str(clip), cv2.CAP_FFMPEG)
    if not capture.isOpened():
        pytest.skip("this OpenCV reads no videos")
    for frame in open_source(clip).frames():
        np.testing.assert_array_equal(frame.image, capture.read()[1])


def combed(count):
    """Images of 720 x 576, every other row of which is of a later moment; and all moments'."""
    still = cv2.resize(frames(1)[0], (720, 576))
    whole = [np.roll(still, 10 * k, axis=1) for k in range(2 * count)]
    woven = [early.copy() for early in whole[::2]]
    for image, late in zip(woven, whole[1::2], strict=True):
        image[1::2] = late[1::2]
    return woven, whole


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("tape.dv", {"codec": "dvvideo"}),
        ("tape.avi", {"codec": "dvvideo"}),
        ("dvd.mpg", {"codec": "mpeg2video", "options": {"flags": "+ilme+ildct+qscale"}}),
    ],
)
def test_interlaced_video_comes_without_interlacing(tmp_path, name, options):
    woven, plain = combed(8)
    source = open_source(write_video(tmp_path / name, woven, pixels="yuv420p", **options))
    read = list(source.frames())
    assert len(read) == 8
    np.testing.assert_allclose([frame.time for frame in read], np.arange(8) / 25, atol=1e-3)
    assert source.properties["deinterlaced"]
    assert source.problems == []

    def comb(image):
        image = image.astype(int)
        return np.abs(image[1:-1] - (image[:-2] + image[2:]) / 2).mean()

    for k, (frame, before) in enumerate(zip(read, woven, strict=True)):
        image = cv2.resize(frame.image, (720, 576))
        assert comb(image) < 0.5 * comb(before)
        # Either field may be the first, by the format.
        assert min(np.abs(image.astype(int) - plain[2 * k + j]).mean() for j in (0, 1)) < 12


def test_pixels_are_square(tmp_path):
    clip = write_video(tmp_path / "wide.mp4", frames(2), aspect=Fraction(64, 45))
    source = open_source(clip)
    assert source.size == (round(SIZE[0] * 64 / 45), SIZE[1])
    assert abs(source.properties["pixel_aspect"] - 64 / 45) < 1e-5
    meant = cv2.resize(frames(1)[0], source.size, interpolation=cv2.INTER_CUBIC)
    assert np.abs(next(source.frames()).image.astype(int) - meant).mean() < 5


@pytest.mark.parametrize(
    ("matrix", "turn"),
    [
        ((0, 1, -1, 0), lambda image: np.rot90(image, -1)),
        ((-1, 0, 0, -1), lambda image: np.rot90(image, 2)),
        ((0, -1, 1, 0), lambda image: np.rot90(image, 1)),
        ((-1, 0, 0, 1), lambda image: image[:, ::-1]),
        ((0, 1, 1, 0), lambda image: image.transpose(1, 0, 2)),
    ],
)
def test_what_the_metadata_turn_is_upright(tmp_path, matrix, turn):
    plain = write_video(tmp_path / "plain.mp4", frames(1))
    turned = open_source(rotated(plain, tmp_path / "turned.mp4", matrix))
    upright = turn(next(open_source(plain).frames()).image)
    assert turned.size == upright.shape[1::-1]
    np.testing.assert_array_equal(next(turned.frames()).image, upright)


def test_frames_of_another_size_are_fitted_in_and_it_is_said(tmp_path):
    """A broadcast that turns from landscape to portrait."""
    first = write_video(tmp_path / "first.ts", frames(5), codec="mpeg2video")
    tall = [np.rot90(image).copy() for image in frames(5)]
    second = write_video(tmp_path / "second.ts", tall, codec="mpeg2video")
    clip = tmp_path / "both.ts"
    clip.write_bytes(first.read_bytes() + second.read_bytes())
    source = open_source(clip)
    read = list(source.frames())
    assert {frame.image.shape for frame in read} == {(SIZE[1], SIZE[0], 3)}
    assert sum("its size changes from 240 x 200 to 200 x 240" in p for p in source.problems) == 1
    last = read[-1].image
    width = round(200 * 200 / 240)
    left = (240 - width) // 2
    assert last[:, : left - 1].max() < 10
    inside = cv2.resize(tall[-1], (width, 200), interpolation=cv2.INTER_AREA).astype(int)
    assert np.abs(last[:, left : left + width] - inside).mean() < 8


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.mov"])
def test_time_stamps_of_a_variable_rate_are_kept(tmp_path, name):
    stamps = [0.0, 0.04, 0.08, 0.2, 0.24, 0.4, 1.4]
    source = open_source(write_video(tmp_path / name, frames(7), times=stamps))
    np.testing.assert_allclose([frame.time for frame in source.frames()], stamps, atol=1e-6)
    assert source.problems == []


@pytest.mark.parametrize("rate", [1000, 240, 30000 / 1001, 2])
def test_any_rate_is_known(tmp_path, rate):
    source = open_source(write_video(tmp_path / "a.mp4", frames(4), rate=rate))
    assert abs(source.rate - rate) < 1e-3 * rate
    np.testing.assert_allclose([f.time for f in source.frames()], np.arange(4) / rate, atol=1e-5)


@pytest.mark.parametrize("pixels", ["gray", "yuv420p10le", "gray16le", "bgr0"])
def test_other_depths_look_the_same(tmp_path, pixels):
    clip = write_video(
        tmp_path / "a.mkv", frames(2), codec="ffv1", pixels=pixels, options={"level": "3"}
    )
    image = next(open_source(clip).frames()).image
    meant = frames(1)[0]
    if "gray" in pixels:
        meant = cv2.cvtColor(cv2.cvtColor(meant, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)
    assert np.abs(image.astype(int) - meant).mean() < 4


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.mp4", {"container": {"movflags": "faststart"}}),
        ("a.mkv", {}),
        ("a.avi", {}),
        ("a.ts", {"codec": "mpeg2video"}),
        ("a.dv", {"codec": "dvvideo"}),
    ],
)
def test_a_file_cut_off_gives_what_it_has_and_says_so(tmp_path, name, options):
    size = (720, 576) if name == "a.dv" else SIZE
    clip = write_video(tmp_path / name, [cv2.resize(f, size) for f in frames(20)], **options)
    assert len(list(open_source(clip).frames())) == 20
    data = clip.read_bytes()
    clip.write_bytes(data[: len(data) * 613 // 1000])
    source = open_source(clip)
    read = list(source.frames())
    assert 5 < len(read) < 20
    assert source.problems
    assert [frame.number for frame in read] == list(range(1, len(read) + 1))


def test_a_damaged_frame_is_one_without_an_image(tmp_path):
    """The frames beside it keep their numbers and times."""
    clip = write_video(tmp_path / "a.mkv", frames(9), codec="mjpeg", pixels="yuvj420p")
    whole = list(open_source(clip).frames())
    data = bytearray(clip.read_bytes())
    at = [k for k in range(len(data) - 2) if data[k : k + 3] == b"\xff\xd8\xff"][4]
    data[at : at + 700] = bytes(700)
    clip.write_bytes(bytes(data))
    source = open_source(clip)
    read = list(source.frames())
    assert [(f.number, f.time) for f in read] == [(f.number, f.time) for f in whole]
    assert [f.number for f in read if f.image is None] == [5]
    assert source.problems == ["frame 5 cannot be decoded whole: damaged"]
    np.testing.assert_array_equal(read[5].image, whole[5].image)


def test_a_name_may_hold_a_colon(tmp_path, monkeypatch):
    write_video(tmp_path / "a.mp4", frames(1)).rename(tmp_path / "2024-05-01T10:30.mp4")
    monkeypatch.chdir(tmp_path)
    assert open_source("2024-05-01T10:30.mp4").size == SIZE


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
        (headless, "headless.mp4", r"cut off.*: copy it again, or export it as MP4"),
        (sound, "sound.wav", r"sound only.*: copy it again, or export it as MP4"),
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
    def test_images_are_in_the_order_of_their_numbers(self, tmp_path):
        for number in (10, 9, 1, 2):
            cv2.imwrite(str(tmp_path / f"frame{number}.png"), np.full((8, 9, 3), number, np.uint8))
        (tmp_path / "notes.txt").write_text("no image")
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

    def test_a_damaged_image_is_a_frame_without_one(self, tmp_path):
        for number in range(3):
            cv2.imwrite(str(tmp_path / f"{number}.png"), np.zeros((8, 9, 3), np.uint8))
        (tmp_path / "1.png").write_bytes(b"\x89PNG\r\n")
        cv2.imwrite(str(tmp_path / "3.png"), np.zeros((8, 10, 3), np.uint8))
        source = ImageFolder(tmp_path, 25.0)
        assert [f.image is None for f in source.frames()] == [False, True, False, True]
        assert "1.png" in source.problems[0]
        assert "3.png is not 9 x 8" in source.problems[1]

    def test_a_folder_without_images_is_refused(self, tmp_path):
        with pytest.raises(VideoError, match="none of its 0 images"):
            open_source(tmp_path)


def test_frames_are_those_of_the_recordings(shared, tmp_path):
    """Byte for byte, also as images of a folder, some of which are black; descriptors of the face
    depend on it."""
    folder = shared / "openface"
    default = [frame.image for frame in open_source(folder / "samples/default.wmv").frames()]
    black = np.zeros_like(default[0])
    made = {
        "failclip": [black] * 5 + default[60:100] + [black] * 7 + default[150:180],
        "short5": default[200:205],
    }
    found = {"default": default}
    for name, images in made.items():
        (tmp_path / name).mkdir()
        for number, image in enumerate(images):
            file = str(tmp_path / name / f"{number:03}.png")
            cv2.imwrite(file, image, [cv2.IMWRITE_PNG_COMPRESSION, 1])
        found[name] = [frame.image for frame in open_source(tmp_path / name).frames()]
    lighting = open_source(folder / "samples/changeLighting.wmv")
    found["changeLighting"] = [frame.image for frame in lighting.frames()]
    compared = {}
    for name, images in found.items():
        expected = np.load(folder / f"au/video_dyn_{name}.npz")["frame_md5"].tolist()
        assert len(images) == len(expected)
        for image, digest in zip(images, expected, strict=True):
            if digest:  # not recorded where no face was followed
                assert hashlib.md5(image.tobytes()).hexdigest() == digest
                compared[name] = compared.get(name, 0) + 1
    assert compared == {"default": 288, "failclip": 62, "short5": 5, "changeLighting": 88}


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


UNEVEN = [k / 25 + (k % 3) / 100 for k in range(40)]


class TestSelection:
    @pytest.mark.parametrize(
        ("name", "options"),
        [
            ("a.mp4", {"options": {"bf": "2", "g": "7"}}),
            (
                "a.mkv",
                {"options": {"g": "7"}, "times": UNEVEN},
            ),
            ("a.ts", {"codec": "mpeg2video", "options": {"bf": "2", "g": "9"}}),
            ("a.avi", {}),
            ("a.dv", {"codec": "dvvideo"}),
        ],
    )
    def test_what_is_passed_over_changes_nothing(self, tmp_path, name, options):
        images = combed(12)[0] if name == "a.dv" else frames(40)
        clip = write_video(tmp_path / name, images, **options)
        source = open_source(clip)
        whole = list(source.frames())
        for begin in (whole[-1].time / 2, whole[-3].time, whole[1].time):
            part = list(source.frames(Selection(begin=begin)))
            rest = [frame for frame in whole if frame.time >= begin]
            assert [(f.number, f.time) for f in part] == [(f.number, f.time) for f in rest]
            for one, other in zip(part, rest, strict=True):
                np.testing.assert_array_equal(one.image, other.image)
        assert list(source.frames(Selection(begin=99.0))) == []

    @pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
    def test_it_is_passed_over(self, tmp_path, name):
        """Decoding begins at the last key frame before."""
        clip = write_video(tmp_path / name, frames(40), options={"g": "7"})
        first = open_source(clip)._first
        passed, time = Reading(clip).skip(first, 1.2, 25.0)
        assert (passed, round(25 * time)) == (30, 29)
        decoded = []
        reading = Reading(clip)
        real = reading._decoded
        reading._decoded = lambda packets: real(p for p in packets if decoded.append(p) or True)
        reading.skip(first, 1.2, 25.0)
        assert len(decoded) < 15

    def test_every_so_many(self, clip):
        source = open_source(clip)
        chosen = Selection(begin=0.2, end=0.6, every=3)
        assert [frame.number for frame in source.frames(chosen)] == [7, 10, 13, 16]


class TestClock:
    STEP = 0.04

    def times(self, stamps, step=STEP):
        clock = Clock(step, 0.001)
        found = [time for time, _ in clock.times((stamp, None) for stamp in stamps)]
        assert all(np.diff(found) > 0)
        return found, clock.problems

    @pytest.mark.parametrize("at", [0, 1, 5, 11])
    @pytest.mark.parametrize("wrong", [-90000, 3, 777, 90000, None])
    def test_one_wrong_time_stamp_moves_no_other(self, at, wrong):
        stamps = [1000 + 40 * k for k in range(12)]
        found, _ = self.times([wrong if k == at else stamp for k, stamp in enumerate(stamps)])
        meant = np.arange(12) * self.STEP
        first, last = at == 0 and wrong in (-90000, 3, 777), at == 11 and wrong == 90000
        if not first and not last:  # which may be gaps
            np.testing.assert_allclose(found, meant, atol=1e-6)

    def test_gaps_and_changes_of_rate_are_no_faults(self):
        stamps = [0, 40, 80, 5000, 5001, 5002, 5100, 9000]
        found, problems = self.times(stamps)
        np.testing.assert_allclose(found, np.array(stamps) / 1000, atol=1e-9)
        assert problems == []

    def test_stamps_too_coarse_for_the_rate_are_no_fault(self):
        found, problems = self.times([k // 3 for k in range(30)], 1 / 3000)
        np.testing.assert_allclose(found, np.arange(30) / 3000, atol=1.1e-3)
        assert problems == []

    def test_a_clock_that_is_set_back_goes_on(self):
        found, problems = self.times([40 * k for k in (0, 1, 2, 0, 1, 2, 3)])
        np.testing.assert_allclose(found, np.arange(7) * self.STEP, atol=1e-6)
        assert "go back" in problems[0]

    def test_without_time_stamps_the_rate_counts(self):
        found, problems = self.times([None] * 5)
        np.testing.assert_allclose(found, np.arange(5) * self.STEP)
        assert problems == []
