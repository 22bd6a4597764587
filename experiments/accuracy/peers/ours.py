"""Landmarks by jclnf's fits, served as `peer.py` does it: the other side of the comparison.

python -m experiments.accuracy.peers.ours FACES.json
"""

import sys
from pathlib import Path

import numpy as np

import jclnf
from experiments.accuracy.peers.peer import serve
from experiments.common import model_file
from jclnf.images import read_image
from jclnf.openface import ROTATIONS
from jclnf.runtime import enable_compilation_cache, keep_to_one_core


class Fits:
    """Single fits of a model with the given settings, images cropped as part of each."""

    def __init__(self, model: jclnf.Model, params: jclnf.FitParams) -> None:
        self._model, self._params = model, params

    def read(self, path: str) -> np.ndarray:
        return read_image(Path(path))

    def find(self, image: np.ndarray, box: np.ndarray) -> np.ndarray:
        crop = jclnf.crop(image, np.asarray(box, np.float32))
        result = jclnf.fit(self._model, crop.image, crop.box, self._params)
        return np.asarray(result.landmarks, np.float64) + crop.offset


def main() -> None:
    keep_to_one_core()
    enable_compilation_cache()
    model = jclnf.load_model()
    twice = model.defaults.replace(windows=(model.defaults.windows[-1],) * 2)
    methods = {
        "bundled model": Fits(model, model.defaults),
        "bundled model, two looks": Fits(model, twice),
    }
    if model_file("general").exists():
        openface = jclnf.load_openface(model_file("general"))
        params = jclnf.FitParams.openface(openface)
        methods |= {
            "OpenFace CLNF, 1 start": Fits(openface, params),
            "OpenFace CLNF, 11 starts": Fits(openface, params.replace(rotations=ROTATIONS)),
        }
    serve(methods, Path(sys.argv[1]))


if __name__ == "__main__":
    main()
