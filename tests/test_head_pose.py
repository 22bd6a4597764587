"""Camera, head pose in space and gaze: against OpenCV, geometry, and OpenFace's own tables."""

import csv
import dataclasses
from functools import partial
from types import SimpleNamespace

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.recordings import LARGE, filled, openface_model

import jclnf
from jclnf import PDM, Pose
from jclnf.errors import ParamsError
from jclnf.geometry import euler_to_matrix, shape3d
from jclnf.images import read_image_file
from jclnf.openface import OpenFaceTable, measure_faces
from jclnf.space import EYES, Camera, HeadPose
from jclnf.space._gaze import CORNERS, RADIUS


@pytest.fixture(scope="module")
def pdm() -> PDM:
    return jclnf.load_model().pdm


@jax.jit
def _placed(pdm, camera, shape, translation, rotation, noise):
    matrix = euler_to_matrix(rotation)
    points = shape3d(pdm, shape) @ matrix.T
    landmarks = camera.project(points + translation) + noise
    centre = camera.project(translation[None])[0]
    return matrix, points, landmarks, camera.fx / translation[2], centre


def face(pdm: PDM, camera: Camera, translation, rotation, noise=0.0, seed=0) -> SimpleNamespace:
    """A face as a camera sees it, with the weak-perspective pose that is nearest to it."""
    rng = np.random.default_rng(seed)
    shape = jnp.asarray(rng.normal(size=pdm.n_modes) * np.sqrt(pdm.eigenvalues), jnp.float32)
    noise = noise * rng.normal(size=(pdm.n_landmarks, 2)).astype(np.float32)
    given = (np.asarray(a, np.float32) for a in (translation, rotation, noise))
    matrix, points, landmarks, scale, centre = _placed(pdm, camera, shape, *given)
    return SimpleNamespace(
        landmarks=landmarks,
        landmarks3d=points,
        pose=Pose(scale, matrix, centre),
        shape=shape,
        parts={},
    )


POSES = [
    ((10.0, -20.0, 500.0), (0.1, -0.2, 0.05)),
    ((-150.0, 90.0, 420.0), (-0.3, 0.6, -0.4)),
    ((0.0, 0.0, 900.0), (0.0, 0.0, 0.0)),
    ((250.0, 10.0, 700.0), (0.2, -1.1, 0.3)),
]


@pytest.mark.parametrize(("translation", "rotation"), POSES)
def test_an_exact_picture_gives_the_exact_pose(pdm, translation, rotation):
    camera = Camera.assumed(640, 480)
    found = jclnf.space.head_pose(face(pdm, camera, translation, rotation), camera)
    np.testing.assert_allclose(found.translation, translation, atol=0.02)
    np.testing.assert_allclose(found.rotation, rotation, atol=1e-4)


@pytest.mark.parametrize(("translation", "rotation"), POSES)
def test_of_inexact_landmarks_it_is_opencvs(pdm, translation, rotation):
    camera = Camera(fx=610.0, fy=580.0, cx=300.0, cy=260.0)
    seen = face(pdm, camera, translation, rotation, noise=1.5)
    found = jclnf.space.head_pose(seen, camera)
    matrix = np.array([[610.0, 0, 300], [0, 580.0, 260], [0, 0, 1]])
    _, turn, moved = cv2.solvePnP(
        np.asarray(shape3d(pdm, seen.shape), np.float64),
        np.asarray(seen.landmarks, np.float64),
        matrix,
        None,
        cv2.Rodrigues(np.asarray(seen.pose.matrix, np.float64))[0],
        np.array(translation),
        True,
        cv2.SOLVEPNP_ITERATIVE,
    )
    np.testing.assert_allclose(found.translation, np.ravel(moved), rtol=1e-4, atol=0.05)
    turned = np.asarray(euler_to_matrix(found.rotation))
    np.testing.assert_allclose(turned, cv2.Rodrigues(turn)[0], atol=2e-4)


def test_its_derivatives_are_differences(pdm):
    camera = Camera.assumed(640, 480)
    with jax.enable_x64(True):
        seen = face(pdm, camera, *POSES[1], noise=1.0)
        seen = SimpleNamespace(**jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), vars(seen)))

        @jax.jit
        @partial(jax.value_and_grad, argnums=(0, 1))
        def depth(landmarks, focal):
            moved = SimpleNamespace(**(vars(seen) | {"landmarks": landmarks}))
            used = dataclasses.replace(camera, fx=focal, fy=focal)
            pose = jclnf.space.head_pose(moved, used)
            return pose.translation[2] + 100 * pose.rotation[1]

        at = (seen.landmarks, jnp.float64(500.0))
        _, (by_landmarks, by_focal) = depth(*at)
        direction = np.random.default_rng(0).normal(size=at[0].shape)
        step = 1e-5
        ends = [depth(at[0] + by * direction, at[1])[0] for by in (step, -step)]
        along = ends[0] - ends[1]
        np.testing.assert_allclose((by_landmarks * direction).sum(), along / (2 * step), rtol=1e-4)
        along = depth(at[0], at[1] + 1e-3)[0] - depth(at[0], at[1] - 1e-3)[0]
        np.testing.assert_allclose(by_focal, along / 2e-3, rtol=1e-4)


def test_signs_of_rotations(pdm):
    """As the docstring says: down, to the left of the image, clockwise in it."""
    camera, tip, brow = Camera.assumed(640, 480), 30, 27
    straight = face(pdm, camera, (0.0, 0.0, 600.0), (0.0, 0.0, 0.0)).landmarks
    moved = [
        face(pdm, camera, (0.0, 0.0, 600.0), tuple(0.3 * np.eye(3)[axis])).landmarks - straight
        for axis in range(3)
    ]
    assert moved[0][tip, 1] > 3
    assert moved[1][tip, 0] < -3
    # Above the centre of the turn, clockwise is to the right.
    assert moved[2][brow, 0] > 3


def test_a_head_that_faces_the_camera_has_no_rotation_towards_it():
    for x, y in ((200.0, 0.0), (0.0, -150.0), (-300.0, 0.0)):
        towards = np.array([-np.arctan2(y, 500.0), np.arctan2(x, 500.0), 0.0])
        pose = HeadPose(jnp.array([x, y, 500.0]), jnp.asarray(towards, jnp.float32))
        # Its nose points at the camera.
        nose = np.asarray(euler_to_matrix(pose.rotation)) @ [0.0, 0.0, -1.0]
        distance = np.sqrt(x**2 + y**2 + 500.0**2)
        np.testing.assert_allclose(
            nose, [-x / distance, -y / distance, -500.0 / distance], atol=1e-5
        )
        np.testing.assert_allclose(pose.towards_camera().rotation, 0.0, atol=1e-5)


def test_gaze_hits_the_eyeball_where_the_pupil_is_seen(pdm):
    """The end of the gaze lies on the eyeball and, seen by the camera, on the pupil."""
    camera = Camera.assumed(640, 480)
    result = face(pdm, camera, (30.0, -10.0, 450.0), (0.1, 0.2, 0.0))
    space = np.asarray(jclnf.space.landmarks_in_space(result, camera))
    rng = np.random.default_rng(3)
    for name, corners in zip(EYES, CORNERS, strict=True):
        middle = space[list(corners)].mean(0)
        points = jnp.asarray(middle + rng.normal(size=(28, 3)) * 0.5 + [0, 0, -4], jnp.float32)
        eye = SimpleNamespace(
            landmarks=camera.project(points),
            landmarks3d=points - points[:, 2:].mean() * jnp.array([0.0, 0.0, 1.0]),
            pose=Pose(camera.fx / points[:, 2].mean(), jnp.eye(3), jnp.zeros(2)),
        )
        result.parts[name] = eye
    head = jclnf.space.head_pose(result, camera)
    found = jclnf.space.gaze(result, camera, head)
    matrix = np.asarray(euler_to_matrix(head.rotation))
    for k, corners in enumerate(CORNERS):
        centre = space[list(corners)].mean(0) + matrix @ [0.0, -3.5, 7.0]
        end = centre + RADIUS * np.asarray(found.directions[k])
        pupil = np.asarray(found.landmarks3d[k, :8]).mean(0)
        np.testing.assert_allclose(
            camera.project(jnp.asarray([end])), camera.project(jnp.asarray([pupil])), atol=0.02
        )
        assert end[2] < centre[2]
    mean = np.asarray(found.directions).mean(0)
    np.testing.assert_allclose(found.angles, np.arctan2(mean[:2], -mean[2]), atol=1e-6)


def test_cameras_that_cannot_be_are_refused():
    with pytest.raises(ParamsError, match="focal lengths"):
        Camera(fx=-1.0, fy=500.0, cx=0.0, cy=0.0)
    with pytest.raises(ParamsError, match="finite"):
        Camera(fx=500.0, fy=500.0, cx=np.nan, cy=0.0)
    assert Camera.assumed(1280, 960).numbers == {"fx": 1000.0, "fy": 1000.0, "cx": 640, "cy": 480}
    assert Camera.assumed(640, 480, 700.0).numbers["fy"] == 700.0


def read_golden(path, every):
    with path.open() as file:
        header = file.readline()
        rows = list(csv.DictReader(file, header.strip().split(", "), skipinitialspace=True))
    return header, rows[::every]


def numbers(row, pattern, count, axes="xyz"):
    values = [[float(row[pattern.format(axis, i)]) for axis in axes] for i in range(count)]
    return np.array(values, np.float32)


SIZES = {"default": (640, 480), "changeLighting": (640, 480), "subj01_timepoint01": (1080, 720)}


@pytest.mark.parametrize("clip", SIZES)
def test_openfaces_own_tables_follow_from_their_parameters(shared, clip):
    """Pose, landmarks in space and gaze, from the landmarks and parameters in the same row."""
    model = openface_model(shared / "openface", "general")
    file = shared / "openface" / "golden_csv" / f"{clip}.clnf_general.csv"
    header, rows = read_golden(file, 12)
    assert header == OpenFaceTable(68, 34, video=True, gaze=True, spaces=True).header
    camera = Camera.assumed(*SIZES[clip])
    fits = []
    for row in rows:
        values = [float(row[f"p_{name}"]) for name in ("scale", "rx", "ry", "rz", "tx", "ty")]
        scale, *rest = jnp.asarray(values, jnp.float32)
        matrix, centre = euler_to_matrix(jnp.stack(rest[:3])), jnp.stack(rest[3:])
        shape = np.array([float(row[f"p_{i}"]) for i in range(34)], np.float32)
        eyes = numbers(row, "eye_lmk_{}_{}", 56, "xyXYZ").reshape(2, 28, 5)
        parts = {}
        for name, eye in zip(EYES, eyes, strict=True):
            # The part's own scale is not in the table: depths are given as such.
            depth = np.zeros_like(eye[:, 2:])
            depth[:, 2] = eye[:, 4] - np.asarray(camera.fx / scale)
            parts[name] = jclnf.fitting.PartResult(
                landmarks=jnp.asarray(eye[:, :2]),
                landmarks3d=jnp.asarray(depth),
                pose=Pose(scale, matrix, centre),
                shape=jnp.zeros(1),
                fitted=jnp.array(True),
            )
        fits.append(
            SimpleNamespace(
                landmarks=numbers(row, "{}_{}", 68, "xy"),
                landmarks3d=shape3d(model.pdm, jnp.asarray(shape)) @ matrix.T,
                pose=Pose(scale, matrix, centre),
                shape=shape,
                parts=parts,
            )
        )
    found = measure_faces(fits, camera, batch=len(fits))
    for row, one in zip(rows, found, strict=True):
        # Decimals as the table has them, and what they make of each other.
        depth = float(row["pose_Tz"])
        np.testing.assert_allclose(
            one.head.translation, [float(row[f"pose_T{a}"]) for a in "xyz"], atol=4e-4 * depth
        )
        np.testing.assert_allclose(
            one.head.rotation, [float(row[f"pose_R{a}"]) for a in "xyz"], atol=1.2e-3
        )
        np.testing.assert_allclose(one.space, numbers(row, "{}_{}", 68, "XYZ"), atol=0.45)
        directions = np.array([[float(row[f"gaze_{e}_{a}"]) for a in "xyz"] for e in (0, 1)])
        apart = np.degrees(np.arccos(np.clip((one.gaze.directions * directions).sum(1), -1, 1)))
        assert apart.max() < 1.5  # 0.1 mm, as the eyes' landmarks are given, is half a degree
        assert np.median(apart) < 0.5


@pytest.mark.slow
def test_a_photograph_has_openfaces_table(shared):
    """From the image on: OpenFace's models with all parts, fitted and measured, as text."""
    openface = shared / "openface"
    model = openface_model(openface, "general")
    params = jclnf.FitParams.openface(model)
    image = read_image_file(openface / "samples" / "sample5.jpg")
    box = (204.982, 131.999, 291.226, 286.433)
    fit = jax.device_get(jclnf.fit(model, filled(image.grey, LARGE), box, params))
    height, width = image.grey.shape
    camera = Camera.assumed(width, height)
    (one,) = measure_faces([fit], camera, batch=1)
    table = OpenFaceTable(68, 34, video=False, gaze=True, spaces=True)
    header, (theirs,) = read_golden(openface / "golden_csv" / "sample5.clnf_general.csv", 1)
    assert table.header == header
    text = table.row((0, float(fit.confidence)), one).strip().split(", ")
    ours = dict(zip(table.columns, text, strict=True))
    tolerances = {"confidence": 0.002, "gaze": 0.01, "eye_lmk": 0.8, "pose_T": 0.3, "pose_R": 0.003}
    shape = [f"p_{i}" for i in range(34)]  # some modes hardly move the face
    for name in set(table.columns) - set(shape):
        group = next((group for group in tolerances if name.startswith(group)), "")
        assert float(ours[name]) == pytest.approx(
            float(theirs[name]), abs=tolerances.get(group, 0.31)
        ), name
        assert len(ours[name].partition(".")[2]) == len(theirs[name].partition(".")[2]), name


def test_rows_hold_what_their_columns_say(pdm):
    camera = Camera.assumed(640, 480)
    result = face(pdm, camera, *POSES[0])
    (one,) = measure_faces([result], camera, batch=2)
    table = OpenFaceTable(68, pdm.n_modes, video=True, gaze=False)
    row = dict(zip(table.columns, table.row((3, 0, 0.1, 0.876, 1), one).split(","), strict=True))
    assert [row[c] for c in table.columns[:5]] == ["3", "0", "0.100", "0.88", "1"]
    assert row["x_30"] == f"{float(result.landmarks[30, 0]):.1f}"
    assert row["pose_Tz"] == f"{float(one.head.translation[2]):.1f}"
    assert row["p_5"] == f"{float(result.shape[5]):.3f}"
    assert row["Z_8"] == f"{float(one.space[8, 2]):.1f}"
    assert not any(name.startswith(("gaze", "eye", "AU")) for name in table.columns)
    exact = OpenFaceTable(68, pdm.n_modes, video=False, gaze=False, full_precision=True)
    row = dict(zip(exact.columns, exact.row((0, 0.5), one).split(","), strict=True))
    for i in range(68):
        assert np.float32(row[f"y_{i}"]) == np.asarray(result.landmarks)[i, 1]
    count = len(table.columns)
    assert table.row((4, None, 0.2, None, 0), None) == "4,,0.200,,0" + (count - 5) * "," + "\n"
    as_openface = OpenFaceTable(68, pdm.n_modes, video=True, gaze=False, zeros=True, spaces=True)
    nobody = as_openface.row((4, 0, 0.2, None, 0), None)
    assert nobody.startswith("4, 0, 0.200, 0.00, 0, ")
    assert len(nobody.split(", ")) == count
    assert set(nobody.strip().split(", ")[5:]) == {"0.0", "0.000"}
    assert nobody.endswith("\n")


def test_eyes_that_were_not_fitted_are_empty(pdm):
    """Where other faces of the table have a gaze."""
    camera = Camera.assumed(640, 480)
    (one,) = measure_faces([face(pdm, camera, *POSES[0])], camera, batch=1)
    table = OpenFaceTable(68, pdm.n_modes, video=True, gaze=True)
    cells = table.row((1, 0, 0.0, 0.9, 1), one).rstrip("\n").split(",")
    row = dict(zip(table.columns, cells, strict=True))
    empty = {name for name, cell in row.items() if not cell}
    assert empty == {name for name in table.columns if name.startswith(("gaze", "eye_lmk"))}


def test_a_faces_numbers_do_not_depend_on_the_batch(pdm):
    camera = Camera.assumed(640, 480)
    fits = [face(pdm, camera, *pose, noise=1.0) for pose in POSES]
    together = measure_faces(fits, camera, batch=3)
    alone = [measure_faces([fit], camera, batch=3)[0] for fit in fits]
    for a, b in zip(together, alone, strict=True):
        jax.tree.map(np.testing.assert_array_equal, a, b)
