"""How far landmarks are from those corrected by hand, and what mouths and lids say.

Errors are in % of the distance between the outer corners of the eyes.
"""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from experiments.adaptation.night import by_night, seed_of
from experiments.common import table
from experiments.training.trunk.faces import Faces, read_faces
from experiments.training.trunk.fine import fine_landmarks
from experiments.training.trunk.frame import Similarity, cut
from experiments.training.trunk.locate import Landmarks, Trained, trunk_landmarks
from jclnf.evaluation._metrics import INNER, nme, outer_eye_distance, remove_offsets
from jclnf.geometry import tight_box
from jclnf.train._faces import MIRROR_68

HEADER = {
    "mean": "NME68 mean",
    "median": "median",
    "inner": "inner 51",
    "over8": "over 8 %",
    "scatter": "own offset removed",
    "mouth": "mouth opening: error",
    "mouth_bias": "bias",
    "mouth_r": "r",
    "lid": "lid opening: error",
    "lid_bias": "bias",
    "lid_r": "r",
}


def openings(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """|62-66| of the mouth, and the mean of |37-41| and |43-47| of the lids, `(f,)` pixels."""

    def apart(a: int, b: int) -> np.ndarray:
        return np.linalg.norm(points[:, a] - points[:, b], axis=-1)

    return apart(62, 66), (apart(37, 41) + apart(43, 47)) / 2


def measures(found: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """What `HEADER` names, of landmarks `(f, 68, 2)`."""
    eyes = outer_eye_distance(truth)
    errors = nme(found, truth, eyes)
    numbers = {
        "mean": errors.mean(),
        "median": np.median(errors),
        "inner": nme(found, truth, eyes, INNER).mean(),
        "over8": 100 * np.mean(errors > 8),
        "scatter": nme(remove_offsets(found, truth), truth, eyes).mean(),
    }
    for name, a, b in zip(("mouth", "lid"), openings(found), openings(truth), strict=True):
        off = 100 * (a - b) / eyes
        numbers[name] = np.abs(off).mean()
        numbers[f"{name}_bias"] = off.mean()
        numbers[f"{name}_r"] = np.corrcoef(a / eyes, b / eyes)[0, 1]
    return {name: float(number) for name, number in numbers.items()}


def model_landmarks(name: str) -> Landmarks:
    """The landmarks that fits of a jclnf model end at; or those of a trunk in an .npz file, alone
    or as `trunk.npz+DIR` with the fine stage in a folder."""
    trunk, _, fine = name.partition("+")
    if trunk.endswith(".npz"):
        coarse = trunk_landmarks(Trained.load(Path(trunk)))
        return fine_landmarks(coarse, Path(fine)) if fine else coarse
    import jclnf

    model = jclnf.load_model(None if name == "default" else name)

    def landmarks(images: list[np.ndarray], boxes: np.ndarray) -> np.ndarray:
        found = []
        for image, box in zip(images, boxes, strict=True):
            crop = jclnf.crop(image, np.asarray(box, np.float32))
            found.append(np.asarray(jclnf.fit(model, crop.image, crop.box).landmarks) + crop.offset)
        return np.array(found, np.float64)

    return landmarks


def turned(faces: Faces, degrees: float) -> Faces:
    """The photographs turned about the middle of each box, boxes of turned landmarks disturbed as
    the upright ones are."""
    turn = np.exp(1j * np.deg2rad(degrees))
    images, points, boxes = [], [], []
    for image, p, box in zip(faces.images, faces.points, faces.boxes, strict=True):
        side = 2 * int(np.hypot(*image.shape) / 2) + 1
        height, width = image.shape
        middle = complex(width - 1, height - 1) / 2
        view = Similarity(1 / turn, middle - complex(1, 1) * (side - 1) / 2 / turn)
        images.append(cut(image, view, side))
        points.append(view.inverse()(p))
        boxes.append(_as_disturbed(p, box, points[-1]))
    return Faces(faces.names, images, np.array(points), np.array(boxes))


def mirrored(faces: Faces) -> Faces:
    images = [np.ascontiguousarray(image[:, ::-1]) for image in faces.images]
    right = np.array([image.shape[1] - 1.0 for image in images])
    points, boxes = faces.points[:, MIRROR_68].copy(), faces.boxes.copy()
    points[..., 0] = right[:, None] - points[..., 0]
    boxes[:, 0] = right - boxes[:, 0] - boxes[:, 2]
    return Faces(faces.names, images, points, boxes)


def reduced(faces: Faces, eyes: float) -> Faces:
    """The photographs reduced to an eye distance in pixels, where it is larger."""
    images, points, boxes = [], [], []
    for image, p, box in zip(faces.images, faces.points, faces.boxes, strict=True):
        size = min(1.0, eyes / np.linalg.norm(p[36] - p[45]))
        height, width = (max(1, round(n * size)) for n in image.shape)
        zoom = np.array([width / image.shape[1], height / image.shape[0]])
        images.append(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA))
        points.append((p + 0.5) * zoom - 0.5)
        boxes.append(np.concatenate([(box[:2] + 0.5) * zoom - 0.5, box[2:] * zoom]))
    return Faces(faces.names, images, np.array(points), np.array(boxes))


def lit(faces: Faces, gamma: float) -> Faces:
    levels = np.rint(255 * (np.arange(256) / 255) ** gamma).astype(np.uint8)
    return Faces(faces.names, [levels[image] for image in faces.images], faces.points, faces.boxes)


def dark(faces: Faces) -> Faces:
    """The photographs by night, from far away."""
    images = [
        by_night(image, tight_box(p), seed_of(name))
        for name, image, p in zip(faces.names, faces.images, faces.points, strict=True)
    ]
    return Faces(faces.names, images, faces.points, faces.boxes)


def covered(faces: Faces, seed: int = 0) -> Faces:
    """A fifth of each face's box behind a grey square at a random place within it."""
    images = []
    for index, (image, p) in enumerate(zip(faces.images, faces.points, strict=True)):
        rng = np.random.default_rng([seed, index])
        x, y, w, h = tight_box(p)
        side = np.sqrt(0.2 * w * h)
        left, top = np.rint([x, y] + rng.uniform(0, 1, 2) * ([w, h] - side)).astype(int)
        image = image.copy()
        image[max(top, 0) : round(top + side), max(left, 0) : round(left + side)] = 128
        images.append(image)
    return Faces(faces.names, images, faces.points, faces.boxes)


CORNER = 54
PULL = 0.15


def pulled(faces: Faces) -> Faces:
    """A corner of the mouth pulled down the face by 15 % of the eye distance, as where a side of a
    face is paralysed; what is around it follows."""
    images, points = [], faces.points.copy()
    for face, (image, p) in enumerate(zip(faces.images, faces.points, strict=True)):
        eyes = np.linalg.norm(p[36] - p[45])
        down = PULL * eyes * (p[57] - p[27]) / np.linalg.norm(p[57] - p[27])
        points[face, CORNER] += down
        y, x = np.mgrid[: image.shape[0], : image.shape[1]].astype(np.float32)
        off = np.hypot(*np.subtract([x, y], points[face, CORNER].reshape(2, 1, 1)))
        part = np.exp(-0.5 * (off / (0.2 * eyes)) ** 2).astype(np.float32)
        at = x - np.float32(down[0]) * part, y - np.float32(down[1]) * part
        images.append(cv2.remap(image, *at, cv2.INTER_LINEAR))
    return Faces(faces.names, images, points, faces.boxes)


def followed(before: np.ndarray, after: np.ndarray, faces: Faces) -> np.ndarray:
    """Which part of the pull the corner's landmark follows, `(f,)`, by the landmarks before and
    after it, `(f, 68, 2)`."""
    pull = pulled(faces).points[:, CORNER] - faces.points[:, CORNER]
    return ((after - before)[:, CORNER] * pull).sum(-1) / (pull**2).sum(-1)


def _as_disturbed(points: np.ndarray, box: np.ndarray, moved: np.ndarray) -> np.ndarray:
    low, high = points.min(0), points.max(0)
    new_low, new_high = moved.min(0), moved.max(0)
    corner = new_low + (box[:2] - low) / (high - low) * (new_high - new_low)
    return np.concatenate([corner, box[2:] / (high - low) * (new_high - new_low)])


VARIANTS = {
    "mirrored": mirrored,
    "turned by 30 degrees": lambda faces: turned(faces, 30),
    "turned by -30 degrees": lambda faces: turned(faces, -30),
    "turned by 45 degrees": lambda faces: turned(faces, 45),
    "40 px": lambda faces: reduced(faces, 40),
    "20 px": lambda faces: reduced(faces, 20),
    "gamma 0.4": lambda faces: lit(faces, 0.4),
    "gamma 2.5": lambda faces: lit(faces, 2.5),
    "a fifth covered": covered,
    "by night": dark,
}


def main(models: Sequence[str], part: str, robustness: bool) -> None:
    faces = read_faces(part)
    lines = []
    for name in models or ["default"]:
        landmarks = model_landmarks(name)
        before = landmarks(faces.images, faces.boxes)
        plain = measures(before, faces.points)
        lines.append([Path(name).name, *(f"{plain[key]:.2f}" for key in HEADER)])
        for label, change in VARIANTS.items() if robustness else ():
            changed = change(faces)
            found = measures(landmarks(changed.images, changed.boxes), changed.points)
            times = f"{found['mean']:.2f} ({found['mean'] / plain['mean']:.2f} times)"
            lines.append([label, times, *(f"{found[key]:.2f}" for key in list(HEADER)[1:])])
        if robustness:
            after = landmarks(pulled(faces).images, faces.boxes)
            low, half, high = np.percentile(followed(before, after, faces), [25, 50, 75])
            said = f"{half:.2f} of it is followed, quartiles {low:.2f} and {high:.2f}"
            lines.append(["a corner of the mouth pulled down", said, *[""] * (len(HEADER) - 1)])
    print(table([f"{part} ({len(faces)})", *HEADER.values()], lines))
