"""The shape model: what it leaves of annotations, what it looks like, whose head poses it gives."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jclnf
from experiments.common import annotated, command_line, model_file, table, write_results
from jclnf.evaluation._metrics import outer_eye_distance
from jclnf.train import MIRROR_68

HERE = Path(__file__).resolve().parent

SHAPE = HERE / "shape"
CONTOURS = [
    (range(17), False),
    (range(17, 22), False),
    (range(22, 27), False),
    (range(27, 31), False),
    (range(31, 36), False),
    (range(36, 42), True),
    (range(42, 48), True),
    (range(48, 60), True),
    (range(60, 68), True),
]


def fitted(pdm: jclnf.PDM, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Landmarks nearest to the points, and head rotations in degrees."""

    def one(face: Any) -> tuple[Any, Any]:
        pose, shape = jclnf.fit_points(pdm, face, jnp.ones(68, bool))
        return jclnf.geometry._pdm.project(pdm, pose, shape), pose.rotation

    landmarks, rotations = jax.jit(lambda p: jax.lax.map(one, p))(jnp.asarray(points, jnp.float32))
    return np.asarray(landmarks), np.rad2deg(np.asarray(rotations))


def left(landmarks: np.ndarray, points: np.ndarray) -> np.ndarray:
    distances = np.linalg.norm(landmarks - points, axis=-1).mean(1)
    return 100 * distances / outer_eye_distance(points)


def draw(pdm: jclnf.PDM, path: Path) -> None:
    from matplotlib.figure import Figure

    mean, deviations = np.asarray(pdm.mean), np.sqrt(np.asarray(pdm.eigenvalues))
    modes = np.asarray(pdm.components)
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    axes = figure.subplots(2, 6)
    for column in range(6):
        for row, (across, name) in enumerate(((0, "front"), (2, "side"))):
            at = axes[row, column]
            for sign, colour in ((-2, "tab:blue"), (2, "tab:red"), (0, "black")):
                if column == 0 and sign:
                    continue
                shape = mean + sign * deviations[column - 1] * modes[..., column - 1]
                for run, closed in CONTOURS:
                    line = shape[[*run, *([run[0]] if closed else [])]]
                    x = line[:, across] if row == 0 else -line[:, across]
                    at.plot(x, line[:, 1], color=colour, linewidth=0.8)
            at.set(aspect="equal", xticks=[], yticks=[])
            at.invert_yaxis()
            title = "mean" if column == 0 else f"mode {column}, {deviations[column - 1]:.0f} mm"
            at.set_title(f"{title}, {name}", fontsize=8)
    figure.savefig(path, dpi=80)


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("model", nargs="?", help="as `jclnf fit` takes (default: the bundled one)")
    model = jclnf.load_model(parser.parse_args().model)
    openface = jclnf.load_openface(model_file("general"))
    points = np.array([face.landmarks for face in annotated("val")])
    found = {name: fitted(m.pdm, points) for name, m in (("ours", model), ("OpenFace", openface))}
    lines = []
    for name, (landmarks, _) in found.items():
        errors = left(landmarks, points)
        pdm = model.pdm if name == "ours" else openface.pdm
        lines.append(
            [name, pdm.n_modes]
            + [f"{value:.2f}" for value in (errors.mean(), np.median(errors))]
            + [f"{np.percentile(errors, 95):.2f}"]
        )
    body = "Distance of the fitted shape from the annotation, validation faces, % of the eye "
    body += "distance (fitted to the true points):\n\n"
    body += table(["shape model", "modes", "mean", "median", "95 %"], lines)

    turns = found["ours"][1] - found["OpenFace"][1]
    common = np.median(turns, axis=0)
    spread = np.abs(turns - common)
    body += "\n\nHead rotation from the same points, ours less OpenFace's, degrees:\n\n"
    rows = [
        [
            name,
            f"{common[k]:.1f}",
            f"{np.median(spread[:, k]):.1f}",
            f"{np.percentile(spread[:, k], 95):.1f}",
            f"{np.corrcoef(found['ours'][1][:, k], found['OpenFace'][1][:, k])[0, 1]:.3f}",
        ]
        for k, name in enumerate(("pitch", "yaw", "roll"))
    ]
    body += table(["", "common offset", "median beyond it", "95 %", "correlation"], rows)
    mean = np.asarray(model.pdm.mean)
    asymmetry = np.abs(mean - mean[MIRROR_68] * [-1, 1, 1]).max()
    flat = np.asarray(model.pdm.components).reshape(204, -1)
    reflected = np.asarray(model.pdm.components)[MIRROR_68] * np.array([-1.0, 1, 1])[:, None]
    parity = np.diag(flat.T @ reflected.reshape(204, -1))
    body += (
        f"\n\nThe mean shape is its own mirror image to {asymmetry:.2g} mm; each mode is even or "
        f"odd under mirroring (|cosine with its mirror image| >= {np.abs(parity).min():.4f}). "
        f"Standard deviations of the modes, mm: "
        + ", ".join(f"{v:.1f}" for v in np.sqrt(np.asarray(model.pdm.eigenvalues)))
        + ".\n\n![mean and first modes, from the front and from the side](modes.png)"
    )
    draw(model.pdm, SHAPE / "modes.png")
    numbers = {"left": lines, "rotation": rows, "asymmetry_mm": float(asymmetry)}
    write_results(SHAPE, "The shape model", body, numbers)


if __name__ == "__main__":
    main()
