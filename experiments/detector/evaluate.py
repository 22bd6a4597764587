"""The face detector beside OpenCV's: what is found, how well boxes lie, what is no face, the time,
and what a fit makes of the boxes. Images are grey for all."""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import jax
import numpy as np

from experiments.common import DATA, Row, box_errors, missed, table, write_results
from experiments.detector.pictures import TEACHER, drawn, lettered, pictures, textures
from experiments.training.trunk.evaluate import measures, model_landmarks, reduced, turned
from experiments.training.trunk.faces import Faces, read_faces
from jclnf.annotations import read_annotations
from jclnf.detect import FaceDetector, HaarDetector, YuNetDetector, find_faces
from jclnf.geometry import tight_box
from jclnf.images import read_image
from jclnf.tracking import overlap

HERE = Path(__file__).resolve().parent
FOUND = 0.4
"""Least overlap of a face's box with the landmarks'."""
SHIFTS, SCALES = (0.05, 0.1, 0.15, 0.2), (0.8, 0.85, 0.9, 1.1, 1.15, 1.2)
"""Of boxes, to see what they cost a fit: in sides, and factors."""
SMALL = 24.0
"""Side in pixels of faces of reduced images."""
SCORES = (0.3, 0.4, 0.5, 0.55, 0.6, 0.65, 0.69, 0.7, 0.75, 0.8, 0.85, 0.9)
LOWEST = SCORES[0]
DOUBTFUL = 0.5
EMPTY = (
    *("grass.png", "coffee.png", "horse.png", "text.png", "rocket.jpg", "retina.jpg"),
    *("cell.png", "clock_motion.png", "chessboard_GRAY.png", "microaneurysms.png"),
)
"""Images without faces that scikit-image brings, which nothing was learned from."""
FACES_IN_CROPS = frozenset(
    (2, 10, 13, 20, 29, 33, 34, 47, 56, 63, 86, 94, 95, 105, 110, 121, 123, 126, 132, 136, 138, 139)
    + (140, 146, 147, 157, 162, 164, 166, 170, 175, 180, 187, 244, 245, 246, 247, 258, 273, 293)
    + (300, 316)
)
"""Crops of backgrounds that were looked at and do have a face."""

Detector = Callable[..., np.ndarray]


def frames(part: str) -> Faces:
    """The annotated frames of videos."""
    faces = read_annotations(DATA / "faces" / "landmarks.csv", split=part)
    points = np.array([face.landmarks for face in faces])
    images = [read_image(face.image) for face in faces]
    return Faces([f.image.name for f in faces], images, points, np.array([*map(tight_box, points)]))


def small(faces: Faces) -> Faces:
    """Images reduced so that the face has `SMALL` pixels."""
    images, points = [], []
    for image, p in zip(faces.images, faces.points, strict=True):
        one = Faces([""], [image], p[None], tight_box(p)[None])
        side = np.sqrt(np.prod(tight_box(p)[2:]))
        eyes = SMALL / side * np.linalg.norm(p[36] - p[45])
        less = reduced(one, eyes)
        images += less.images
        points.append(less.points[0])
    return Faces(faces.names, images, np.array(points), np.array([*map(tight_box, points)]))


def groups(faces: Faces, seed: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    """Group photographs of 1280x960 pixels, composed of many, whose faces have 24 to 90 pixels; and
    their boxes `(k, 4)`."""
    rng = np.random.default_rng(seed)
    made = []
    order = rng.permutation(len(faces))
    while len(order) > 0:
        image, boxes = np.full((960, 1280), 90, np.uint8), []
        y = 0
        while y < 960 and len(order) > 0:
            side = float(np.exp(rng.uniform(np.log(24), np.log(90))))
            row, x = round(2.2 * side), 0
            while x < 1280 and len(order) > 0:
                index, order = order[0], order[1:]
                grey, box = faces.images[index], tight_box(faces.points[index])
                zoom = side / np.sqrt(np.prod(box[2:]))
                size = [max(1, round(n * zoom)) for n in grey.shape[::-1]]
                less = cv2.resize(grey, size, interpolation=cv2.INTER_AREA)
                own = np.array([*((box[:2] + 0.5) * zoom - 0.5), *(box[2:] * zoom)])
                left = max(0, round(own[0] + own[2] / 2 - 1.1 * side))
                top = max(0, round(own[1] + own[3] / 2 - 1.1 * side))
                part = less[top : top + row, left : left + row][: 960 - y, : 1280 - x]
                low, high = own[:2] - (left, top), own[:2] - (left, top) + own[2:]
                if np.all(low >= 0) and np.all(high <= part.shape[::-1]):
                    boxes.append([*(low + (x, y)), *own[2:]])
                image[y : y + part.shape[0], x : x + part.shape[1]] = part
                x += row
            y += row
        made.append((image, np.array(boxes)))
    return made


def empty(seed: int = 0) -> list[np.ndarray]:
    """Crops without faces: of textures and objects, drawings, and backgrounds of the photographs
    and frames that nothing was learned from."""
    rng = np.random.default_rng(seed)
    crops = list(drawn(100, 10_000))
    for image in textures(EMPTY):
        crops += [_window(image, rng) for _ in range(16)]
    crops += [c for i, c in enumerate(backgrounds(rng)) if i not in FACES_IN_CROPS]
    return crops


def hollow() -> list[np.ndarray]:
    """Other crops, to choose by: drawings, and backgrounds of what was held out, without those in
    which YuNet has anything, even if it is unsure."""
    unsure = YuNetDetector(TEACHER, min_score=0.2)
    held = [p for source in ("photographs", "faces") for p in pictures("held out", source, None)]
    crops = [*drawn(100, 20_000), *drawn(500, 20_001)]
    crops += [*lettered(100, 20_000), *lettered(100, 20_001)]
    for seed, places in ((1, 4), (5, 6)):
        rng = np.random.default_rng(seed)
        for picture in held:
            some = [beside(picture.grey, picture.box, rng) for _ in range(places)]
            crops += [c for c in some if c is not None and not len(scored(unsure, c)[0])]
    return crops


def backgrounds(rng: np.random.Generator) -> list[np.ndarray]:
    """What lies beside the annotated faces; some crops have others, see `FACES_IN_CROPS`."""
    crops = [
        beside(image, tight_box(points), rng)
        for faces in (read_faces("test"), frames("val"))
        for image, points in zip(faces.images, faces.points, strict=True)
    ]
    return [crop for crop in crops if crop is not None]


def beside(image: np.ndarray, box: np.ndarray, rng: np.random.Generator) -> np.ndarray | None:
    """A window of what lies beside a face, in nine of ten cases in which that is large enough."""
    x, y, w, h = box
    # The forehead and the hair belong to the face.
    left, right = int(x - 0.25 * w), int(x + 1.25 * w) + 1
    top, bottom = int(y - 0.7 * h), int(y + 1.15 * h) + 1
    sides = (image[:, : max(left, 0)], image[:, right:], image[bottom:], image[: max(top, 0)])
    large = [side for side in sides if min(side.shape) >= 60]
    if large and rng.random() < 0.9:
        return _window(large[rng.integers(len(large))], rng)
    return None


def _window(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    size = np.minimum(np.array(image.shape), rng.integers(160, 360, 2))
    y, x = rng.integers(0, np.array(image.shape) - size + 1)
    return np.ascontiguousarray(image[y : y + size[0], x : x + size[1]])


def best(boxes: np.ndarray, truth: np.ndarray) -> tuple[float, np.ndarray]:
    """The largest overlap that a box has with the true one, and that box."""
    shared = [overlap(box, truth) for box in boxes]
    if not shared:
        return 0.0, np.zeros(4)
    return max(shared), boxes[int(np.argmax(shared))]


def found_in(detector: Detector, faces: Faces) -> tuple[np.ndarray, np.ndarray]:
    """For each face the overlap of the best box, 0 for none, and that box."""
    pairs = [
        best(find_faces(detector, image), tight_box(p))
        for image, p in zip(faces.images, faces.points, strict=True)
    ]
    return np.array([s for s, _ in pairs]), np.array([box for _, box in pairs])


def scored(detector: Any, grey: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Boxes and scores in a grey image."""
    colour = getattr(detector, "wants_colour", False)
    boxes, scores = detector.detect(cv2.cvtColor(grey, cv2.COLOR_GRAY2BGR) if colour else grey)
    return boxes, scores


def likeliest(detector: Any, faces: Faces) -> np.ndarray:
    """The highest score with which each face is found, 0 for one that is not."""
    found = []
    for image, p in zip(faces.images, faces.points, strict=True):
        boxes, scores = scored(detector, image)
        right = [overlap(box, tight_box(p)) > FOUND for box in boxes]
        found.append(max(scores[right], default=0.0))
    return np.array(found)


@dataclasses.dataclass(frozen=True)
class Curve:
    """Highest scores of a detector in crops without faces, and of faces that are upright and
    small."""

    empty: np.ndarray
    upright: np.ndarray
    small: np.ndarray

    def at(self, score: float) -> tuple[float, float, float]:
        """Shares of crops and faces with a detection from a score on."""
        false, upright, little = (
            float(np.mean(a >= score)) for a in (self.empty, self.upright, self.small)
        )
        return false, upright, little

    def score_for(self, recall: float, view: str) -> float:
        """The highest score from which so large a share of the "upright" or "small" faces is found,
        0 if there is none."""
        faces = np.sort(getattr(self, view))[::-1]
        return float(faces[max(0, int(np.ceil(recall * len(faces) - 1e-9)) - 1)])


def at_the_same_recall(curves: dict[str, Curve]) -> tuple[list[Row], str]:
    """What is asked of false detections, and a table: at the largest recall that YuNet has."""
    rows, lines = [], []
    for view in ("upright", "small"):
        recall = float(np.mean(getattr(curves["yunet"], view) > 0))
        scores = {name: curve.score_for(recall, view) for name, curve in curves.items()}
        count = len(curves["yunet"].empty)
        false = {name: int(np.sum(curves[name].empty >= score)) for name, score in scores.items()}
        of_both = [f for name in curves for f in (f"{scores[name]:.3f}", false[name])]
        lines.append([view, f"{100 * recall:.2f}", *of_both])
        what = f"crops with a false detection at YuNet's recall of {view} faces"
        rows.append(Row(what, "without faces", count, false["jclnf"], at_most=false["yunet"]))
    head = [
        "faces",
        "recall, %",
        *(f"{name}, {what}" for name in curves for what in ("score", "crops")),
    ]
    return rows, table(head, lines)


def drawing(curves: dict[str, Curve]) -> bytes:
    """False detections against the recall of small faces, with their 95 % intervals, as a PNG."""
    import io

    from matplotlib.figure import Figure

    figure = Figure((6, 4), layout="constrained")
    axes = figure.add_subplot(xlabel="faces of 24 px found, %", ylabel="crops with a detection, %")
    for name, curve in curves.items():
        points = [(s, *curve.at(s)) for s in np.arange(LOWEST, 0.96, 0.01)]
        count = len(curve.empty)
        recall = [100 * small for *_, small in points]
        ends = [wilson(round(false * count), count) for _, false, *_ in points]
        (line,) = axes.plot(recall, [100 * false for _, false, *_ in points], label=name)
        axes.fill_between(recall, *zip(*ends, strict=True), color=line.get_color(), alpha=0.2)
    axes.set(xlim=(60, 100), ylim=(0, 10))
    axes.legend()
    axes.grid(alpha=0.3)
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=100, metadata={"Software": None})
    return data.getvalue()


def fit_in(model: Any, grey: np.ndarray, box: np.ndarray) -> Any:
    import jclnf

    crop = jclnf.crop(grey, np.asarray(box, np.float32))
    return jclnf.fit(model, crop.image, crop.box)


def displaced(boxes: np.ndarray, shift: float, scale: float) -> np.ndarray:
    """Boxes shifted by a part of their sides, each in its own direction, and scaled about their
    middle."""
    angle = np.random.default_rng(0).uniform(0, 2 * np.pi, len(boxes))
    by = shift * boxes[:, 2:].mean(1, keepdims=True) * np.stack([np.cos(angle), np.sin(angle)], 1)
    middle = boxes[:, :2] + boxes[:, 2:] / 2 + by
    return np.concatenate([middle - scale * boxes[:, 2:] / 2, scale * boxes[:, 2:]], axis=1)


def wilson(hits: int, count: int) -> tuple[float, float]:
    """The 95 % interval of a share, in %."""
    z, p = 1.96, hits / count
    middle = (p + z * z / (2 * count)) / (1 + z * z / count)
    half = z * np.sqrt(p * (1 - p) / count + z * z / (4 * count**2)) / (1 + z * z / count)
    return 100 * max(0.0, middle - half), 100 * (middle + half)


def milliseconds(work: Callable[[], Any], repeats: int = 20) -> float:
    work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return 1000 * float(np.median(times))


def timed(detectors: dict[str, Detector], photographs: Faces) -> tuple[list[Row], str]:
    """What is asked of the time, and all times as a sentence."""
    image = cv2.resize(max(photographs.images, key=np.size), (640, 480))
    jax.clear_caches()
    jax.config.update("jax_enable_compilation_cache", False)
    start = time.perf_counter()
    find_faces(detectors["jclnf"], image)
    first = time.perf_counter() - start
    times = {name: milliseconds(lambda d=d: find_faces(d, image)) for name, d in detectors.items()}
    fast = milliseconds(lambda: find_faces(detectors["jclnf"], image, min_face=640 / 11))
    part = times["jclnf"] / times["yunet"]
    rows = [
        Row("ms for 640x480 against YuNet's", "640x480", 1, part, at_most=1),
        Row("seconds of the first call", "640x480", 1, first, at_most=3),
    ]
    each = ", ".join(f"{name} {ms:.1f}" for name, ms in times.items())
    text = f"Milliseconds for an image of 640x480 pixels: {each}; jclnf for faces from an 11th "
    return rows, f"{text}of its width {fast:.1f}. The first call takes {first:.1f} s."


def main(*, quick: bool = False) -> None:
    detectors: dict[str, Detector] = {
        "jclnf": FaceDetector(),
        "haar": HaarDetector(),
        "yunet": YuNetDetector(TEACHER),
    }
    photographs = read_faces("held out" if quick else "test")
    videos = frames("val")
    if quick:
        chosen = range(0, len(videos), 5)
        videos = Faces(
            [videos.names[i] for i in chosen],
            [videos.images[i] for i in chosen],
            videos.points[list(chosen)],
            videos.boxes[list(chosen)],
        )
    views: dict[str, Callable[[Faces], Faces]] = {
        "upright": lambda faces: faces,
        "turned by 30 degrees": lambda faces: turned(faces, 30),
        "turned by 60 degrees": lambda faces: turned(faces, -60),
        f"faces of {SMALL:.0f} px": small,
    }
    asked = {
        "turned by 30 degrees": 98.0,
        "turned by 60 degrees": 90.0,
        f"faces of {SMALL:.0f} px": 97.0,
    }
    rows: list[Row] = []
    lines = []
    upright: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for where, faces in (("photographs", photographs), ("videos", videos)):
        for view, change in views.items():
            seen = change(faces)
            for name, detector in detectors.items():
                shared, boxes = found_in(detector, seen)
                hit = shared > FOUND
                recall, iou = 100 * float(hit.mean()), float(shared[hit].mean())
                truth = np.array([tight_box(p) for p in seen.points])
                centre, size = box_errors(truth[hit], boxes[hit])
                errors = f"{centre.mean():.3f}", f"{np.abs(size).mean():.3f}"
                lines.append([where, view, name, len(seen), f"{recall:.2f}", f"{iou:.3f}", *errors])
                print(*lines[-1], flush=True)
                if name == "jclnf":
                    least = asked.get(view, 99.5 if where == "photographs" else 99.8)
                    rows.append(Row(f"recall, {view}, %", where, len(seen), recall, at_least=least))
                    if view == "upright":
                        rows.append(Row("mean IoU", where, len(seen), iou, at_least=0.87))
                if view == "upright":
                    upright[f"{where} {name}"] = shared, boxes
    body = (
        "Recall at an overlap over 0.4 with the landmarks' box, the mean overlap of what is found, "
    )
    body += "and the mean errors of its centre (in sides) and of its size (as a logarithm):\n\n"
    head = ["data", "view", "detector", "faces", "recall, %", "IoU", "centre", "size"]
    body += table(head, lines)

    lines = []
    made = groups(photographs)
    for name, detector in detectors.items():
        hits = [
            best(found, box)[0] > FOUND
            for image, boxes in made
            for found in [find_faces(detector, image, min_face=20.0)]
            for box in boxes
        ]
        lines.append([name, len(hits), f"{100 * np.mean(hits):.2f}"])
        if name == "jclnf":
            share = 100 * float(np.mean(hits))
            rows.append(
                Row("recall, composed groups, %", "photographs", len(hits), share, at_least=97)
            )
    body += "\n\nGroup photographs of 1280x960 pixels, composed of the photographs, faces of 24 to "
    body += "90 px:\n\n"
    body += table(["detector", "faces", "recall, %"], lines)

    crops = hollow() if quick else empty()
    both = small(photographs), small(videos)
    lines, curves = [], {}
    plotted: dict[str, Curve] = {}
    for name, detector in (
        ("jclnf", FaceDetector(min_score=LOWEST)),
        ("yunet", YuNetDetector(TEACHER, min_score=LOWEST)),
    ):
        curve = plotted[name] = Curve(
            np.array([max(scored(detector, crop)[1], default=0.0) for crop in crops]),
            np.concatenate([likeliest(detector, faces) for faces in (photographs, videos)]),
            np.concatenate([likeliest(detector, faces) for faces in both]),
        )
        for score in SCORES:
            false, upright_found, small_found = curve.at(score)
            low, high = wilson(round(false * len(crops)), len(crops))
            values = [100 * upright_found, 100 * small_found, 100 * false]
            recall = {"recall": values[0], "small": values[1]}
            curves[f"{name} {score}"] = {"false": values[2], "low": low, "high": high, **recall}
            interval = f"{low:.2f} - {high:.2f}"
            lines.append([name, score, *(f"{value:.2f}" for value in values), interval])
            print(*lines[-1], flush=True)
    false = sum(len(find_faces(detectors["haar"], crop)) > 0 for crop in crops)
    low, high = wilson(false, len(crops))
    share = f"{100 * false / len(crops):.2f}"
    lines.append(["haar", "", "", "", share, f"{low:.2f} - {high:.2f}"])
    body += f"\n\nCrops without a face in which there is a detection ({len(crops)} crops), against "
    body += "the recall on the photographs and frames, upright as they are and reduced to faces of "
    body += f"{SMALL:.0f} px:\n\n"
    head = ["detector", "least score", "recall, %", "of small faces, %", "crops, %"]
    body += table([*head, "95 % interval"], lines)
    if not quick:
        (HERE / "curve.png").write_bytes(drawing(plotted))
        body += "\n\n![false detections against recall](curve.png)"

    more, compared = at_the_same_recall(plotted)
    rows += more
    body += "\n\nAt the largest recall that YuNet has, from a score of 0.3 on, the scores that find"
    body += f" as many and the crops with a detection:\n\n{compared}"

    import jclnf

    model = jclnf.load_model()
    doubtful, refused = FaceDetector(min_score=DOUBTFUL), []
    for crop in crops:
        for box in doubtful(crop):
            refused.append(not bool(fit_in(model, crop, box).success))
    body += f"\n\nOf {len(refused)} detections in these crops from a score of {DOUBTFUL} on, fits "
    body += f"of the bundled model refuse {sum(refused)}."

    shared, boxes = upright["photographs jclnf"]
    hit = shared > FOUND
    landmarks = model_landmarks("default")
    chosen = [image for image, ok in zip(photographs.images, hit, strict=True) if ok]
    chosen_points = photographs.points[hit]
    given = measures(landmarks(chosen, photographs.boxes[hit]), chosen_points)
    detected = measures(landmarks(chosen, boxes[hit]), chosen_points)
    names = ("mean", "median", "inner", "over8")
    lines = [
        [what, *(f"{found[n]:.2f}" for n in names)]
        for what, found in (("given", given), ("detected", detected))
    ]
    worse = 100 * (detected["mean"] / given["mean"] - 1)
    rows.append(
        Row(
            "NME68 from detected boxes against given ones, % worse",
            "photographs",
            int(hit.sum()),
            worse,
            at_most=3,
        )
    )
    body += "\n\nFits of the bundled model from given boxes and from detected ones, % of the eye "
    body += "distance:\n\n"
    body += table(["boxes", "NME68 mean", "median", "inner 51", "over 8 %"], lines)

    truth = np.array([tight_box(p) for p in chosen_points])
    centre, size = box_errors(truth, boxes[hit])
    lines = [
        [name, *(f"{np.quantile(errors, part):.3f}" for part in (0.5, 0.95, 1.0))]
        for name, errors in (("centre, sides", centre), ("size, logarithm", np.abs(size)))
    ]
    body += "\n\nThe detector's box errors on these photographs:\n\n"
    body += table(["error", "median", "95 %", "largest"], lines)
    lines = []
    for shift, scale in ((0, 1), *((s, 1) for s in SHIFTS), *((0, s) for s in SCALES)):
        off = displaced(truth, shift, scale)
        found = measures(landmarks(chosen, off), chosen_points)
        lines.append([f"{100 * shift:.0f}", scale, *(f"{found[n]:.2f}" for n in names)])
    body += "\n\nFits from the landmarks' own boxes, shifted in a random direction by a part of "
    body += "their side, and scaled:\n\n"
    body += table(["shift, %", "scale", "NME68 mean", "median", "inner 51", "over 8 %"], lines)

    of_time, sentence = timed(detectors, photographs)
    rows += of_time
    body += f"\n\n{sentence}"
    text, wrong = missed(rows)
    asked_for = [[row.quantity, row.where, row.asked, row.found] for row in rows]
    body = f"{text}\n\n{table(['', 'where', 'asked', 'measured'], asked_for)}\n\n{body}"
    if quick:
        print(body, wrong)
        return
    numbers = {"rows": rows, "false": curves}
    write_results(HERE, "The face detector", body, numbers)
