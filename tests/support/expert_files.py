"""Writes SVR and CEN experts with random weights, in the formats of OpenFace's files."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from support.openface_files import OpenFaceModel, Writer, pdm_text, random_model


@dataclass
class SVRFile:
    """One file of SVR experts, of each patch the first `count[v, i]`; weights are `[..., y, x]`."""

    scaling: float
    centres: np.ndarray
    visible: np.ndarray
    count: np.ndarray
    modalities: tuple[int, ...]
    confidence: np.ndarray
    slope: np.ndarray
    bias: np.ndarray
    weights: np.ndarray


def random_svr(
    seed: int = 0,
    *,
    landmarks: int = 10,
    scaling: float = 0.25,
    support: int = 11,
    modalities: tuple[int, ...] = (0, 1),
) -> SVRFile:
    """Random experts of three views, the last two profiles without every third landmark."""
    rng = np.random.default_rng(seed)
    visible = np.ones((3, landmarks), bool)
    visible[1:, ::3] = False
    shape = (3, landmarks, len(modalities))
    return SVRFile(
        scaling=scaling,
        centres=np.array([[0, 0, 0], [0, -60, 0], [0, 60, 0]], float),
        visible=visible,
        count=np.full((3, landmarks), len(modalities)),
        modalities=modalities,
        confidence=rng.uniform(0.1, 0.9, shape).round(6),
        slope=rng.uniform(4, 20, shape).round(6),
        bias=rng.uniform(-6, -3, shape).round(6),
        weights=rng.uniform(-0.2, 0.2, (*shape, support, support)).round(6),
    )


def svr_text(file: SVRFile) -> str:
    support = file.weights.shape[-1]
    lines = ["# scaling", f"{file.scaling:.6f}", "# views", str(len(file.centres))]
    for centre in file.centres:
        lines += ["3", "1", "6", *(f"{angle:.9f} " for angle in centre)]
    lines.append("# visibility")
    for visible in file.visible:
        lines += [str(len(visible)), "1", "4", *(f"{int(flag)} " for flag in visible)]
    lines.append("# patches")
    for at in np.ndindex(file.visible.shape):
        lines.append(f"3 {support} {support} {file.count[at]}")
        for e in range(file.count[at]):
            values = [getattr(file, name)[(*at, e)] for name in ("confidence", "slope", "bias")]
            numbers = [*values, support, support, 5, *file.weights[(*at, e)].T.ravel()]
            lines.append(f"2 {file.modalities[e]} " + " ".join(f"{x:.9g}" for x in numbers))
    return "\n".join(lines) + "\n"


@dataclass
class CENFile:
    """One file of CEN experts: by view and landmark the layers (activation, biases, weights)."""

    scaling: float
    centres: np.ndarray
    visible: np.ndarray
    mirror_landmarks: np.ndarray
    mirror_views: np.ndarray
    support: int
    networks: dict[tuple[int, ...], list[tuple[int, np.ndarray, np.ndarray]]]
    confidence: np.ndarray


def random_cen(
    seed: int = 0,
    *,
    landmarks: int = 6,
    scaling: float = 0.25,
    support: int = 11,
    hidden: tuple[int, ...] = (5, 3),
) -> CENFile:
    """Random experts: those of the frontal view's first half, and of the left profile.

    Landmark `i` mirrors `landmarks - 1 - i`; the profiles do not show their last two landmarks,
    and the first two.
    """
    rng = np.random.default_rng(seed)
    visible = np.ones((3, landmarks), bool)
    visible[1, -2:] = visible[2, :2] = False
    networks = {}
    own = [(0, i) for i in range((landmarks + 1) // 2)] + [(1, i) for i in range(landmarks - 2)]
    for at in own:
        layers, inputs = [], support**2 + 1
        for layer, outputs in enumerate((*hidden, 1)):
            activation = 2 if layer < len(hidden) else 0
            weights = rng.standard_normal((outputs, inputs)) * (2 if layer == 0 else 1)
            layers.append((activation, rng.standard_normal(outputs) * 0.1, weights))
            inputs = outputs
        networks[at] = layers
    return CENFile(
        scaling=scaling,
        centres=np.array([[0, 0, 0], [0, -60, 0], [0, 60, 0]], float),
        visible=visible,
        mirror_landmarks=np.arange(landmarks)[::-1],
        mirror_views=np.array([0, 2, 1]),
        support=support,
        networks=networks,
        confidence=rng.uniform(0.3, 0.7, (3, landmarks)),
    )


def cen_file(cen: CENFile, *, dtype: str = "f8") -> Writer:
    file = Writer()
    file.numbers("scaling", cen.scaling)
    file.integers("views", len(cen.centres))
    for centre in cen.centres:
        file.matrix("centre", centre[:, None], "f8")
    for visible in cen.visible:
        file.matrix("visibility", visible[:, None], "i4")
    file.matrix("mirror landmarks", cen.mirror_landmarks[None], "i4")
    file.matrix("mirror views", cen.mirror_views[None], "i4")
    for at in np.ndindex(cen.visible.shape):
        layers = cen.networks.get(at, [])
        file.integers("patch", 6)
        file.integers("width", cen.support)
        file.integers("height", cen.support)
        file.integers("layers", len(layers))
        for activation, bias, weights in layers:
            file.integers("activation", activation)
            file.matrix("bias", bias[:, None], dtype)
            file.matrix("weights", weights, dtype)
        file.numbers("confidence", cen.confidence[at])
    return file


def write_other_model(
    folder: Path, model: OpenFaceModel, keyword: str, files: dict[str, bytes], *, name: str
) -> Path:
    """Write a model whose experts are `files`, in the order of scales; return its main file."""
    for subfolder in (folder / "patch_experts", folder / "pdms"):
        subfolder.mkdir(parents=True, exist_ok=True)
    (folder / "pdms" / "pdm.txt").write_text(pdm_text(model))
    lines = ["PDM pdms/pdm.txt"]
    for file, content in files.items():
        (folder / "patch_experts" / file).write_bytes(content)
        lines.append(f"{keyword} patch_experts/{file}")
    (folder / f"{name}.txt").write_text("\n".join(lines))
    main = folder / f"main_{name}.txt"
    main.write_text(f"LandmarkDetector {name}.txt\n")
    return main


def write_svr(folder: Path, *files: SVRFile) -> Path:
    """Write a model with SVR experts, one file a scale; return its main file."""
    contents = {f"svr_{k}.txt": svr_text(file).encode() for k, file in enumerate(files)}
    model = random_model(landmarks=files[0].visible.shape[1])
    return write_other_model(folder, model, "PatchesIntensity", contents, name="clm_general")


def write_cen(folder: Path, *files: CENFile) -> Path:
    """Write a model with CEN experts, one file a scale; return its main file."""
    contents = {f"cen_{k}.dat": bytes(cen_file(file).data) for k, file in enumerate(files)}
    model = random_model(landmarks=files[0].visible.shape[1])
    return write_other_model(folder, model, "PatchesCEN", contents, name="ceclm_general")
