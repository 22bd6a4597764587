"""Faces over frames: numbers that stay, the schedule of searches, resuming, and the reference."""

import csv
import dataclasses
from typing import Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.recordings import openface_model
from support.synthetic import Planted, planted

import jclnf
from jclnf import Tracker, TrackParams
from jclnf.errors import BoxError, ImageError, ParamsError
from jclnf.tracking import TrackState, assign, overlap
from jclnf.tracking._overlap import nearness, shows
from jclnf.video import open_source

WIDTH, SECOND = 520, 270
"""Of frames, and where the second face's image begins."""


@pytest.fixture(scope="module")
def case() -> Planted:
    return planted()


@pytest.fixture(scope="module")
def params(case: Planted) -> TrackParams:
    settings = case.model.defaults
    return TrackParams(settings, settings.replace(windows=(7, 7)))


def frame(case: Planted, *, at: int = 0, left: bool = True, right: bool = True) -> np.ndarray:
    """Two planted faces beside each other, moved to the right by some pixels; or one, or none."""
    image = np.full((case.image.shape[0], WIDTH), 128, np.uint8)
    for there, x in ((left, at), (right, SECOND + at)):
        if there:
            image[:, x : x + case.image.shape[1]] = np.rint(case.image)
    return image


def box(case: Planted, x: int = 0) -> np.ndarray:
    return case.box + [x, 0, 0, 0]


class Recorded:
    """A detector that knows the boxes, and remembers in which frames it was asked."""

    def __init__(self, *boxes: np.ndarray) -> None:
        self.boxes, self.asked, self.frame = np.array(boxes).reshape(-1, 4), [], -1

    def __call__(self, grey: np.ndarray) -> np.ndarray:
        assert grey.dtype == np.uint8
        self.asked.append(self.frame)
        return self.boxes


def off(face: jclnf.tracking.TrackedFace, case: Planted, x: int) -> float:
    return float(np.linalg.norm(face.result.landmarks - case.landmarks - [x, 0], axis=1).mean())


def test_two_faces_keep_their_numbers(case, params):
    tracker = Tracker(case.model, params)
    boxes = [box(case, SECOND), box(case)]
    for number, at in enumerate((0, 2, 4)):
        faces = tracker.step(frame(case, at=at), boxes if number == 0 else None)
        assert [face.id for face in faces] == [0, 1]
        assert all(face.success for face in faces)
        assert off(faces[0], case, SECOND + at) < 0.5
        assert off(faces[1], case, at) < 0.5
        assert [face.detected for face in faces] == [number == 0] * 2
    assert isinstance(faces[0].result.landmarks, np.ndarray)


def test_a_crop_gives_what_the_whole_frame_gives(case, params):
    images = np.stack([frame(case, at=at) for at in (0, 2, 4)])
    _, whole = jax.device_get(jclnf.track(case.model, images, box(case, SECOND), params))
    tracker = Tracker(case.model, params)
    tracker.step(images[0], box(case, SECOND))
    tracker.step(images[1])
    (face,) = tracker.step(images[2])
    np.testing.assert_allclose(face.result.landmarks, whole.landmarks[2], atol=2e-3)
    np.testing.assert_allclose(face.result.pose.matrix, whole.pose.matrix[2], atol=1e-4)


def test_colour_frames_are_seen_in_grey(case, params):
    tracker = Tracker(case.model, params)
    grey = frame(case)
    (face,) = tracker.step(cv2.cvtColor(grey, cv2.COLOR_GRAY2BGR), box(case))
    tracker.reset()
    (same,) = tracker.step(grey, box(case))
    np.testing.assert_array_equal(face.result.landmarks, same.result.landmarks)


def test_one_face_is_searched_for_as_openface_does(case, params):
    """Every 12th frame while there is none, in the 1st, 3rd, 5th, ... frame in which it is lost,
    and no more after it was given up."""
    detector = Recorded()
    tracker = Tracker(case.model, params, detector=detector, single=True, give_up_after=5)
    blank, faces = frame(case, left=False, right=False), []
    for number in range(40):
        detector.frame = number
        seen = 12 <= number < 15
        detector.boxes = np.array([box(case)]) if number == 12 else np.zeros((0, 4))
        faces.append(tracker.step(frame(case) if seen else blank))
    # Found in 12, lost from 15 on; given up in 21 as the 7th, with a search when 12 are reached.
    assert detector.asked == [0, 12, 15, 17, 19, 21, 27, 39]
    assert [len(found) for found in faces] == [0] * 12 + [1] * 9 + [0] * 19
    assert [face.success for (face,) in faces[12:21]] == [True] * 3 + [False] * 6
    assert all(face.id == 0 for (face,) in faces[12:21])


@pytest.mark.parametrize(("single", "number"), [(True, 0), (False, 1)])
def test_where_a_lost_face_is_searched_for(case, params, single, number):
    """A single face anywhere, as OpenFace does; one of several only near to where it was."""
    detector = Recorded(box(case, SECOND))
    # With nothing but the faces in the frames, one that goes and one that comes would be a cut.
    settings = {"single": single, "redetect_every": 0, "cuts": False}
    tracker = Tracker(case.model, params, detector=detector, **settings)
    tracker.step(frame(case, right=False), box(case))
    faces = {face.id: face for face in tracker.step(frame(case, left=False))}
    assert faces[number].success
    assert faces[number].detected
    assert off(faces[number], case, SECOND) < 0.5
    assert len(faces) == number + 1
    assert all(face.success == (face.id == number) for face in faces.values())


def test_further_faces_are_searched_for(case, params):
    detector = Recorded(box(case), box(case, SECOND))
    tracker = Tracker(case.model, params, detector=detector, redetect_every=3, max_faces=2)
    counts = []
    for number in range(7):
        detector.frame = number
        counts.append([f.id for f in tracker.step(frame(case, right=number > 0))])
    assert counts == [[0], [0], [0], [0, 1], [0, 1], [0, 1], [0, 1]]
    assert detector.asked == [0, 3]  # two are as many as there may be


def test_boxes_of_one_face_are_one_face(case, params):
    tracker = Tracker(case.model, params)
    boxes = [box(case), box(case) + [8, 5, -6, 0]]
    assert len(tracker.step(frame(case), boxes)) == 1
    assert len(tracker.step(frame(case), boxes)) == 1


def test_of_two_faces_on_each_other_the_one_not_seen_ends(case, params):
    tracker = Tracker(case.model, params)
    tracker.step(frame(case), [box(case), box(case, SECOND)])
    state = tracker.state()
    for name in ("translation", "boxes"):  # the first one slides onto the second
        state[name][0] = state[name][1]
    state["translation"][0, 0] += 1.0
    tracker.restore(state)
    (face,) = tracker.step(frame(case))
    assert face.id == 0  # both see it: the older number stays
    assert off(face, case, SECOND) < 0.5


@pytest.mark.parametrize(("within", "number"), [(0, 1), (10, 0)])
def test_numbers_of_faces_that_come_back(case, params, within, number):
    tracker = Tracker(case.model, params, give_up_after=0, return_within=within)
    tracker.step(frame(case), box(case))
    blank = frame(case, left=False, right=False)
    while tracker.step(blank):
        pass
    (face,) = tracker.step(frame(case), box(case))
    assert face.id == number


def test_a_restored_tracker_goes_on_exactly(case, params):
    images = [frame(case, at=at, right=at < 4) for at in range(6)]
    tracker = Tracker(case.model, params, return_within=5)
    tracker.step(images[0], [box(case), box(case, SECOND)])
    tracker.step(images[1])
    state = {name: array.copy() for name, array in tracker.state().items()}
    expected = [tracker.step(image) for image in images[2:]]
    other = Tracker(case.model, params, return_within=5)
    other.restore(state)
    for image, faces in zip(images[2:], expected, strict=True):
        again = other.step(image)
        assert [face.id for face in again] == [face.id for face in faces]
        for a, b in zip(again, faces, strict=True):
            jax.tree.map(np.testing.assert_array_equal, a.result, b.result)
    for name, array in tracker.state().items():
        np.testing.assert_array_equal(array, other.state()[name])
    with pytest.raises(ParamsError, match="state"):
        other.restore({**state, "shape": np.zeros((2, 99), np.float32)})


def test_bad_input_changes_nothing(case, params):
    tracker = Tracker(case.model, params)
    tracker.step(frame(case), box(case))
    before = tracker.state()
    with pytest.raises(ImageError, match="uint8"):
        tracker.step(np.zeros((20, 20, 3), np.float32))
    with pytest.raises(BoxError):
        tracker.step(frame(case), [[1, 2, 3]])
    with pytest.raises(BoxError):
        tracker.step(frame(case), [box(case), [-900, 0, 50, 50]])
    for name, array in before.items():
        np.testing.assert_array_equal(array, tracker.state()[name])
    with pytest.raises(ParamsError, match="redetect_every"):
        Tracker(case.model, params, redetect_every=-1)
    with pytest.raises(ParamsError, match="max_faces"):
        Tracker(case.model, params, single=True, max_faces=3)


def test_no_boxes_are_no_faces(case, params):
    tracker = Tracker(case.model, params, detector=Recorded(box(case)))
    for nothing in ([], np.zeros((0, 4)), np.zeros(0)):
        assert tracker.step(frame(case), nothing) == []
    assert tracker.detector.asked == []


class Everywhere:
    """Fits that find a face in each box, and none where it was in the frame before."""

    def __init__(self, face: jclnf.tracking.TrackedFace) -> None:
        self.face, self.result = face, jax.tree.map(jnp.asarray, face.result)

    def find(self, _: np.ndarray, box: np.ndarray) -> tuple[TrackState, jclnf.FitResult]:
        result = self.result.shifted(box[:2] - self.face.box[:2])
        return TrackState.after(result), result

    def follow(self, _: np.ndarray, state: TrackState, __: np.ndarray) -> Any:
        lost = dataclasses.replace(self.result, status=jnp.int32(jclnf.FitStatus.NOTHING_SEEN))
        return state.next(lost), lost


def test_faces_that_cross_keep_their_numbers(case, params):
    """The first face moves to where the second one was, which moves on: the nearest pair of all is
    the second face and the first one's box, and would leave the other two."""
    tracker = Tracker(case.model, params, redetect_every=0)
    (face,) = tracker.step(frame(case), box(case))
    tracker.reset()
    tracker._fits = Everywhere(face)
    side = max(face.box[2:])

    def moved(*by: float) -> list[np.ndarray]:
        return [face.box + [part * side, 0, 0, 0] for part in by]

    tracker.step(frame(case), moved(0, 0.7))
    faces = tracker.step(frame(case), moved(0.5, 1.25))
    assert [face.id for face in faces] == [0, 1]
    for found, expected in zip(faces, moved(0.5, 1.25), strict=True):
        np.testing.assert_allclose(found.box, expected, atol=1e-3)


def test_boxes():
    a, b = np.array([0.0, 0, 10, 10]), np.array([5.0, 0, 10, 10])
    assert overlap(a, b) == pytest.approx(50 / 150)
    assert overlap(a, a + [20, 0, 0, 0]) == 0
    assert nearness(a, b) == pytest.approx(0.5)
    assert nearness(a, a + [20, 0, 0, 0]) == 0
    assert shows(a, np.array([[1.0, 1], [20, 1]]))
    assert not shows(a, np.array([[1.0, 1], [20, 1], [30, 1]]))
    assert list(assign(np.array([[0.5, 0.9], [0.8, 0.85]]))) == [(0, 1), (1, 0)]
    assert list(assign(np.array([[0.5, 0.0], [0.8, 0.0]]))) == [(1, 0)]
    # The best pair of all would leave two that do not go together.
    assert assign(np.array([[0.6, 0.0], [0.9, 0.7]])) == [(0, 0), (1, 1)]
    assert assign(np.zeros((0, 3))) == assign(np.zeros((2, 2))) == []


def test_frames_of_a_clip_as_openface_has_them(shared):
    """From the parameters that OpenFace wrote for the first frame, to 0.001, to its landmarks of
    the next ones, to 0.1 px; experiments/parity_video has all frames, and the first fit."""
    frames = open_source(shared / "openface/samples/changeLighting.wmv").frames()
    with open(shared / "openface/golden_csv/changeLighting.clnf_general.csv", newline="") as f:
        first, *rows = list(csv.DictReader(f, skipinitialspace=True))[:4]
    model = openface_model(shared / "openface", "general")
    tracker = Tracker(model, TrackParams.openface(model), single=True)

    def numbers(*names: str) -> np.ndarray:
        return np.array([float(first[name]) for name in names], np.float32)

    angles = numbers("p_rx", "p_ry", "p_rz")
    tracker.restore(
        {
            **tracker.state(),
            "counters": np.array([1, 1, 0]),
            "ids": np.array([0]),
            "boxes": np.array([[202.052, 151.701, 216.971, 212.899]]),
            "seen": np.array([True]),
            "failures": np.array([0], np.int32),
            "scale": numbers("p_scale"),
            "matrix": np.asarray(jclnf.geometry.euler_to_matrix(jax.numpy.array(angles)))[None],
            "translation": numbers("p_tx", "p_ty")[None],
            "shape": numbers(*(f"p_{i}" for i in range(34)))[None],
        }
    )
    next(frames)
    for row, frame in zip(rows, frames, strict=False):
        (face,) = tracker.step(frame.image)
        expected = np.array([[float(row[f"{a}_{i}"]) for a in "xy"] for i in range(68)])
        assert np.linalg.norm(face.result.landmarks - expected, axis=1).mean() < 0.1
        assert face.success
        assert face.confidence == pytest.approx(float(row["confidence"]), abs=0.006)
        assert face.result.pose.rotation[1] == pytest.approx(float(row["p_ry"]), abs=0.003)
