"""What the examples run on when they are given nothing: public-domain photographs of Grace Hopper
(US Navy) and Eileen Collins (NASA), which matplotlib and scikit-image bring along."""

from pathlib import Path

import cv2
import numpy as np


def photograph() -> Path:
    """The file of the photograph of Grace Hopper."""
    import matplotlib.cbook

    return Path(str(matplotlib.cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)))


def portraits() -> list[np.ndarray]:
    """Both photographs, `(h, w, 3)` blue, green, red."""
    import skimage.data

    return [cv2.imread(str(photograph())), skimage.data.astronaut()[..., ::-1]]


def clip(path: Path, frames: int = 12) -> Path:
    """Write a short video in which the face of the photograph moves."""
    face = cv2.resize(cv2.imread(str(photograph()))[:400, 60:460], (200, 200))
    video = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 25, (240, 200))
    for k in range(frames):
        image = np.full((200, 240, 3), 90, np.uint8)
        left = round(20 + 12 * np.sin(k / 4))
        image[:, left : left + 200] = face
        video.write(image)
    video.release()
    return path


def annotated(folder: Path, of_each: int = 2) -> Path:
    """Write images with a `.pts` file each, one folder a person, as 300-W has them.

    The landmarks are those of a fit, moved as another annotator might have put them, since there
    are no photographs with landmarks of everybody's to ship.
    """
    import jclnf

    model, rng = jclnf.load_model(), np.random.default_rng(0)
    for person, image in enumerate(portraits()):
        grey = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
        box = jclnf.detect.find_faces(jclnf.detect.default(), grey)[0]
        points = np.asarray(jclnf.fit(model, grey, box).landmarks)
        brows = np.zeros_like(points)
        brows[17:27, 1] = -0.03 * np.ptp(points[:, 1])
        where = folder / f"person{person}"
        where.mkdir(parents=True, exist_ok=True)
        for k in range(of_each):
            darker = np.clip(image * rng.uniform(0.6, 1.0), 0, 255).astype(np.uint8)
            cv2.imwrite(str(where / f"{k}.png"), darker)
            (where / f"{k}.pts").write_text(jclnf.annotations.pts_text(points + brows))
    return folder
