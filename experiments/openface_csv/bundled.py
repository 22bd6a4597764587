"""Is the head pose of the bundled model's shapes the one that OpenFace's shapes have?

    python -m experiments.openface_csv.bundled

Both models put their own shapes through the same landmarks, those of OpenFace's tables of three
clips, so that nothing but the shapes differs. Needs `openface/` of the development data.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import jclnf
from experiments.common import OPENFACE, Row, command_line, pivot, write_results
from jclnf.geometry import shape3d
from jclnf.space._head_pose import pose_of_points
from tests.support.recordings import csv_rows

HERE = Path(__file__).resolve().parent

SIZES = {"default": (640, 480), "changeLighting": (640, 480), "subj01_timepoint01": (1080, 720)}


def main() -> None:
    command_line(__doc__).parse_args()
    pdm = jclnf.load_model().pdm

    @jax.jit
    @jax.vmap
    def poses(points: jax.Array, camera: jclnf.space.Camera) -> jclnf.space.HeadPose:
        pose, shape = jclnf.fit_points(pdm, points, jnp.ones(pdm.n_landmarks, bool))
        return pose_of_points(shape3d(pdm, shape), points, pose, camera)

    rows: list[Row] = []
    for clip, size in SIZES.items():
        table = csv_rows(OPENFACE / "golden_csv" / f"{clip}.clnf_general.csv")

        def column(pattern: str, axes: str) -> np.ndarray:
            return np.array([[float(row[pattern.format(a)]) for a in axes] for row in table])  # noqa: B023

        points = np.stack([column(f"{{}}_{i}", "xy") for i in range(68)], axis=1)
        camera = jax.tree.map(
            lambda v: jnp.full(len(table), v),  # noqa: B023
            jclnf.space.Camera.assumed(*size),
        )
        found = jax.device_get(poses(jnp.asarray(points, jnp.float32), camera))
        apart = np.rad2deg(found.rotation) - np.rad2deg(column("pose_R{}", "xyz"))
        moved = np.ptp(np.rad2deg(column("pose_R{}", "xyz")), axis=0)
        theirs = column("pose_T{}", "xyz")
        for k, name in enumerate(("pitch", "yaw", "roll")):
            numbers = (
                ("range", moved[k]),
                ("mean difference", apart[:, k].mean()),
                ("spread of the difference", apart[:, k].std()),
            )
            rows += [
                Row(f"{name}: {what}", clip, len(table), float(v), unit="degrees")
                for what, v in numbers
            ]
        percent = 100 * (found.translation - theirs) / theirs[:, 2:]
        for k, name in enumerate(("x", "y", "z")):
            value = float(percent[:, k].mean())
            quantity = f"position along {name}: mean difference, of the distance"
            rows.append(Row(quantity, clip, len(table), value, unit="%"))
    folder = HERE / "results_bundled"
    title = "Head pose of the bundled model's shapes less OpenFace's"
    write_results(folder, title, pivot(rows), {"rows": rows})


if __name__ == "__main__":
    main()
