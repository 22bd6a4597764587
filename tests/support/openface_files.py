"""Writes models with random weights in OpenFace's formats, for tests that need such files."""

import contextlib
import struct
import tracemalloc
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

TYPE_CODES = {"u1": 0, "i4": 4, "f4": 5, "f8": 6}


class Writer:
    """Little-endian bytes, and the offset at which each field starts."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.fields: list[tuple[str, int]] = []

    def field(self, name: str, content: bytes) -> None:
        self.fields.append((name, len(self.data)))
        self.data += content

    def integers(self, name: str, *values: int) -> None:
        for value in values:
            self.field(name, struct.pack("<i", value))

    def numbers(self, name: str, *values: float) -> None:
        for value in values:
            self.field(name, struct.pack("<d", value))

    def matrix(self, name: str, array: np.ndarray, dtype: str) -> None:
        self.integers(f"{name} rows", array.shape[0])
        self.integers(f"{name} columns", array.shape[1])
        self.integers(f"{name} type", TYPE_CODES[dtype])
        self.field(name, array.astype(f"<{dtype}").tobytes())

    def offsets(self, name: str) -> list[int]:
        return [offset for field, offset in self.fields if field == name]


@contextlib.contextmanager
def little_memory(limit: int = 50 * 10**6) -> Iterator[None]:
    """Fails if what runs inside allocates `limit` bytes at a time."""
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < limit


@dataclass
class Scale:
    """One file of CCNF experts: arrays as `CCNF.create` takes them, without the axis of scales.

    `neurons[v, i]` of the `q` neurons are written for each patch.
    """

    scaling: float
    centres: np.ndarray
    visible: np.ndarray
    neurons: np.ndarray
    confidence: np.ndarray
    weights: np.ndarray
    norm_weight: np.ndarray
    bias: np.ndarray
    alpha: np.ndarray
    beta: np.ndarray
    components: dict[int, np.ndarray]


@dataclass
class OpenFaceModel:
    mean: np.ndarray
    components: np.ndarray
    eigenvalues: np.ndarray
    scales: list[Scale]


def tiny_model() -> OpenFaceModel:
    """A model of two landmarks, whose files have a few hundred bytes."""
    return random_model(
        landmarks=2, modes=2, views=2, neurons=2, support=3, windows=(2, 3), components=1
    )


def random_model(
    seed: int = 0,
    *,
    landmarks: int = 10,
    modes: int = 4,
    scalings: tuple[float, ...] = (0.25, 0.5),
    views: int = 3,
    neurons: int = 3,
    support: int = 11,
    windows: tuple[int, ...] = (7, 9, 11, 15),
    components: int = 2,
) -> OpenFaceModel:
    """A random model. In views other than the first, every third landmark is invisible and empty.

    The shape is of a face's size; the components of the field are as OpenFace's, so that its
    covariance exists.
    """
    rng = np.random.default_rng(seed)
    components = components if windows else 0

    def uniform(low: float, high: float, *shape: int) -> np.ndarray:
        return rng.uniform(low, high, shape).astype(np.float32)

    n, q = landmarks, neurons
    centres = np.zeros((views, 3))
    centres[:, 1] = 20.0 * ((np.arange(views) + 1) // 2) * (-1.0) ** np.arange(views)
    visible = np.ones((views, n), bool)
    visible[1:, ::3] = False
    scales = [
        Scale(
            scaling=scaling,
            centres=np.radians(centres).astype(np.float32),
            visible=visible,
            neurons=np.where(visible, q, 0),
            confidence=visible * uniform(0.1, 0.9, views, n),
            weights=visible[..., None, None, None] * uniform(-1, 1, views, n, q, support, support),
            norm_weight=visible[..., None] * uniform(1, 20, views, n, q),
            bias=visible[..., None] * uniform(-5, 0, views, n, q),
            alpha=visible[..., None] * uniform(0, 20, views, n, q),
            beta=visible[..., None] * uniform(0, 5, views, n, components),
            components={
                window: np.stack([laplacian(window, k + 1) for k in range(components)])
                for window in windows
                if components
            },
        )
        for scaling in scalings
    ]
    mean = uniform(-70, 70, n, 3)
    modes_of_shape, _ = np.linalg.qr(rng.normal(size=(3 * n, modes)))
    eigenvalues = np.sort(uniform(1, 300, modes))[::-1]
    return OpenFaceModel(
        mean, modes_of_shape.reshape(n, 3, modes).astype(np.float32), eigenvalues, scales
    )


def laplacian(window: int, distance: int) -> np.ndarray:
    """Degrees minus adjacency of the pixels that lie `distance` apart in a row or a column."""
    y, x = np.divmod(np.arange(window**2), window)
    apart = np.abs(y[:, None] - y) + np.abs(x[:, None] - x)
    straight = (y[:, None] == y) | (x[:, None] == x)
    adjacent = ((apart == distance) & straight).astype(np.float32)
    return np.diag(adjacent.sum(axis=1)) - adjacent


def pdm_text(model: OpenFaceModel) -> str:
    n, _, m = model.components.shape
    matrices = {
        "the mean": model.mean.T.reshape(3 * n, 1),
        "the components": model.components.transpose(1, 0, 2).reshape(3 * n, m),
        "the eigenvalues": model.eigenvalues[None],
    }
    lines = []
    for name, matrix in matrices.items():
        lines += [f"# {name}", *(str(side) for side in matrix.shape), "6"]
        lines += [" ".join(f"{value:.9g}" for value in row) + " " for row in matrix]
        lines.append("")
    return "\n".join(lines)


def ccnf_file(scale: Scale, *, windows: tuple[int, ...] | None = None) -> Writer:
    """The file of a scale; `windows` that have no components are written with a count of 0."""
    file = Writer()
    file.numbers("scaling", scale.scaling)
    file.integers("views", len(scale.centres))
    for centre in scale.centres:
        degrees = np.degrees(centre.astype(np.float64))
        file.matrix("centre", degrees[:, None], "f8")
    for visible in scale.visible:
        file.matrix("visibility", visible[:, None], "i4")
    windows = tuple(scale.components) if windows is None else windows
    file.integers("windows", len(windows))
    for window in windows:
        matrices = scale.components.get(window, np.zeros((0, 1, 1)))
        file.integers("window", window)
        file.integers("count", len(matrices))
        for matrix in matrices:
            file.matrix("component", matrix, "f4")
    for at in np.ndindex(scale.visible.shape):
        _patch(file, scale, at)
    return file


def _patch(file: Writer, scale: Scale, at: tuple[int, ...]) -> None:
    support = scale.weights.shape[-1]
    file.integers("patch", 5)
    file.integers("width", support)
    file.integers("height", support)
    file.integers("neurons", int(scale.neurons[at]))
    if scale.neurons[at] == 0:
        file.integers("end of an empty patch", 0)
        return
    for q in range(scale.neurons[at]):
        file.integers("neuron", 2)
        file.integers("neuron type", 0)
        for name in ("norm_weight", "bias", "alpha"):
            file.numbers(name, getattr(scale, name)[(*at, q)])
        file.matrix("weights", scale.weights[(*at, q)], "f4")
    file.numbers("beta", *scale.beta[at])
    file.numbers("confidence", scale.confidence[at])


def write_model(folder: Path, model: OpenFaceModel, *, name: str = "clnf_general") -> Path:
    """Write the files of a model into a folder, and return its main file.

    The lists of files end without a newline, as some of OpenFace's do.
    """
    patches = folder / "patch_experts"
    for subfolder in (patches, folder / "pdms"):
        subfolder.mkdir(parents=True, exist_ok=True)
    (folder / "pdms" / "pdm.txt").write_text(pdm_text(model))
    lines = ["PDM pdms/pdm.txt", "Triangulations tris.txt"]
    for scale in model.scales:
        file = patches / f"ccnf_patches_{scale.scaling}.txt"
        file.write_bytes(ccnf_file(scale).data)
        lines.append(f"PatchesCCNF patch_experts/{file.name}")
    (folder / f"{name}.txt").write_text("\n".join(lines))
    main = folder / f"main_{name}.txt"
    part = "LandmarkDetector_part model_eye/main_eye.txt eye 0 1 2 3"
    main.write_text(f"LandmarkDetector {name}.txt\n{part}\nDetectionValidator validator.txt")
    return main
