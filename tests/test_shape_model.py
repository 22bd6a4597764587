"""Non-rigid structure from motion: shapes and poses that are known beforehand come out again."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from support.training import projected, shapes, symmetric_mean

from jclnf.train import MIRROR_68
from jclnf.train._shape_model import (
    Poses,
    basis_times,
    fit_shapes,
    learn_shape_model,
    start_poses,
    step_poses,
)


def euler_matrix(angles) -> np.ndarray:
    return Rotation.from_euler("XYZ", angles).as_matrix()


@pytest.fixture(scope="module")
def learned():
    points = projected(shapes(200, seed=1), 1, turn=0.8)
    noisy = points + np.random.default_rng(2).normal(0, 0.3, points.shape)
    return learn_shape_model(
        noisy, shapes(60, seed=3), MIRROR_68, modes=8, iterations=25, example_noise=5.0
    )


def test_mirroring_twice_changes_nothing():
    assert (MIRROR_68[MIRROR_68] == np.arange(68)).all()
    assert sorted(MIRROR_68) == list(range(68))


def test_it_explains_faces_that_it_has_not_seen(learned):
    points = projected(shapes(30, seed=11), 12, turn=0.6)
    poses, latent = fit_shapes(learned, points)
    basis = learned.components * np.sqrt(learned.eigenvalues)
    shape = learned.mean + basis_times(basis, latent)
    seen = np.einsum("fac,fnc->fna", poses.matrix[:, :2], shape)
    found = poses.scale[:, None, None] * seen + poses.translation[:, None]
    rigid = start_poses(learned.mean, points)
    mean_seen = np.einsum("fac,nc->fna", rigid.matrix[:, :2], learned.mean)
    without = rigid.scale[:, None, None] * mean_seen + rigid.translation[:, None]
    error = np.linalg.norm(found - points, axis=-1).mean()
    assert error < 0.35  # pixels: the noise that it was trained with
    assert error < 0.4 * np.linalg.norm(without - points, axis=-1).mean()


def test_depth_and_turn_come_out(learned):
    """Up to the turn and size that no image determines."""
    truth = shapes(20, seed=21)
    yaws = np.linspace(-0.6, 0.6, 20)
    points = np.array(
        [
            0.5 * shape @ euler_matrix(np.array([0, yaw, 0]))[:2].T + 80
            for shape, yaw in zip(truth, yaws, strict=True)
        ]
    )
    poses, latent = fit_shapes(learned, points)
    found = np.arcsin(poses.matrix[:, 0, 2])
    assert np.abs(found - yaws).max() < 0.08
    basis = learned.components * np.sqrt(learned.eigenvalues)
    depth = (learned.mean + basis_times(basis, latent))[..., 2]
    centred = truth[..., 2] - truth[..., 2].mean(1, keepdims=True)
    correlation = np.corrcoef((depth - depth.mean(1, keepdims=True)).ravel(), centred.ravel())
    assert correlation[0, 1] > 0.97


def test_what_comes_out_is_a_shape_model(learned):
    n, _, m = learned.components.shape
    flat = learned.components.reshape(3 * n, m)
    np.testing.assert_allclose(flat.T @ flat, np.eye(m), atol=1e-9)
    assert (np.diff(learned.eigenvalues) <= 0).all()
    assert (learned.eigenvalues > 0).all()
    mirrored = learned.mean[MIRROR_68] * [-1, 1, 1]
    np.testing.assert_allclose(mirrored, learned.mean, atol=1e-9)
    # A mode's mirror image is a mode: itself, or its negative.
    reflected = (learned.components[MIRROR_68] * np.array([-1.0, 1, 1])[:, None]).reshape(-1, m)
    np.testing.assert_allclose(np.abs(np.diag(flat.T @ reflected)), 1, atol=1e-6)


def test_the_noise_falls_and_is_what_was_put_in(learned):
    assert learned.noises[-1] < 0.7 * learned.noises[0]
    # 0.3 px at 0.4 to 0.7 px/mm.
    assert 0.4 < learned.noise < 0.85


def test_pose_steps_find_the_pose_of_a_known_shape():
    shape = symmetric_mean()
    matrix = euler_matrix(np.array([0.2, -0.9, 0.3]))
    points = (0.6 * shape @ matrix[:2].T + [40, 50])[None]
    poses = start_poses(shape, points)
    np.testing.assert_allclose(poses.matrix[0], matrix, atol=1e-4)
    assert poses.scale[0] == pytest.approx(0.6, rel=1e-4)
    off = Poses(poses.scale * 1.02, poses.matrix @ euler_matrix(np.full(3, 0.02)), poses[2] + 0.5)
    for _ in range(4):
        off = step_poses(off, shape[None], points)
    np.testing.assert_allclose(off.matrix, poses.matrix, atol=1e-6)
