"""Cuts are noticed, and nothing else is taken for one."""

import csv
from pathlib import Path

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.synthetic import planted

import jclnf
from jclnf import FitResult, Tracker
from jclnf.tracking import Scenes, TrackState, tracked_face
from jclnf.video._fitters import IndependentFitter

HEIGHT, WIDTH, BOX = 120, 160, np.array([50.0, 30.0, 60.0, 60.0])


def scene(seed: int) -> np.ndarray:
    """An image with detail of all sizes, as photographs have it."""
    rng = np.random.default_rng(seed)
    image = np.zeros((HEIGHT, WIDTH), np.float32)
    for sigma in (2, 5, 12):
        layer = cv2.GaussianBlur(rng.normal(size=(HEIGHT, WIDTH)).astype(np.float32), (0, 0), sigma)
        image += layer / layer.std()
    return np.clip(128 + 25 * image, 0, 255)


def lit(image: np.ndarray, kind: str) -> np.ndarray:
    x = np.linspace(0, 1, WIDTH)[None]
    changed = {
        "brighter": image * 1.3,
        "dark": image * 0.1,
        "gamma": 255 * (image / 255) ** 0.5,
        "a lamp from the left": image * (1.4 - 1.1 * x),
        "a flash": 0 * image + 255,
        "half a flash": image * 2.2,
        "black": 0 * image,
        "noise": image + np.random.default_rng(0).normal(0, 15, image.shape),
    }
    return np.rint(np.clip(changed[kind], 0, 255)).astype(np.uint8)


def grey(image: np.ndarray) -> np.ndarray:
    return np.rint(image).astype(np.uint8)


class Still:
    """Fits that see a face in each box, where it is, but in frames of one level."""

    def __init__(self, result: FitResult) -> None:
        self.result = jax.tree.map(jnp.asarray, result)
        self.at = tracked_face(0, result, detected=True).box

    def find(self, _: np.ndarray, box: np.ndarray) -> tuple[TrackState, FitResult]:
        result = self.result.shifted(box[:2] - self.at[:2])
        return TrackState.after(result), result

    def follow(self, image: np.ndarray, state: TrackState, box: np.ndarray) -> object:
        _, result = self.find(image, box)
        lost = jnp.int32(jclnf.FitStatus.NOTHING_SEEN)
        status = result.status if image.std() > 1 else lost
        result = jclnf.FitResult(**{**vars(result), "status": status})
        return state.next(result), result


@pytest.fixture(scope="module")
def fitted():
    case = planted()
    (face,) = Tracker(case.model).step(np.rint(case.image).astype(np.uint8), case.box)
    assert face.success
    return case.model, face.result


@pytest.fixture
def tracker(fitted) -> Tracker:
    model, result = fitted
    tracker = Tracker(model)
    tracker._fits = Still(result)
    return tracker


def test_thirty_cuts_between_two_people_in_one_place(tracker):
    tracker.step(grey(scene(0)), BOX)
    number = 0
    for cut in range(1, 31):
        for repeated in range(3):
            (face,) = tracker.step(grey(scene(cut)))
            number += repeated == 0
            assert (face.id, tracker.cut) == (number, repeated == 0)
            assert face.success


@pytest.mark.parametrize(
    "kind",
    [
        "brighter",
        "dark",
        "gamma",
        "a lamp from the left",
        "a flash",
        "half a flash",
        "black",
        "noise",
    ],
)
def test_light_is_no_cut(tracker, kind):
    tracker.step(grey(scene(1)), BOX)
    for image in (lit(scene(1), kind), lit(scene(1), kind), grey(scene(1))):
        (face,) = tracker.step(image)
        assert (face.id, tracker.cut) == (0, False)
    assert face.success


def test_what_moves_is_no_cut(tracker):
    """A head before a background that stands still, and a face that stands still before a pan."""
    behind, other, face = scene(2), scene(3), scene(4)[:60, :60]
    for number, (background, x) in enumerate(((behind, 50), (behind, 62), (other, 62))):
        image = background.copy()
        image[30:90, x : x + 60] = face
        tracker._scenes.look(grey(image))
        assert not tracker._scenes.is_other(0, grey(image), BOX + [x - 50, 0, 0, 0])
        assert (tracker._scenes.likeness < 0.75) == (number == 2)


def test_faces_that_are_not_in_the_next_scene_end(tracker):
    """Where nothing is seen after a cut; and the numbers of before are not given again."""
    tracker.return_within = 100
    tracker.step(grey(scene(5)), BOX)
    find = tracker._fits.follow
    lost = np.full((HEIGHT, WIDTH), 128, np.uint8)
    tracker._fits.follow = lambda _, state, box: find(lost, state, box)
    assert tracker.step(grey(scene(6))) == []
    assert tracker.cut
    (face,) = tracker.step(grey(scene(6)), BOX)
    assert (face.id, tracker.cut) == (1, False)


def test_a_single_face_is_followed_as_openface_does(fitted):
    model, result = fitted
    tracker = Tracker(model, single=True)
    tracker._fits = Still(result)
    tracker.step(grey(scene(7)), BOX)
    (face,) = tracker.step(grey(scene(8)))
    assert (face.id, tracker.cut) == (0, True)


def test_a_restored_tracker_notices_the_cut(tracker, fitted):
    tracker.step(grey(scene(0)), BOX)
    other = Tracker(fitted[0])
    other._fits = tracker._fits
    other.restore(tracker.state())
    (face,) = other.step(grey(scene(1)))
    assert (face.id, other.cut) == (1, True)


def test_independent_fits_keep_the_number_of_a_still_face(fitted):
    """Over frames without it, for a second or so; and not beyond a cut."""
    model, result = fitted
    at = tracked_face(0, result, detected=True).box
    face, gap = result.shifted(BOX[:2] - at[:2]), IndependentFitter.WITHIN
    fitter = IndependentFitter(model, None, lambda _: [], None)

    def number(image: np.ndarray, faces: list[FitResult]) -> list[int]:
        return [found.id for found in fitter._numbered(image, faces)]

    still, other = grey(scene(0)), grey(scene(1))
    assert number(still, [face]) == [0]
    for missing, expected in ((1, 0), (gap - 1, 0), (gap, 1)):
        for _ in range(missing):
            assert number(still, []) == []
        restored = IndependentFitter(model, None, lambda _: [], None)
        restored.restore(fitter.state())
        fitter = restored
        assert number(still, [face]) == [expected]
    assert not fitter.cut
    assert number(other, [face]) == [2]
    assert fitter.cut


def recorded(shared: Path, name: str):
    """Frames of a clip with the landmarks that OpenFace has recorded."""
    with open(shared / f"openface/golden_csv/{name}.clnf_general.csv", newline="") as file:
        rows = {int(row["frame"]): row for row in csv.DictReader(file, skipinitialspace=True)}
    ending = "mp4" if name.startswith("subj") else "wmv"
    video = cv2.VideoCapture(str(shared / f"openface/samples/{name}.{ending}"))
    for number in range(1, max(rows) + 1):
        ok, frame = video.read()
        if ok and (row := rows.get(number)) and row["success"] == "1":
            points = [[float(row[f"{axis}_{i}"]) for axis in "xy"] for i in range(68)]
            yield cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY), np.array(points)


def around(points: np.ndarray) -> np.ndarray:
    return np.concatenate([points.min(0), np.ptp(points, axis=0)])


@pytest.mark.parametrize("name", ["default", "changeLighting", "subj01_timepoint01"])
def test_no_cut_in_recorded_clips(shared, name):
    scenes, frames = Scenes(), 0
    for image, points in recorded(shared, name):
        scenes.look(image)
        assert not scenes.is_other(0, image, around(points))
        assert scenes.likeness > 0.9
        frames += 1
    assert frames > 80


def test_cuts_between_photographs(shared):
    """Two people in the same place before one background; also those of a video that is small."""
    folder = shared / "photographs"
    if not folder.is_dir():
        pytest.skip("needs the photographs")
    with open(folder / "landmarks.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "test"][:31]
    scenes, cuts = Scenes(), 0
    for row in rows:
        path = folder / row["image"]
        path = path if path.exists() else folder / "images" / row["image"]
        points = np.array([[float(row[f"{axis}_{i}"]) for axis in "xy"] for i in range(68)])
        x, y, w, h = around(points)
        k = 100 / w
        matrix = np.array([[k, 0, 160 - k * (x + w / 2)], [0, k, 120 - k * (y + h / 2)]])
        image = np.full((240, 320), 128, np.uint8)
        image[10:230, 50:270] = cv2.warpAffine(
            cv2.imread(str(path), 0), matrix, (320, 240), flags=cv2.INTER_AREA, borderValue=128
        )[10:230, 50:270]
        placed = around(points @ matrix[:, :2].T + matrix[:, 2])
        scenes.look(image)
        cuts += scenes.is_other(0, image, placed)
        scenes.keep(set())
        assert not scenes.is_other(0, image, placed)
    assert cuts == 30
