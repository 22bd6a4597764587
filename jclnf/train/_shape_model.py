"""A 3D shape model from 2D annotations: non-rigid structure from motion by EM.

Each face is `y_i = s R[:2] (mean_i + V_i z) + t + noise`, with latent `z ~ N(0, I)` and noise of
equal variance in millimetres. The E-step takes the posterior of `z` given the pose, the M-step
solves for `mean` and `V` and steps the poses. Source: Torresani, Hertzmann, Bregler, "Nonrigid
structure-from-motion: estimating shape and motion with hierarchical priors" (PAMI 2008), section 4.

Depth is weakly determined by faces that mostly look at the camera. A prior is given as examples:
3D faces of the same landmarks, which enter the sums as faces seen in full, with more noise.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from scipy.spatial.transform import Rotation

from jclnf.geometry import PDM
from jclnf.params import to_device

START_YAWS = (0.0, -0.6, 0.6, -1.1, 1.1)
"""Head turns in radians that a face's pose is sought from."""


class Poses(NamedTuple):
    """Weak-perspective poses of `f` faces, as `jclnf.Pose`."""

    scale: np.ndarray
    """`(f,)` pixels per millimetre."""
    matrix: np.ndarray
    """`(f, 3, 3)`."""
    translation: np.ndarray
    """`(f, 2)` pixels."""


@dataclasses.dataclass(frozen=True)
class ShapeModel:
    """A learned shape model, as `jclnf.PDM` holds it.

    Attributes:
        mean: `(n, 3)` millimetres.
        components: `(n, 3, m)`, orthonormal modes, ordered by variance.
        eigenvalues: `(m,)` variance of each parameter.
        noise: standard deviation of what the model leaves of the annotations, in millimetres.
        noises: `noise` after each iteration.
    """

    mean: np.ndarray
    components: np.ndarray
    eigenvalues: np.ndarray
    noise: float
    noises: tuple[float, ...] = ()

    @staticmethod
    def of(pdm: PDM, noise: float = 1.5) -> "ShapeModel":
        """The shape model of a fit."""
        mean, components, eigenvalues = (
            np.asarray(array) for array in (pdm.mean, pdm.components, pdm.eigenvalues)
        )
        return ShapeModel(mean, components, eigenvalues, noise)

    @property
    def pdm(self) -> PDM:
        """As a fit uses it."""
        arrays = (self.mean, self.components, self.eigenvalues)
        return PDM(*(to_device(array, jnp.float32) for array in arrays))


def learn_shape_model(
    points: np.ndarray,
    examples: np.ndarray,
    mirror: np.ndarray,
    *,
    modes: int = 30,
    iterations: int = 60,
    example_noise: float = 5.0,
    progress: Callable[[int, float], None] | None = None,
) -> ShapeModel:
    """Learn a mirror-symmetric shape model.

    Args:
        points: `(f, n, 2)` annotated landmarks, pixels (x right, y down).
        examples: `(e, n, 3)` 3D faces, millimetres (x right, y down, z away from the viewer):
            where to start from, and the prior; more of them weigh more.
        mirror: `(n,)` index of each landmark's mirror image.
        modes: number `m` of modes.
        iterations: of expectation-maximisation.
        example_noise: standard deviation in millimetres by which an example's landmarks may differ
            from what is annotated; the larger, the weaker the prior.
        progress: called after each iteration with its number and the noise in millimetres.
    """
    flipped = points[:, mirror] * [-1.0, 1.0]
    both = np.concatenate([points, flipped]).astype(np.float64)
    examples = _aligned(examples.astype(np.float64))
    frame = _symmetric(examples.mean(0), mirror)
    mean = frame
    directions = (examples - mean).reshape(len(examples), -1)
    _, singular, right = np.linalg.svd(directions, full_matrices=False)
    modes = min(modes, len(singular))
    basis = (right[:modes].T * singular[:modes] / np.sqrt(len(examples))).reshape(*mean.shape, -1)

    poses = start_poses(mean, both)
    latent = np.zeros((len(both), modes))
    noise, noises = 3.0, []
    for iteration in range(iterations):
        poses = step_poses(poses, mean + basis_times(basis, latent), both)
        latent, spread, faces = _posterior(mean, basis, poses, both, noise)
        example_latent, example_spread = _example_posterior(mean, basis, examples, example_noise)
        weight = (noise / example_noise) ** 2
        mean, basis = _maximise(
            poses, faces, latent, spread, examples, example_latent, example_spread, weight
        )
        mean, basis = _fixed_frame(mean, basis, frame, mirror)
        residual = faces - _seen(poses, mean + basis_times(basis, latent))
        spread_seen = np.einsum("fac,ncm->fnam", poses.matrix[:, :2], basis)
        unsure = np.einsum("fnam,fmk,fnak->", spread_seen, spread, spread_seen, optimize=True)
        noise = float(np.sqrt(((residual**2).sum() + unsure) / residual.size))
        noises.append(noise)
        if progress is not None:
            progress(iteration, noise)
    return _ordered(mean, basis, latent, spread, mirror, noise, noises)


def fit_shapes(
    model: ShapeModel, points: np.ndarray, *, noise: float | None = None, steps: int = 15
) -> tuple[Poses, np.ndarray]:
    """Poses and shapes of annotated points.

    Args:
        model: the shape model.
        points: `(f, n, 2)` landmarks, pixels.
        noise: standard deviation in millimetres that the points are trusted to; the model's own
            if not given.
        steps: alternations between poses and shapes.

    Returns:
        Poses, and `(f, m)` shape parameters in their standard deviations.
    """
    basis = model.components * np.sqrt(model.eigenvalues)
    noise = model.noise if noise is None else noise
    poses = start_poses(model.mean, points)
    latent = np.zeros((len(points), basis.shape[-1]))
    for _ in range(steps):
        poses = step_poses(poses, model.mean + basis_times(basis, latent), points)
        latent, _, _ = _posterior(model.mean, basis, poses, points, noise)
    return poses, latent


def basis_times(basis: np.ndarray, latent: np.ndarray) -> np.ndarray:
    """Displacements `(f, n, 3)` of parameters `(f, m)` in a basis `(n, 3, m)`."""
    n, _, m = basis.shape
    return (latent @ basis.reshape(-1, m).T).reshape(-1, n, 3)


def start_poses(mean: np.ndarray, points: np.ndarray) -> Poses:
    """The pose of the mean shape nearest to each face's points, from several head turns."""
    low, high = points.min(1), points.max(1)
    tried, errors = [], []
    for yaw in START_YAWS:
        matrix = Rotation.from_euler("y", yaw).as_matrix()
        turned = mean @ matrix[:2].T
        scale = ((high - low) / np.ptp(turned, axis=0)).mean(1)
        centre = points.mean(1) - scale[:, None] * turned.mean(0)
        poses = Poses(scale, np.broadcast_to(matrix, (len(points), 3, 3)), centre)
        for _ in range(15):
            poses = step_poses(poses, mean[None], points)
        apart = _seen(poses, mean[None]) - _in_millimetres(poses, points)
        tried.append(poses)
        errors.append((apart**2).sum((1, 2)))
    best = np.argmin(errors, axis=0), np.arange(len(points))
    return Poses(*(np.stack(arrays)[best] for arrays in zip(*tried, strict=True)))


def step_poses(poses: Poses, shapes: np.ndarray, points: np.ndarray) -> Poses:
    """A Gauss-Newton step of all poses towards the points, in the coordinates of
    `jclnf.geometry.rigid_jacobian`."""
    axes = poses.matrix[:, :2]
    shapes = np.broadcast_to(shapes, (len(points), *shapes.shape[1:]))
    projected = shapes @ axes.transpose(0, 2, 1)
    residual = points - poses.scale[:, None, None] * projected - poses.translation[:, None]
    turned = np.cross(np.eye(3), shapes[:, :, None, :])
    columns = np.concatenate(
        [
            projected[..., None],
            poses.scale[:, None, None, None] * np.einsum("fac,fnkc->fnak", axes, turned),
            np.broadcast_to(np.eye(2), (*projected.shape, 2)),
        ],
        axis=-1,
    ).reshape(len(points), -1, 6)
    normal = columns.transpose(0, 2, 1) @ columns
    right = columns.transpose(0, 2, 1) @ residual.reshape(len(points), -1, 1)
    delta = np.linalg.solve(normal, right)[..., 0]
    return Poses(
        np.maximum(poses.scale + delta[:, 0], 0.1 * poses.scale),
        poses.matrix @ Rotation.from_rotvec(np.clip(delta[:, 1:4], -0.5, 0.5)).as_matrix(),
        poses.translation + delta[:, 4:],
    )


def _seen(poses: Poses, shapes: np.ndarray) -> np.ndarray:
    """Turned shapes as the camera sees them, millimetres."""
    return shapes @ poses.matrix[:, :2].transpose(0, 2, 1)


def _in_millimetres(poses: Poses, points: np.ndarray) -> np.ndarray:
    return (points - poses.translation[:, None]) / poses.scale[:, None, None]


def _posterior(
    mean: np.ndarray, basis: np.ndarray, poses: Poses, points: np.ndarray, noise: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean `(f, m)` and covariance `(f, m, m)` of the latents, and the points in millimetres."""
    faces = _in_millimetres(poses, points)
    seen = np.einsum("fac,ncm->fnam", poses.matrix[:, :2], basis, optimize=True)
    seen = seen.reshape(len(points), -1, basis.shape[-1])
    residual = (faces - _seen(poses, mean[None])).reshape(len(points), -1, 1)
    transposed = seen.transpose(0, 2, 1)
    precision = np.eye(basis.shape[-1]) + transposed @ seen / noise**2
    spread = np.linalg.inv(precision)
    return (spread @ (transposed @ residual))[..., 0] / noise**2, spread, faces


def _example_posterior(
    mean: np.ndarray, basis: np.ndarray, examples: np.ndarray, noise: float
) -> tuple[np.ndarray, np.ndarray]:
    flat = basis.reshape(-1, basis.shape[-1])
    spread = np.linalg.inv(np.eye(flat.shape[1]) + flat.T @ flat / noise**2)
    return (examples - mean).reshape(len(examples), -1) @ flat @ spread / noise**2, spread


def _maximise(
    poses: Poses,
    faces: np.ndarray,
    latent: np.ndarray,
    spread: np.ndarray,
    examples: np.ndarray,
    example_latent: np.ndarray,
    example_spread: np.ndarray,
    weight: float,
) -> tuple[np.ndarray, np.ndarray]:
    """The mean and the basis that maximise the expected likelihood; all landmarks share one
    system, since all see the same poses."""
    f, m = latent.shape
    ones = np.concatenate([np.ones((f, 1)), latent], axis=1)
    second = ones[:, :, None] * ones[:, None]
    second[:, 1:, 1:] += spread
    axes = poses.matrix[:, :2]
    view = axes.transpose(0, 2, 1) @ axes
    normal = np.einsum("fi,fj->ij", view.reshape(f, 9), second.reshape(f, -1))
    normal = normal.reshape(3, 3, m + 1, m + 1).transpose(2, 0, 3, 1)
    lifted = faces @ axes
    right = np.einsum("fi,fj->ij", ones, lifted.reshape(f, -1)).reshape(m + 1, -1, 3)

    e = len(examples)
    ones = np.concatenate([np.ones((e, 1)), example_latent], axis=1)
    second = ones.T @ ones
    second[1:, 1:] += e * example_spread
    normal = normal + weight * np.einsum("ij,cd->icjd", second, np.eye(3))
    right = right + weight * (ones.T @ examples.reshape(e, -1)).reshape(m + 1, -1, 3)
    size = 3 * (m + 1)
    solution = np.linalg.solve(
        normal.reshape(size, size), right.transpose(0, 2, 1).reshape(size, -1)
    )
    solution = solution.reshape(m + 1, 3, -1).transpose(2, 1, 0)
    return solution[..., 0], solution[..., 1:]


def _fixed_frame(
    mean: np.ndarray, basis: np.ndarray, frame: np.ndarray, mirror: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The same model at the place, turn and size of `frame`, its modes without rigid motion."""
    mean = _symmetric(mean - mean.mean(0), mirror)
    frame = frame - frame.mean(0)
    turn = Rotation.align_vectors(frame, mean)[0].as_matrix()
    size = np.linalg.norm(frame) / np.linalg.norm(mean)
    mean = size * mean @ turn.T
    basis = size * np.einsum("cd,ndm->ncm", turn, basis)
    return mean, _without_rigid(mean, basis)


def _without_rigid(mean: np.ndarray, basis: np.ndarray) -> np.ndarray:
    """A basis without what translation, rotation and scaling of the mean would do as well."""
    rigid = [np.broadcast_to(axis, mean.shape) for axis in np.eye(3)]
    rigid += [np.cross(axis, mean) for axis in np.eye(3)]
    rigid.append(mean)
    span = np.linalg.qr(np.stack(rigid, axis=-1).reshape(-1, 7))[0]
    flat = basis.reshape(len(span), -1)
    return (flat - span @ (span.T @ flat)).reshape(basis.shape)


def _ordered(
    mean: np.ndarray,
    basis: np.ndarray,
    latent: np.ndarray,
    spread: np.ndarray,
    mirror: np.ndarray,
    noise: float,
    noises: list[float],
) -> ShapeModel:
    """Principal components of the learned shapes, which a mirrored face has just as well."""
    m = basis.shape[-1]
    second = latent.T @ latent / len(latent) + spread.mean(0)
    flat = basis.reshape(-1, m)
    reflected = (basis[mirror] * np.array([-1.0, 1.0, 1.0])[:, None]).reshape(-1, m)
    covariance = (flat @ second @ flat.T + reflected @ second @ reflected.T) / 2
    values, vectors = np.linalg.eigh(covariance)
    values, vectors = values[::-1][:m], vectors[:, ::-1][:, :m]
    return ShapeModel(mean, vectors.reshape(*mean.shape, m), values, noise, tuple(noises))


def _symmetric(shape: np.ndarray, mirror: np.ndarray) -> np.ndarray:
    return (shape + shape[mirror] * [-1.0, 1.0, 1.0]) / 2


def _aligned(examples: np.ndarray) -> np.ndarray:
    """Examples at a common place, turn and size: generalised Procrustes analysis."""
    shapes = examples - examples.mean(1, keepdims=True)
    target = shapes[0]
    size = np.sqrt((shapes**2).sum((1, 2)).mean())
    for _ in range(5):
        shapes = np.array(
            [Rotation.align_vectors(target, shape)[0].apply(shape) for shape in shapes]
        )
        shapes *= size / np.sqrt((shapes**2).sum((1, 2), keepdims=True))
        target = shapes.mean(0)
    return shapes
