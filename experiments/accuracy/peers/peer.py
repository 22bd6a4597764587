"""Landmarks by dlib and by MediaPipe, in a Python of its own that needs nothing of this project.

    python peer.py FACES.json

See `serve` for what it reads and answers.
"""

import json
import sys
import time
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import cv2
import numpy as np

MESH_MARGIN = 1.5
"""What MediaPipe enlarges the extent of a mesh by, to the square that it looks at next."""

GRAPH = """
input_stream: "image"
input_stream: "roi"
output_stream: "landmarks"
node {
  calculator: "ConstantSidePacketCalculator"
  output_side_packet: "PACKET:with_attention"
  options {
    [mediapipe.ConstantSidePacketCalculatorOptions.ext] { packet { bool_value: USED } }
  }
}
node {
  calculator: "FaceLandmarkCpu"
  input_side_packet: "WITH_ATTENTION:with_attention"
  input_stream: "IMAGE:image"
  input_stream: "ROI:roi"
  output_stream: "LANDMARKS:landmarks"
}
"""
"""MediaPipe's own way from a region of interest to a mesh, without its detector."""


class Method(Protocol):
    """A way from an image and a box to landmarks."""

    def read(self, path: str) -> Any:
        """An image, as `find` takes it."""

    def find(self, image: Any, box: np.ndarray) -> np.ndarray:
        """Landmarks `(68, 2)`, pixels, of the face in a box (x, y, w, h) around them."""


class Square(NamedTuple):
    """What a method looks at, pixels."""

    x: float
    y: float
    """Of its middle."""
    side: float


def beside(box: np.ndarray, adjustment: Iterable[float]) -> Square:
    """The square beside a box that is tight around the landmarks.

    Args:
        box: x, y, w, h.
        adjustment: how far its middle is to the right and down, and its side, in mean sides.
    """
    x, y, w, h = box
    right, down, side = ((w + h) / 2 * part for part in adjustment)
    return Square(x + w / 2 + right, y + h / 2 + down, side)


def adjustment(squares: Iterable[list[Square]], boxes: np.ndarray) -> tuple[list[float], int]:
    """What `beside` has to do to give what a detector does: medians over the faces that it found,
    and their number."""
    found = []
    for candidates, (x, y, w, h) in zip(squares, boxes, strict=True):
        size = (w + h) / 2
        off = [np.array([s.x - x - w / 2, s.y - y - h / 2, s.side]) / size for s in candidates]
        nearest = min(off, key=lambda o: np.hypot(*o[:2]), default=None)
        if nearest is not None and np.hypot(*nearest[:2]) < 0.5:
            found.append(nearest)
    return np.median(found, axis=0).tolist(), len(found)


def in_colour(path: str) -> np.ndarray:
    """RGB."""
    return cv2.cvtColor(cv2.imread(path), cv2.COLOR_BGR2RGB)


class Dlib:
    """dlib's regression trees, from the box that its own detector would find."""

    read = staticmethod(in_colour)

    def __init__(self) -> None:
        import dlib

        folder = find_spec("face_recognition_models").submodule_search_locations[0]
        self._predict = dlib.shape_predictor(
            f"{folder}/models/shape_predictor_68_face_landmarks.dat"
        )
        self._detect, self._rectangle = dlib.get_frontal_face_detector(), dlib.rectangle
        self._adjustment = (0.0, 0.0, 1.0)

    def learn(self, images: list[Any], boxes: np.ndarray, _points: np.ndarray) -> dict[str, Any]:
        squares = (
            [
                Square((r.left() + r.right()) / 2, (r.top() + r.bottom()) / 2, r.width())
                for r in self._detect(image)
            ]
            for image in images
        )
        self._adjustment, count = adjustment(squares, boxes)
        return {"box": self._adjustment, "found": count}

    def find(self, image: np.ndarray, box: np.ndarray) -> np.ndarray:
        at = beside(box, self._adjustment)
        left, top = at.x - at.side / 2, at.y - at.side / 2
        corners = (round(v) for v in (left, top, left + at.side, top + at.side))
        shape = self._predict(image, self._rectangle(*corners))
        return np.array([(shape.part(i).x, shape.part(i).y) for i in range(68)], float)


class Mesh:
    """MediaPipe's network, from the region that it looks at once it has found a face.

    Args:
        attention: whether eyes and lips are refined (`refine_landmarks` of its Face Mesh).
    """

    read = staticmethod(in_colour)

    def __init__(self, attention: bool) -> None:
        import mediapipe as mp
        from mediapipe.framework.formats import rect_pb2
        from mediapipe.python.solution_base import SolutionBase

        self._whole = mp.solutions.face_mesh.FaceMesh
        self._region = rect_pb2.NormalizedRect
        self._graph = SolutionBase(graph_config=GRAPH.replace("USED", str(attention).lower()))
        self._adjustment = (0.0, 0.0, MESH_MARGIN)
        self._points = np.arange(68)

    def learn(self, images: list[Any], boxes: np.ndarray, points: np.ndarray) -> dict[str, Any]:
        """Also the points of the mesh that are nearest to those of the 68-point scheme: for each
        landmark the one with the least mean distance."""
        with self._whole(static_image_mode=True, max_num_faces=4) as whole:
            squares = [
                [
                    self._next(self._pixels(mesh, image))
                    for mesh in whole.process(image).multi_face_landmarks or []
                ]
                for image in images
            ]
        self._adjustment, count = adjustment(squares, boxes)
        eyes = np.linalg.norm(points[:, 36] - points[:, 45], axis=1)
        total, seen = 0.0, 0
        for image, box, wanted, eye in zip(images, boxes, points, eyes, strict=True):
            mesh = self._mesh(image, box)
            if mesh is not None:
                total = total + np.linalg.norm(mesh[:, None] - wanted, axis=-1) / eye
                seen += 1
        self._points = np.argmin(total, axis=0)
        return {"box": self._adjustment, "found": count, "points": self._points.tolist()}

    def find(self, image: np.ndarray, box: np.ndarray) -> np.ndarray:
        mesh = self._mesh(image, box)
        # None: it says that there is no face.
        return np.full((68, 2), np.nan) if mesh is None else mesh[self._points]

    def _mesh(self, image: np.ndarray, box: np.ndarray) -> np.ndarray | None:
        height, width = image.shape[:2]
        at = beside(box, self._adjustment)
        region = self._region(
            x_center=at.x / width,
            y_center=at.y / height,
            width=at.side / width,
            height=at.side / height,
            rotation=0.0,
        )
        found = self._graph.process({"image": image, "roi": region}).landmarks
        return None if found is None else self._pixels(found, image)

    @staticmethod
    def _pixels(mesh: Any, image: np.ndarray) -> np.ndarray:
        height, width = image.shape[:2]
        return np.array([(p.x * width, p.y * height) for p in mesh.landmark])

    @staticmethod
    def _next(mesh: np.ndarray) -> Square:
        """Where MediaPipe looks after it found a mesh."""
        low, high = mesh.min(axis=0), mesh.max(axis=0)
        return Square(*((low + high) / 2), MESH_MARGIN * float((high - low).max()))


def serve(methods: Mapping[str, Method], cases: Path) -> None:
    """Answer each line of input with a line.

    First the names of the methods are written. `{"method": NAME, "faces": [INDEX, ...]}` is
    answered with `seconds` (of the processor) and `landmarks` of each of these faces; reading
    images is no part of the time. With `"learn": true` a method learns from these faces what it
    needs to be compared, and says what.

    Args:
        methods: by name.
        cases: a JSON file with `images` (paths), `boxes` (x, y, w, h) and `landmarks` (None for
            those that nothing may be learned from).
    """
    faces = json.loads(cases.read_text())
    print(json.dumps(list(methods)), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        method = methods[asked["method"]]
        chosen = asked["faces"]
        images = (method.read(faces["images"][i]) for i in chosen)
        boxes = np.array([faces["boxes"][i] for i in chosen])
        if asked.get("learn"):
            points = np.array([faces["landmarks"][i] for i in chosen], float)
            print(json.dumps(method.learn(list(images), boxes, points)), flush=True)
            continue
        seconds, landmarks = [], []
        for image, box in zip(images, boxes, strict=True):
            start = time.process_time()
            found = method.find(image, box)
            seconds.append(time.process_time() - start)
            landmarks.append(found.tolist())
        print(json.dumps({"seconds": seconds, "landmarks": landmarks}), flush=True)


def main() -> None:
    cv2.setNumThreads(1)
    methods = {
        "dlib": Dlib(),
        "MediaPipe Face Mesh": Mesh(attention=False),
        "MediaPipe Face Mesh, attention": Mesh(attention=True),
    }
    serve(methods, Path(sys.argv[1]))


if __name__ == "__main__":
    main()
