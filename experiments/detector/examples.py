"""Crops to learn from: faces of all sizes, turned, in other light, hidden in part, many or none.

A crop is one view of an image, or a mosaic of several: so there are many small faces in one, and
each borders on what it never bordered on. Other places of the same images are what has no face.
"""

import dataclasses

import cv2
import numpy as np

from experiments.detector.loss import DOUBTFUL, FACE, FIELDS
from experiments.detector.pictures import Picture
from experiments.training.trunk.augment import Example

SIDE = 256
LABELS = 32
"""Of a crop, at most."""
SEEN, GUESSED = 0.6, 0.25
"""Parts of a box within its tile from which it is a face, and from which it may be one."""
SMALLEST = 9.0
"""Side in pixels under which a face may be found or not."""
MOSAICS = ((1, 0.5, 36, 235), (2, 0.24, 20, 115), (3, 0.16, 13, 62), (4, 0.10, 10, 44))
"""Tiles along a side, how often, and the least and largest side of a face."""
HARD = 0.6
"""Of the places beside faces, how many are such that a detector took for faces, if there are."""
UPRIGHT = 30.0
"""Degrees up to which the teacher's boxes still are right when an image is turned."""


@dataclasses.dataclass(frozen=True)
class Source:
    """A picture and reduced copies of it, each of half the side of the one before."""

    picture: Picture
    levels: tuple[np.ndarray, ...]

    @classmethod
    def of(cls, picture: Picture) -> "Source":
        levels = [picture.grey]
        while min(levels[-1].shape) > 40:
            h, w = levels[-1].shape
            size = ((w + 1) // 2, (h + 1) // 2)
            levels.append(cv2.resize(levels[-1], size, interpolation=cv2.INTER_AREA))
        return cls(picture, tuple(levels))


class Examples:
    """Makes examples.

    Args:
        sources: with an annotated face each.
        empty: without faces.
        hard: boxes `(4,)` in sources of either kind that a detector took for faces.
    """

    def __init__(
        self,
        sources: list[Source],
        empty: list[Source],
        hard: list[tuple[Source, np.ndarray]] | None = None,
    ) -> None:
        self.sources = sources
        self.empty = empty
        self.hard = hard or []

    def __call__(self, index: int, rng: np.random.Generator) -> Example:
        """A crop `(SIDE, SIDE)` uint8 that shows a source, and labels `(LABELS, FIELDS)`."""
        image = np.full((SIDE, SIDE), rng.integers(256), np.uint8)
        if rng.random() < 0.1:
            self._place(image, self._any_empty(rng), (0, 0, SIDE, SIDE), 60.0, rng)
            return Example(worsened(image, rng), np.zeros((LABELS, FIELDS)))
        count, _, least, most = MOSAICS[rng.choice(4, p=[share for _, share, _, _ in MOSAICS])]
        labels: list[list[float]] = []
        edges = [self._edges(count, rng) for _ in range(2)]
        for i, (y0, y1) in enumerate(zip(edges[0], edges[0][1:], strict=False)):
            for j, (x0, x1) in enumerate(zip(edges[1], edges[1][1:], strict=False)):
                size = float(np.exp(rng.uniform(np.log(least), np.log(most))))
                chance = rng.random()
                first = i == j == 0
                if chance < 0.08 and not first:
                    source = self._any_empty(rng)
                elif first:
                    source = self.sources[index]
                else:
                    source = self.sources[rng.integers(len(self.sources))]
                elsewhere = chance > (0.82 if first else 0.78)
                box = None
                if self.hard and elsewhere and rng.random() < HARD:
                    source, box = self.hard[rng.integers(len(self.hard))]
                tile = (x0, y0, x1, y1)
                labels += self._place(image, source, tile, size, rng, elsewhere, box)
        for label in labels:
            if label[4] == FACE and rng.random() < 0.16:
                self._hide(image, label, rng)
        chosen = [labels[k] for k in rng.permutation(len(labels))[:LABELS]]
        out = np.zeros((LABELS, FIELDS))
        out[: len(chosen)] = np.reshape(chosen, (-1, FIELDS))
        return Example(worsened(image, rng), out)

    def _any_empty(self, rng: np.random.Generator) -> Source:
        return self.empty[rng.integers(len(self.empty))]

    @staticmethod
    def _edges(count: int, rng: np.random.Generator) -> list[int]:
        even = np.arange(1, count) + rng.uniform(-0.15, 0.15, count - 1)
        return [0, *np.rint(even * SIDE / count).astype(int).tolist(), SIDE]

    def _place(
        self,
        image: np.ndarray,
        source: Source,
        tile: tuple[int, int, int, int],
        size: float,
        rng: np.random.Generator,
        elsewhere: bool = False,
        box: np.ndarray | None = None,
    ) -> list[list[float]]:
        """Fill a tile of the image with a view in which the annotated face, or the box if there is
        one, has a size, or of another place; return the labels of all faces that are seen."""
        x0, y0, x1, y1 = tile
        picture = source.picture
        h, w = picture.grey.shape
        if box is not None:
            middle, zoom = box[:2] + box[2:] / 2, size / float(np.sqrt(np.prod(box[2:])))
        elif picture.points is None:
            middle = np.array([rng.uniform(0, w), rng.uniform(0, h)])
            zoom = float(np.exp(rng.uniform(np.log(0.3), np.log(1.6))))
        else:
            low, high = picture.points.min(0), picture.points.max(0)
            middle, zoom = (low + high) / 2, size / float(np.sqrt(np.prod(high - low)))
            if elsewhere:
                zoom = float(np.exp(rng.uniform(np.log(zoom / 2), np.log(max(zoom, 1.0)))))
                middle = np.array([rng.uniform(0, w), rng.uniform(0, h)])
        degrees = rng.normal(0, 12) if rng.random() < 0.65 else rng.uniform(-68, 68)
        stretch = float(np.exp(rng.normal(0, 0.06)))
        cos, sin = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
        mirror = -1.0 if rng.random() < 0.5 else 1.0
        turn = zoom * np.array([[cos, -sin], [sin, cos]])
        turn = turn @ np.diag([mirror / stretch, stretch])
        # Anywhere in the tile, mostly whole.
        room = np.maximum(np.array([x1 - x0, y1 - y0]) - size, 0.15 * size)
        at = np.array([x0 + x1, y0 + y1]) / 2 + rng.uniform(-0.55, 0.55, 2) * room
        rows = None
        if picture.points is not None and abs(degrees) < 40 and rng.random() < 0.15:
            rows = _childlike(picture.points, h, rng)
            middle = np.array([middle[0], np.interp(middle[1], *rows)])
        shift = at - turn @ middle
        level = 0
        while level + 1 < len(source.levels) and zoom * 2 ** (level + 1) <= 1.2:
            level += 1
        copy = source.levels[level]
        across, down = w / copy.shape[1], h / copy.shape[0]
        if rows is not None:
            where = np.arange(copy.shape[0]) * down + (down - 1) / 2
            taken = (np.interp(where, rows[1], rows[0]) - (down - 1) / 2) / down
            copy = copy[np.clip(np.rint(taken), 0, len(copy) - 1).astype(int)]
        matrix = np.concatenate([turn @ np.diag([across, down]), shift[:, None]], axis=1)
        matrix[:, 2] += turn @ [(across - 1) / 2, (down - 1) / 2] - (x0, y0)
        border = cv2.BORDER_REPLICATE if rng.random() < 0.5 else cv2.BORDER_CONSTANT
        size_of = (x1 - x0, y1 - y0)
        colour = float(rng.integers(256)) if rng.random() < 0.5 else 0.0
        view = cv2.warpAffine(copy, matrix, size_of, borderMode=border, borderValue=colour)
        if rng.random() < 0.3:
            view = cv2.convertScaleAbs(view, alpha=rng.uniform(0.6, 1.4), beta=rng.uniform(0, 30))
        image[y0:y1, x0:x1] = view

        labels = []

        def moved(points: np.ndarray) -> np.ndarray:
            if rows is not None:
                points = np.stack([points[:, 0], np.interp(points[:, 1], *rows)], axis=1)
            return points @ turn.T + shift

        def add(box: np.ndarray, kind: int, trust: float, roll: tuple[float, float]) -> None:
            label = _label(box, kind, trust, roll, tile)
            if label:
                labels.append(label)

        if picture.points is not None:
            points = moved(picture.points)
            low, high = points.min(0), points.max(0)
            eyes = points[42:48].mean(0) - points[36:42].mean(0)
            eyes = mirror * eyes / np.hypot(*eyes)
            add(np.concatenate([low, high - low]), FACE, 1.0, (float(eyes[1]), float(eyes[0])))
        for boxes, kind in ((picture.others, FACE), (picture.doubtful, DOUBTFUL)):
            for x, y, bw, bh in boxes:
                ends = moved(np.array([[x + bw / 2, y], [x + bw / 2, y + bh]]))
                sides = moved(np.array([[x, y + bh / 2], [x + bw, y + bh / 2]]))
                # The upright box of the ellipse in the turned box.
                half = np.sqrt((sides[1] - sides[0]) ** 2 + (ends[1] - ends[0]) ** 2)
                low = (ends[0] + ends[1]) / 2 - half / 2
                trust = 0.4 if abs(degrees) < UPRIGHT else 0.0
                add(np.concatenate([low, half]), kind, trust, (0.0, 0.0))
        return labels

    def _hide(self, image: np.ndarray, label: list[float], rng: np.random.Generator) -> None:
        """Lay something over a part of a face."""
        x, y, w, h = label[:4]
        size = rng.uniform(0.25, 0.7, 2) * (w, h)
        low = np.array([x, y]) + rng.uniform(-0.6, 0.6, 2) * (w, h) - size / 2
        left, top = np.maximum(np.rint(low).astype(int), 0)
        right, bottom = np.minimum(np.rint(low + size).astype(int), SIDE)
        if right <= left or bottom <= top:
            return
        kind = rng.random()
        if kind < 0.35:
            image[top:bottom, left:right] = rng.integers(256)
        elif kind < 0.7:
            centre = ((left + right) // 2, (top + bottom) // 2)
            axes = (int(right - left) // 2 + 1, int(bottom - top) // 2 + 1)
            shade = int(rng.integers(256))
            cv2.ellipse(
                image, tuple(map(int, centre)), axes, rng.uniform(0, 180), 0, 360, shade, -1
            )
        else:
            copy = self._any_empty(rng).levels[0]
            ph, pw = min(bottom - top, copy.shape[0]), min(right - left, copy.shape[1])
            py, px = rng.integers(copy.shape[0] - ph + 1), rng.integers(copy.shape[1] - pw + 1)
            image[top : top + ph, left : left + pw] = copy[py : py + ph, px : px + pw]


def _childlike(
    points: np.ndarray, height: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of an image, and where they go: the forehead larger, what is under the eyes smaller."""
    brows, eyes, chin = points[17:27, 1].min(), points[36:48, 1].mean(), points[8, 1]
    face = max(chin - brows, 1.0)
    larger, smaller = rng.uniform(1.0, 1.5), rng.uniform(0.72, 0.95)
    old = np.array([brows - 0.6 * face, brows, eyes, max(chin, eyes + 1)])
    steps = np.diff(old) * [larger, 1.0, smaller]
    new = np.concatenate([[old[0]], old[0] + np.cumsum(steps)])
    old = np.concatenate([[old[0] - 2.0 * height], old, [old[-1] + 2.0 * height]])
    new = np.concatenate([[new[0] - 2.0 * height], new, [new[-1] + 2.0 * height]])
    return old, new


def _label(
    box: np.ndarray,
    kind: int,
    trust: float,
    roll: tuple[float, float],
    tile: tuple[int, int, int, int],
) -> list[float] | None:
    """The label of a box x, y, w, h of which a tile is seen; None if too little of it is."""
    low, high = np.maximum(box[:2], tile[:2]), np.minimum(box[:2] + box[2:], tile[2:])
    seen = np.prod(np.maximum(high - low, 0)) / np.prod(box[2:])
    if seen < GUESSED:
        return None
    if seen < SEEN or np.sqrt(np.prod(box[2:])) < SMALLEST:
        kind = DOUBTFUL
    return [*(box[:2] + box[2:] / 2), *box[2:], kind, trust, *roll]


_LEVELS = np.arange(256, dtype=np.float32)


def worsened(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A crop as other cameras and other light would show it. Each change has its own chance."""
    if rng.random() < 0.12:
        factor = rng.uniform(0.45, 0.9)
        small = cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
        image = cv2.resize(small, (SIDE, SIDE), interpolation=cv2.INTER_LINEAR)
    if rng.random() < 0.15:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.4, 1.6))
    elif rng.random() < 0.06:
        kernel = np.zeros((9, 9), np.float32)
        end = 4 * np.array([np.cos(a := rng.uniform(0, np.pi)), np.sin(a)])
        one, other = np.rint(4 - end).astype(int), np.rint(4 + end).astype(int)
        cv2.line(kernel, one.tolist(), other.tolist(), 1.0)
        image = cv2.filter2D(image, -1, kernel / kernel.sum())
    if rng.random() < 0.7:
        gamma = np.exp(np.clip(rng.normal(0, 0.4), -0.9, 0.9))
        gain = np.exp(rng.normal(-0.1, 0.3))
        lift = rng.normal(0, 15)
        if rng.random() < 0.08:
            gain *= rng.uniform(0.2, 0.6)
        table = 255 * (_LEVELS / 255) ** gamma * gain + lift
        image = cv2.LUT(image, np.clip(table, 0, 255).astype(np.uint8))
    if rng.random() < 0.15:
        turn, strength = rng.uniform(0, 2 * np.pi), rng.uniform(0.2, 0.8)
        along = np.linspace(-1, 1, SIDE, dtype=np.float32)
        x, y = along * np.float32(np.cos(turn)), along * np.float32(np.sin(turn))
        light = 1 + np.float32(strength) * (x + y[:, None])
        image = np.clip(image * light, 0, 255).astype(np.uint8)
    if rng.random() < 0.25:
        cv2.setRNGSeed(int(rng.integers(1 << 30)))
        noise = np.empty(image.shape, np.int16)
        cv2.randn(noise, 0, float(np.exp(rng.uniform(np.log(1), np.log(18)))))
        image = cv2.add(image, noise, dtype=cv2.CV_8U)
    if rng.random() < 0.2:
        quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(12, 80))]
        image = cv2.imdecode(cv2.imencode(".jpg", image, quality)[1], cv2.IMREAD_GRAYSCALE)
    return image
