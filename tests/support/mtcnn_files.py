"""Writes MTCNN networks with random weights in OpenFace's format, and runs them in NumPy."""

from pathlib import Path

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from support.openface_files import Writer

PNET = [("conv", 3, 3, 4), ("prelu", 4), ("pool", 2, 2, 2, 2), ("conv", 3, 4, 5), ("prelu", 5),
        ("conv", 3, 5, 6), ("prelu", 6), ("full", 6, 6)]  # fmt: skip
RNET = [("conv", 3, 3, 4), ("prelu", 4), ("pool", 3, 3, 2, 2), ("conv", 4, 4, 3),
        ("pool", 3, 2, 2, 2), ("full", 3 * 4 * 4, 7), ("prelu", 7), ("full", 7, 6)]  # fmt: skip
ONET = [("pool", 8, 8, 8, 8), ("conv", 3, 3, 4), ("full", 4 * 4 * 4, 8)]
SHAPES = {"PNet": PNET, "RNet": RNET, "ONet": ONET}


def random_layers(shapes, rng):
    """Arrays as the file has them: kernels (in, out, y, x), weights (in, out)."""
    layers = []
    for kind, *sizes in shapes:
        if kind == "conv":
            side, inputs, outputs = sizes
            kernels = rng.normal(0, 0.4, (inputs, outputs, side, side))
            layers.append((kind, rng.normal(0, 1, outputs), kernels))
        elif kind == "full":
            layers.append((kind, rng.normal(0, 1, sizes[1]), rng.normal(0, 0.3, sizes)))
        elif kind == "prelu":
            layers.append((kind, rng.uniform(-0.3, 0.3, sizes[0])))
        else:
            layers.append((kind, *sizes))
    return layers


def network_file(layers) -> Writer:
    file = Writer()
    file.integers("layers", len(layers))
    for kind, *content in layers:
        file.integers("kind", ["conv", "pool", "full", "prelu"].index(kind))
        if kind == "conv":
            bias, kernels = content
            file.integers("maps in", kernels.shape[0])
            file.integers("maps out", kernels.shape[1])
            file.field("bias", bias.astype("<f4").tobytes())
            for kernel in kernels.reshape(-1, *kernels.shape[2:]):
                file.matrix("kernel", kernel, "f4")
        elif kind == "full":
            file.matrix("full bias", content[0][:, None], "f4")
            file.matrix("full weights", content[1], "f4")
        elif kind == "prelu":
            file.matrix("slopes", content[0][:, None], "f4")
        else:
            for name, value in zip(("width", "height", "across", "down"), content, strict=True):
                file.integers(name, value)
    return file


def write_networks(folder: Path, networks) -> Path:
    """Write the list and the networks, by name, into a folder; return the list."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, layers in networks.items():
        (folder / f"{name}.dat").write_bytes(network_file(layers).data)
    path = folder / "MTCNN_detector.txt"
    path.write_text("".join(f"{name} {name}.dat\n" for name in networks))
    return path


def run_in_numpy(layers, image):
    """What a network answers to an image `(h, w, 3)`, as maps `(y, x, k)` or numbers `(k,)`."""
    x = (image.astype(np.float64).transpose(2, 0, 1) - 127.5) / 128
    for kind, *content in layers:
        if kind == "conv":
            bias, kernels = content
            windows = sliding_window_view(x, kernels.shape[2:], axis=(1, 2))
            x = np.einsum("cyxij,ckij->kyx", windows, kernels) + bias[:, None, None]
        elif kind == "pool":
            x = pool(x, *content)
        elif kind == "full":
            bias, weights = content
            if len(weights) == len(x) and x.ndim == 3:
                x = np.einsum("cyx,ck->kyx", x, weights) + bias[:, None, None]
            else:
                x = (
                    x.swapaxes(1, 2).reshape(-1) @ weights + bias
                    if x.ndim == 3
                    else x @ weights + bias
                )
        else:
            slopes = content[0].reshape(-1, *[1] * (x.ndim - 1))
            x = np.where(x > 0, x, slopes * x)
    return x.transpose(1, 2, 0) if x.ndim == 3 else x


def pool(x, width, height, across, down):
    # C's round, half away from zero.
    rows = int(np.floor((x.shape[1] - height) / down + 0.5)) + 1
    columns = int(np.floor((x.shape[2] - width) / across + 0.5)) + 1
    out = np.empty((len(x), rows, columns))
    for i, j in np.ndindex(rows, columns):
        crop = x[:, i * down : i * down + height, j * across : j * across + width]
        out[:, i, j] = crop.max(axis=(1, 2))
    return out
