"""What is learned from: images, the faces in them that are annotated, and all others as YuNet has
them; and images without faces."""

import dataclasses
import zlib
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from experiments.common import DATA
from experiments.training.trunk.faces import held_out
from jclnf.annotations import AnnotatedFace, read_annotations
from jclnf.detect import FaceDetector, YuNetDetector
from jclnf.geometry import tight_box
from jclnf.images import read_image, read_image_file
from jclnf.tracking import overlap

TEACHER = DATA / "yunet" / "face_detection_yunet_2026may.onnx"
SURE, DOUBTFUL = 0.7, 0.3
"""Scores from which a detection of YuNet's is a face, and from which it may be one."""
SMALLEST = 8.0
"""Side in pixels of the smallest faces that YuNet is asked for."""
MISTAKEN, FACELESS = 0.4, 0.1
"""Score from which a detection beside all faces is a mistake to learn from, where YuNet has none
from the second."""
PARTS = ("train", "held out", "val", "test")
"""Of the data: "val" are the videos' people, "test" the photographs, that nothing was chosen by."""


@dataclasses.dataclass(frozen=True)
class Picture:
    """An image and its faces.

    Attributes:
        grey: `(h, w)` uint8.
        points: `(68, 2)` landmarks of the annotated face, or None.
        others: `(k, 4)` boxes of the other faces, as YuNet has them.
        doubtful: `(k, 4)` boxes of what may be faces.
        name: of the file.
    """

    grey: np.ndarray
    points: np.ndarray | None
    others: np.ndarray
    doubtful: np.ndarray
    name: str = ""

    @property
    def box(self) -> np.ndarray:
        """That of the annotated face."""
        return tight_box(self.points)


def pictures(part: str, source: str, labels: Path | None) -> list[Picture]:
    """The images of "photographs" or "faces" in a part.

    Args:
        labels: File of YuNet's boxes, which is written if it is not there; None for none.
    """
    split = {"test": "test", "val": "val"}.get(part, "train")
    annotated = read_annotations(DATA / source / "landmarks.csv", split=split)
    if part in ("train", "held out"):
        annotated = [f for f in annotated if _held_out(f.image.name, source) == (part != "train")]
    if labels is not None and not labels.exists():
        np.savez(labels, **_taught(annotated))
    boxes = {} if labels is None else dict(np.load(labels))
    nothing = np.zeros((0, 4))
    found = []
    for face in annotated:
        name = face.image.name
        others, doubtful = (boxes.get(f"{name} {w}", nothing) for w in ("others", "doubtful"))
        found.append(Picture(read_image(face.image), face.landmarks, others, doubtful, name))
    return found


def _held_out(name: str, source: str) -> bool:
    if source == "photographs":
        return held_out(name)
    return zlib.crc32(name.rsplit("_", 1)[0].encode()) % 12 == 0


def _taught(annotated: list[AnnotatedFace]) -> dict[str, np.ndarray]:
    """YuNet's boxes of all images, in the meaning of the landmarks' boxes, without those of the
    annotated faces."""
    sure, unsure = (YuNetDetector(TEACHER, min_score=s) for s in (SURE, DOUBTFUL))
    likely, all_of = [], []
    for face in annotated:
        image = read_image_file(face.image).colour
        likely.append(sure(image, min_face=SMALLEST))
        all_of.append(unsure(image, min_face=SMALLEST))
    truth = [tight_box(face.landmarks) for face in annotated]
    rule = correction(likely, truth)
    print("correction of the teacher's boxes:", np.round(rule, 4), flush=True)
    boxes = {}
    for face, some, more, own in zip(annotated, likely, all_of, truth, strict=True):
        name = face.image.name
        some, more = (corrected(b, rule) for b in (some, more))
        apart = [box for box in some if _shared(box, own) < 0.3]
        known = [own, *apart]
        rest = [box for box in more if all(_shared(box, k) < 0.5 for k in known)]
        boxes[f"{name} others"] = np.array(apart).reshape(-1, 4)
        boxes[f"{name} doubtful"] = np.array(rest).reshape(-1, 4)
    return boxes


def correction(found: list[np.ndarray], truth: list[np.ndarray]) -> np.ndarray:
    """(a, b, c, d): from boxes to the landmarks' by x + a w, y + b h, c w, d h, as medians."""
    pairs = []
    for boxes, own in zip(found, truth, strict=True):
        shared = [overlap(box, own) for box in boxes]
        if shared and max(shared) > 0.4:
            pairs.append((boxes[int(np.argmax(shared))], own))
    box, own = np.array(pairs).swapaxes(0, 1)
    shift = np.median((own[:, :2] - box[:, :2]) / box[:, 2:], axis=0)
    return np.concatenate([shift, np.median(own[:, 2:] / box[:, 2:], axis=0)])


def corrected(boxes: np.ndarray, rule: np.ndarray) -> np.ndarray:
    """Boxes `(k, 4)` by the rule of `correction`."""
    return np.concatenate([boxes[:, :2] + boxes[:, 2:] * rule[:2], boxes[:, 2:] * rule[2:]], axis=1)


def mistakes(source: str, pictures: list[Picture], file: Path) -> list[np.ndarray]:
    """For each of the images of "photographs" or "faces" the boxes `(k, 4)` of what the detector
    that ships takes for faces and is none, as far as annotation and YuNet say.

    Args:
        file: keeps them; it is written if it is not there.
    """
    if not file.exists():
        boxes = {}
        ours, theirs = FaceDetector(min_score=MISTAKEN), YuNetDetector(TEACHER, min_score=FACELESS)
        files = {f.image.name: f.image for f in read_annotations(DATA / source / "landmarks.csv")}
        for picture in pictures:
            known = [picture.box, *picture.others, *picture.doubtful]
            found = ours(picture.grey, min_face=12.0)
            beside = [b for b in found if all(_shared(b, k) < 0.25 for k in known)]
            if beside:
                likely = theirs(read_image_file(files[picture.name]).colour, min_face=SMALLEST)
                beside = [b for b in beside if all(_shared(b, other) <= 0.4 for other in likely)]
            boxes[picture.name] = np.array(beside).reshape(-1, 4)
        np.savez(file, **boxes)
    with np.load(file) as arrays:
        return [arrays[picture.name] for picture in pictures]


def _shared(a: np.ndarray, b: np.ndarray) -> float:
    """Area common to two boxes as a part of the smaller one's."""
    sides = np.minimum(a[:2] + a[2:], b[:2] + b[2:]) - np.maximum(a[:2], b[:2])
    return float(np.prod(np.maximum(sides, 0)) / min(np.prod(a[2:]), np.prod(b[2:])))


def mistakes_in(images: list[np.ndarray], file: Path) -> list[np.ndarray]:
    """The same for images without faces; no annotation and no YuNet are asked."""
    if not file.exists():
        ours = FaceDetector(min_score=MISTAKEN)
        np.savez(file, **{str(n): ours(image, min_face=12.0) for n, image in enumerate(images)})
    with np.load(file) as arrays:
        return [arrays[str(n)] for n in range(len(images))]


LEARNED_TEXTURES = (
    *("brick.png", "gravel.png", "chelsea.png", "coins.png", "page.png", "moon.png", "ihc.png"),
    *("motorcycle_left.png", "hubble_deep_field.jpg", "color.png"),
)
"""Images without faces that scikit-image brings, to learn from; others are for the evaluation."""


def textures(names: tuple[str, ...] = LEARNED_TEXTURES) -> list[np.ndarray]:
    """Grey images of scikit-image's."""
    import skimage.data

    folder = Path(skimage.data.__file__).parent
    return [read_image(folder / name) for name in names]


WITHOUT_FACES = Path(__file__).with_name("without_faces.txt")
"""Names of photographs in which somebody looked for faces of people and animals: none has any."""
_LONGEST = 900
"""Longer side in pixels to which these are reduced."""


def photographs_without(folder: Path) -> list[np.ndarray]:
    """Grey images of the photographs of `WITHOUT_FACES` in a folder."""
    found = []
    for name in WITHOUT_FACES.read_text().splitlines():
        grey = read_image(folder / name)
        part = _LONGEST / max(grey.shape)
        if part < 1:
            size = [max(1, round(n * part)) for n in grey.shape[::-1]]
            grey = cv2.resize(grey, size, interpolation=cv2.INTER_AREA)
        found.append(grey)
    return found


_LETTERS = "".join(map(chr, (*range(33, 127), *range(0xA1, 0x17F), *range(0x391, 0x44F))))
_SIGNS = "".join(map(chr, (*range(0x2190, 0x21FF), *range(0x2600, 0x2639), *range(0x263B, 0x26FF))))


def lettered(count: int, seed: int) -> Iterator[np.ndarray]:
    """Grey images of words, numbers and badges in the fonts that Matplotlib brings."""
    import matplotlib
    from PIL import Image, ImageDraw, ImageFont

    fonts = sorted((Path(matplotlib.get_data_path()) / "fonts" / "ttf").glob("DejaVu*.ttf"))
    for number in range(count):
        rng = np.random.default_rng([seed, number, 1])
        w, h = rng.integers(200, 500, 2).tolist()
        image = Image.new("L", (w, h), int(rng.integers(256)))
        draw = ImageDraw.Draw(image)
        size = float(np.exp(rng.uniform(np.log(14), np.log(150))))
        letters = _SIGNS if rng.random() < 0.2 else _LETTERS[: 94 if rng.random() < 0.7 else None]
        font = ImageFont.truetype(str(fonts[rng.integers(len(fonts))]), size)
        y = float(rng.uniform(-0.5, 0.5) * size)
        while y < h:
            x = float(rng.uniform(-1, 0) * size)
            while x < w:
                word = "".join(rng.choice(list(letters), int(rng.integers(1, 8))))
                ink = int(rng.integers(256))
                left, top, right, bottom = draw.textbbox((x, y), word, font=font)
                kind = rng.random()
                if kind < 0.15:
                    draw.rounded_rectangle(
                        (left - size / 4, top - size / 4, right + size / 4, bottom + size / 4),
                        float(rng.uniform(0, size / 2)),
                        fill=int(rng.integers(256)) if rng.random() < 0.6 else None,
                        outline=int(rng.integers(256)),
                        width=max(1, round(size / 12)),
                    )
                elif kind < 0.3:
                    word = word[:3]
                    left, top, right, bottom = draw.textbbox((x, y), word, font=font)
                    r = 0.6 * max(right - left, bottom - top, size / 2)
                    cx, cy = (left + right) / 2, (top + bottom) / 2
                    for part in (1.0, 0.8)[: rng.integers(1, 3)]:
                        draw.ellipse(
                            (cx - part * r, cy - part * r, cx + part * r, cy + part * r),
                            fill=int(rng.integers(256)),
                            outline=int(rng.integers(256)),
                        )
                draw.text((x, y), word, fill=ink, font=font)
                x = right + float(rng.uniform(0.2, 1.5)) * size
            y += float(rng.uniform(1.1, 2.0)) * size
        yield np.asarray(image)


def drawn(count: int, seed: int) -> Iterator[np.ndarray]:
    """Grey images of text, shapes and patterns, which remind of faces only by chance."""
    for number in range(count):
        yield _drawing(np.random.default_rng([seed, number]))


def _drawing(rng: np.random.Generator) -> np.ndarray:
    h, w = rng.integers(200, 500, 2)
    image = np.full((h, w), rng.integers(0, 256), np.uint8)
    kind = rng.integers(5)
    if kind == 0:  # text
        size, ink = float(np.exp(rng.uniform(-1.2, 1.8))), int(rng.integers(0, 256))
        thick = max(1, round(size * rng.uniform(0.5, 6)))
        font = int(rng.choice([cv2.FONT_HERSHEY_SIMPLEX, cv2.FONT_HERSHEY_COMPLEX, 7, 4]))
        for y in range(20, h + 20, int(30 * size) + 4):
            letters = "".join(chr(c) for c in rng.integers(33, 127, 80))
            cv2.putText(image, letters, (int(rng.integers(-40, 10)), y), font, size, ink, thick)
    elif kind == 1:  # shapes
        for _ in range(rng.integers(5, 60)):
            centre, ink = rng.integers(0, (w, h)).tolist(), int(rng.integers(0, 256))
            axes = rng.integers(2, 60, 2).tolist()
            thick = int(rng.choice([-1, 1, 3]))
            cv2.ellipse(image, centre, axes, float(rng.uniform(0, 180)), 0, 360, ink, thick)
    elif kind == 2:  # smooth noise of several sizes
        total = np.zeros((h, w), np.float32)
        for cell in (4, 16, 64):
            noise = rng.standard_normal((h // cell + 2, w // cell + 2)).astype(np.float32)
            total += cell**0.5 * cv2.resize(noise, (w, h), interpolation=cv2.INTER_CUBIC)
        image = np.clip(128 + 12 * total, 0, 255).astype(np.uint8)
    elif kind == 3:  # gratings
        y, x = np.mgrid[:h, :w].astype(np.float32)
        total = np.zeros((h, w), np.float32)
        for _ in range(rng.integers(1, 4)):
            angle, period = rng.uniform(0, np.pi), rng.uniform(3, 60)
            total += np.sin((x * np.cos(angle) + y * np.sin(angle)) * (2 * np.pi / period))
        image = np.clip(128 + 50 * total, 0, 255).astype(np.uint8)
    else:  # discs with marks in them, but not those of a face
        for _ in range(rng.integers(2, 14)):
            x, y = rng.integers(0, (w, h)).tolist()
            r, light = int(rng.integers(10, 90)), int(rng.integers(60, 256))
            cv2.ellipse(image, (x, y), (r, int(r * rng.uniform(0.8, 1.3))), 0, 0, 360, light, -1)
            for _ in range(rng.integers(0, 6)):
                mark = (rng.normal(0, 0.5 * r, 2) + (x, y)).astype(int).tolist()
                axes = np.maximum(rng.uniform(0.05, 0.3, 2) * r, 1).astype(int).tolist()
                ink = int(rng.integers(0, 120))
                cv2.ellipse(image, mark, axes, float(rng.uniform(0, 180)), 0, 360, ink, -1)
    return image


def things(count: int, seed: int) -> Iterator[np.ndarray]:
    """Grey images of shaded bodies with marks in rings, rows or anywhere: dials, buttons, sockets,
    wheels, boxes."""
    for number in range(count):
        yield _things(np.random.default_rng([seed, number, 2]))


def _things(rng: np.random.Generator) -> np.ndarray:
    h, w = rng.integers(200, 500, 2).tolist()
    y, x = np.mgrid[:h, :w].astype(np.float32)
    cell = int(rng.choice([3, 9, 30]))
    noise = rng.standard_normal((h // cell + 2, w // cell + 2)).astype(np.float32)
    image = rng.uniform(20, 235) + rng.uniform(0, 30) * cv2.resize(noise, (w, h))
    for _ in range(rng.integers(1, 9)):
        middle, r = rng.uniform(0, (w, h)), float(np.exp(rng.uniform(np.log(10), np.log(110))))
        sides = r * rng.uniform(0.7, 1.3, 2)
        mask = np.zeros((h, w), np.uint8)
        turn = float(rng.uniform(0, 180))
        if rng.random() < 0.5:
            cv2.ellipse(mask, middle.astype(int).tolist(), sides.astype(int).tolist(), turn, 0, 360,
                        255, -1)  # fmt: skip
        else:
            angles = np.deg2rad(turn) + np.linspace(0, 2 * np.pi, int(rng.integers(3, 9)))[:-1]
            corners = middle + sides * np.stack([np.cos(angles), np.sin(angles)], axis=1)
            cv2.fillPoly(mask, [corners.astype(np.int32)], 255)
        light, slope = rng.uniform(40, 240), rng.normal(0, 0.6 * 60 / r, 2)
        shade = light + slope[0] * (x - middle[0]) + slope[1] * (y - middle[1])
        if rng.random() < 0.4:
            distance = ((x - middle[0]) / sides[0]) ** 2 + ((y - middle[1]) / sides[1]) ** 2
            shade -= rng.uniform(-30, 60) * distance
        image = np.where(mask > 0, shade, image)
        canvas = np.zeros((h, w), np.uint8)
        for at in _places(rng) * sides + middle:
            axes = np.maximum(rng.uniform(0.04, 0.22, 2) * r, 1).astype(int).tolist()
            cv2.ellipse(canvas, at.astype(int).tolist(), axes, float(rng.uniform(0, 180)), 0, 360,
                        255, int(rng.choice([-1, -1, 1, 2])))  # fmt: skip
        image = np.where(canvas > 0, light + rng.choice([-1, 1]) * rng.uniform(30, 150), image)
    image = np.clip(image, 0, 255).astype(np.uint8)
    return cv2.GaussianBlur(image, (0, 0), rng.uniform(0.5, 3)) if rng.random() < 0.6 else image


def _places(rng: np.random.Generator) -> np.ndarray:
    """Where marks are in a body, `(k, 2)`, in halves of its sides."""
    count, kind = int(rng.integers(1, 10)), rng.random()
    if kind < 0.3:
        angles = rng.uniform(0, 2 * np.pi) + np.arange(count) * (2 * np.pi / count)
        return rng.uniform(0.3, 0.8) * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    if kind < 0.5:
        across, down = rng.integers(1, 4, 2)
        rows = np.mgrid[:across, :down].reshape(2, -1).T - np.array([across - 1, down - 1]) / 2
        return rng.uniform(0.25, 0.5, 2) * rows
    return rng.normal(0, 0.4, (count, 2))
