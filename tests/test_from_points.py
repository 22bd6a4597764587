"""Pose and shape from given landmarks, against a plain NumPy version and recorded projections."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.synthetic import random_pdm, random_pose

from jclnf import load_openface
from jclnf.fitting import fit_points
from jclnf.fitting._from_points import DAMPING, IDLE_STEPS, MAX_STEPS, SMALLEST_GAIN
from jclnf.geometry import euler_to_matrix, project
from jclnf.params import as_dtype

fit_compiled = jax.jit(fit_points)
ROTATIONS = [(0.0, 0.0, 0.0), (0.3, -0.5, 0.2), (-0.2, 1.0, -0.4)]


@pytest.fixture(scope="module")
def pdm():
    return random_pdm(20, 4)


@pytest.fixture(scope="module")
def points(pdm):
    """Landmarks of a known pose and shape, each moved a little at random."""
    rng = np.random.default_rng(3)
    shape = jnp.asarray(rng.normal(size=4) * np.sqrt(pdm.eigenvalues), jnp.float32)
    moved = project(pdm, random_pose(3, scale=1.7), shape) + rng.normal(0, 1.5, (20, 2))
    return jnp.asarray(moved, jnp.float32)


def plain(pdm, points, present, rotation):
    """The same steps, written with stacked matrices in double precision; and their number."""
    mean, modes = (np.asarray(a, float)[present] for a in (pdm.mean, pdm.components))
    points = np.asarray(points, float)[present]
    m = modes.shape[-1]
    prior = np.diag([0.0] * 6 + list(1 / np.asarray(pdm.eigenvalues, float)))
    turn = np.asarray(euler_to_matrix(jnp.array(rotation)), float)

    def shown(scale, turn, shift, p):
        return scale * (mean + modes @ p) @ turn[:2].T + shift

    extent = np.ptp(points, axis=0) / np.ptp(mean @ turn[:2].T, axis=0)
    scale, shift, p = extent.mean(), (points.min(0) + points.max(0)) / 2, np.zeros(m)
    distance = np.linalg.norm(shown(scale, turn, shift, p) - points)
    idle = steps = 0
    while idle < IDLE_STEPS:
        solid = mean + modes @ p
        generators = [np.cross(axis, solid) for axis in np.eye(3)]
        columns = [solid @ turn[:2].T, *(scale * g @ turn[:2].T for g in generators)]
        columns += [np.broadcast_to(axis, points.shape) for axis in np.eye(2)]
        columns += [scale * modes[:, :, j] @ turn[:2].T for j in range(m)]
        jacobian = np.stack([column.ravel() for column in columns], axis=-1)
        residual = (points - shown(scale, turn, shift, p)).ravel()
        right = jacobian.T @ residual - prior @ np.concatenate([np.zeros(6), p])
        delta = DAMPING * np.linalg.solve(jacobian.T @ jacobian + prior, right)
        x, y, z = delta[1:4]
        u, _, vt = np.linalg.svd(np.array([[1, -z, y], [z, 1, -x], [-y, x, 1]]))
        scale, turn, shift = scale + delta[0], turn @ u @ vt, shift + delta[4:6]
        before, distance = distance, np.linalg.norm(shown(scale, turn, shift, p) - points)
        p = p + delta[6:]
        idle, steps = idle + (distance > (1 - SMALLEST_GAIN) * before), steps + 1
    return scale, turn, shift, p, steps


@pytest.mark.parametrize("missing", [(), (0, 7, 8, 19)])
@pytest.mark.parametrize("rotation", ROTATIONS)
def test_it_takes_the_steps_of_the_plain_version(pdm, points, rotation, missing):
    present = np.ones(20, bool)
    present[list(missing)] = False
    scale, turn, shift, p, steps = plain(pdm, points, present, rotation)
    pose, shape = fit_compiled(pdm, points, jnp.asarray(present), rotation=rotation)
    assert steps < MAX_STEPS
    np.testing.assert_allclose(pose.scale, scale, rtol=1e-4)
    np.testing.assert_allclose(pose.matrix, turn, atol=1e-4)
    np.testing.assert_allclose(pose.translation, shift, atol=1e-2)
    np.testing.assert_allclose(shape, p, atol=1e-2)


def test_it_comes_back_to_the_pose_and_shape_that_points_are_of(pdm):
    pose, shape = random_pose(1, scale=3.0), jnp.array([9.0, -5.0, 4.0, 2.0])
    found, parameters = fit_compiled(pdm, project(pdm, pose, shape), jnp.ones(20, bool))
    np.testing.assert_allclose(found.rotation, pose.rotation, atol=2e-3)
    np.testing.assert_allclose(found.scale, pose.scale, rtol=2e-3)
    np.testing.assert_allclose(parameters, shape, atol=0.05)


def test_the_shape_is_not_clamped(pdm):
    """As in OpenFace, and unlike in a fit to an image, which stops at three deviations."""
    shape = 4.5 * jnp.sqrt(pdm.eigenvalues) * jnp.array([1, 0, 0, 0])
    _, found = fit_compiled(pdm, project(pdm, random_pose(scale=3.0), shape), jnp.ones(20, bool))
    assert found[0] > 4 * jnp.sqrt(pdm.eigenvalues[0])


def test_what_is_not_present_does_not_matter(pdm, points):
    present = jnp.arange(20) % 3 != 1
    expected = fit_compiled(pdm, points, present)

    def loss(points):
        pose, shape = fit_points(pdm, points, present)
        return project(pdm, pose, shape).sum() + shape.sum()

    for rubbish in (0.0, 1e6, np.nan):
        changed = jnp.where(present[:, None], points, rubbish)
        for a, b in zip(
            jax.tree.leaves(fit_compiled(pdm, changed, present)),
            jax.tree.leaves(expected),
            strict=True,
        ):
            np.testing.assert_array_equal(a, b)
    gradient = jax.jit(jax.grad(loss))(changed)
    assert np.isfinite(gradient).all()
    assert not gradient[~present].any()
    assert gradient[present].any()


def test_vmap_gives_the_same(pdm, points):
    batch = jnp.stack([points, points[:, ::-1] + 4, 0.8 * points])
    present = jnp.stack([jnp.ones(20, bool), jnp.arange(20) > 4, jnp.arange(20) < 17])
    together = jax.jit(jax.vmap(lambda x, there: fit_points(pdm, x, there)))(batch, present)
    for i in range(3):
        pose, shape = fit_compiled(pdm, batch[i], present[i])
        np.testing.assert_allclose(together[1][i], shape, atol=2e-3)
        np.testing.assert_allclose(together[0].matrix[i], pose.matrix, atol=1e-4)


def test_derivatives_are_those_of_finite_differences(pdm, points):
    with jax.enable_x64(True):
        model, at = as_dtype(pdm, float), jnp.asarray(points, float)

        @jax.jit
        @jax.value_and_grad
        def loss(points):
            pose, shape = fit_points(model, points, jnp.ones(20, bool))
            return jnp.sum(jnp.sin(project(model, pose, shape) / 20)) + shape @ jnp.arange(4.0)

        gradient, step = loss(at)[1], 1e-5
        for pick in [(0, 0), (3, 1), (11, 0), (19, 1)]:
            unit = jnp.zeros_like(at).at[pick].set(step)
            numeric = (loss(at + unit)[0] - loss(at - unit)[0]) / (2 * step)
            np.testing.assert_allclose(gradient[pick], numeric, rtol=1e-5, atol=1e-8)


PARTS = {
    "inner": ("model_inner/main_clnf_inner.txt", range(17, 68), range(51)),
    "left eye": ("model_eye/main_clnf_synth_left.txt", range(36, 42), range(8, 19, 2)),
    "right eye": ("model_eye/main_clnf_synth_right.txt", range(42, 48), range(8, 19, 2)),
}


def test_recorded_projections_of_parts(shared):
    """Of faces too small for their parts, OpenFace keeps what the landmarks say of the parts."""
    folder = shared / "openface"
    recorded = np.load(folder / "reference" / "parts_large_faces.npz")
    for kind, names in {"general": list(PARTS), "wild": list(PARTS)[1:]}.items():
        for index, name in enumerate(names):
            path, of_face, of_part = PARTS[name]
            pdm = load_openface(folder / "model" / path).pdm
            for face in ("006", "078", "090"):
                prefix = f"clnf_{kind}/{face}"
                landmarks = recorded[f"{prefix}/landmarks"].T
                points = np.full((pdm.n_landmarks, 2), np.nan, np.float32)
                points[list(of_part)] = landmarks[list(of_face)]
                present = ~np.isnan(points[:, 0])
                pose, shape = fit_compiled(pdm, jnp.asarray(points), jnp.asarray(present))
                found = project(pdm, pose, shape)
                expected = recorded[f"{prefix}/part{index}/landmarks"].T
                np.testing.assert_allclose(found, expected, atol=1e-3)
