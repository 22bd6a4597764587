"""Writes predictors of action units with random weights in OpenFace's formats."""

from pathlib import Path

import numpy as np

from .openface_files import OpenFaceModel, Writer, pdm_text

KINDS = {"_r": 0, "_c": 4}
"""The kind of a static file of each output."""
DYNAMIC = 1
"""What makes a kind dynamic."""

SIZE = 4464 + 3 * 68
"""Numbers of a face, but for the parameters of its shape."""


def predictor_file(kind: int, weights: np.ndarray, *, seed: int = 0) -> Writer:
    """A predictor's file; weights `(d,)`."""
    rng = np.random.default_rng(seed)
    file = Writer()
    file.integers("kind", kind)
    if kind == 1:
        file.numbers("cutoff", 0.3)
    file.matrix("means", rng.normal(0, 0.01, (1, len(weights))), "f8")
    file.matrix("weights", weights[:, None], "f8")
    file.numbers("bias", 0.5)
    if kind >= 4:
        file.numbers("class above 0", 0.0)
        file.numbers("class below 0", 1.0)
    return file


def face_shape(modes: int = 5, seed: int = 0) -> OpenFaceModel:
    """A random shape model of 68 landmarks, of a face's size and of its outline roughly."""
    rng = np.random.default_rng(seed)
    angle = np.linspace(0, 2 * np.pi, 68, endpoint=False)
    radius = 60 * np.sqrt(rng.uniform(0.1, 1, 68))
    mean = np.stack([radius * np.cos(angle), radius * np.sin(angle), rng.normal(0, 15, 68)], 1)
    modes_of_shape, _ = np.linalg.qr(rng.normal(size=(3 * 68, modes)))
    eigenvalues = np.linspace(200, 20, modes)
    return OpenFaceModel(mean, modes_of_shape.reshape(68, 3, modes), eigenvalues, [])


def write_predictors(
    folder: Path,
    outputs: tuple[str, ...] = ("AU01_c", "AU12_c", "AU01_r", "AU12_r"),
    dynamic: tuple[str, ...] = ("AU01_c", "AU01_r"),
    *,
    modes: int = 5,
    seed: int = 0,
) -> Path:
    """A folder of predictors, as OpenFace's `AU_predictors`; the static ones differ from the
    dynamic ones in their files' kind alone."""
    rng = np.random.default_rng(seed)
    (folder / "files").mkdir(parents=True)
    shape = face_shape(modes, seed)
    (folder / "pdm.txt").write_text(pdm_text(shape))
    triangles = np.array([rng.permutation(68)[:3] for _ in range(60)])
    rows = "\n".join(" ".join(map(str, row)) for row in triangles)
    (folder / "tris.txt").write_text(f"{len(triangles)}\n3\n4\n{rows}\n")
    weights = {name: rng.normal(0, 0.02, SIZE + modes) for name in outputs}
    for which, moving in (("dynamic", dynamic), ("static", ())):
        lines = []
        for name in outputs:
            kind = KINDS[name[4:]] + (DYNAMIC if name in moving else 0)
            file = predictor_file(kind, weights[name], seed=kind)
            path = f"files/{name}_{which}.dat"
            (folder / path).write_bytes(bytes(file.data))
            lines.append(f"{path} {name[:4]}")
        (folder / f"list_{which}.txt").write_text("\n".join(lines))
        main = f"AUPredictor list_{which}.txt\nPDM pdm.txt\nTriangulation tris.txt\r\n"
        (folder / f"main_{which}_svms.txt").write_text(main)
    return folder
