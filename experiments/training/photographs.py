"""The two photographs of the README, fitted with the bundled model as `jclnf fit` does it."""

from pathlib import Path

import cv2
import numpy as np
import skimage.data

import jclnf
from experiments.common import command_line, hopper
from jclnf import draw

HERE = Path(__file__).resolve().parent

SIDE = 360


def main() -> None:
    command_line(__doc__).parse_args()
    model = jclnf.load_model()
    photographs = {
        "grace_hopper": cv2.imread(str(hopper())),
        "astronaut": cv2.cvtColor(skimage.data.astronaut(), cv2.COLOR_RGB2BGR),
    }
    for name, image in photographs.items():
        grey = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
        box = jclnf.detect.default()(grey)[0]
        crop = jclnf.crop(grey, box)
        result = jclnf.fit(model, crop.image, crop.box).shifted(crop.offset)
        x, y, w, h = box
        half = 1.1 * max(w, h)
        low = np.maximum([x + w / 2 - half, y + h / 2 - half], 0).astype(int)
        part = image[low[1] : low[1] + int(2 * half), low[0] : low[0] + int(2 * half)]
        zoom = SIDE / max(part.shape)
        shown = cv2.resize(part, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_CUBIC)
        points = (np.asarray(result.landmarks) - low + 0.5) * zoom - 0.5
        cv2.imwrite(str(HERE / f"{name}.png"), draw.landmarks(shown, points))


if __name__ == "__main__":
    main()
