"""3D faces of the 68 landmarks from the ICT-FaceKit basis, for the shape model to start from.

    python -m experiments.training.ict ict.npz

writes what `jclnf train --shape-prior` takes. Identities are drawn from the basis's normal
distribution; of the expressions each is present in one face of seven, up to its full strength.
"""

import numpy as np

from experiments.common import DATA, command_line

PRESENT = 0.15


def examples(count: int = 1000, seed: int = 1) -> np.ndarray:
    """`(count, 68, 3)` millimetres, x right, y down, z away from the viewer."""
    rng = np.random.default_rng(seed)
    with np.load(DATA / "ict" / "landmarks68.npz") as basis:
        identities = rng.standard_normal((count, len(basis["identity"])))
        strengths = rng.random((count, len(basis["expression"])))
        strengths = strengths * (rng.random(strengths.shape) < PRESENT)
        faces = (
            basis["mean"]
            + np.einsum("fk,knc->fnc", identities, basis["identity"])
            + np.einsum("fk,knc->fnc", strengths, basis["expression"])
        )
    # The basis is in centimetres, y up, z towards the viewer.
    return 10 * faces * [1.0, -1.0, -1.0]


if __name__ == "__main__":
    parser = command_line(__doc__)
    parser.add_argument("out", help="the file to write (.npz)")
    np.savez(parser.parse_args().out, examples=examples())
