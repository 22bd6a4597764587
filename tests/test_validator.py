"""The confidence: against a plain NumPy version, recorded values, and damaged files."""

import random
import struct
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.openface_files import Writer, little_memory

from jclnf import load_openface
from jclnf.errors import ModelFileError
from jclnf.openface import Validator, View
from jclnf.openface._read_validator import make_validator, read_validator
from jclnf.openface._validator import MaxPool

N = 5
BINS = 6
CENTRES = [(0.0, 0.0, 0.0), (0.0, -40.0, 0.0), (0.0, 40.0, 0.0)]


@dataclass
class Network:
    """What a file says of one view: a square of landmarks and one inside it, in four triangles."""

    side: int
    mean: np.ndarray
    deviation: np.ndarray
    kernels: np.ndarray
    biases: np.ndarray
    first: tuple[np.ndarray, np.ndarray]
    second: tuple[np.ndarray, np.ndarray]

    @property
    def landmarks(self) -> np.ndarray:
        low, high = -self.side / 2, self.side / 2 - 1
        corners = [[low, low], [high, low], [high, high], [low, high]]
        return np.array([*corners, [low + 0.4 * self.side, low + 0.45 * self.side]])

    triangles = ((0, 1, 4), (1, 2, 4), (2, 3, 4), (3, 0, 4))


def network(rng: np.random.Generator, side: int = 9, kernel: int = 2, hidden: int = 3) -> Network:
    """Random. A convolution, pooling of what may be of odd size, and two full layers."""
    convolved = side - kernel + 1
    pooled = -(-convolved // 2)
    pixels = int(mask_of(side).sum())
    return Network(
        side,
        rng.normal(0, 0.2, pixels),
        rng.uniform(0.5, 2, pixels),
        rng.normal(size=(1, 2, kernel, kernel)),
        rng.normal(size=2),
        (rng.normal(size=(2 * pooled**2, hidden)), rng.normal(size=hidden)),
        (3 * rng.normal(size=(hidden, BINS)), rng.normal(size=BINS)),
    )


def mask_of(side: int) -> np.ndarray:
    """The square without a corner."""
    mask = np.ones((side, side), bool)
    mask[: side // 3, : side // 3] = False
    return mask


def warp_of(net: Network) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each pixel its triangle, and alpha and beta of the triangles."""
    corners = net.landmarks[list(net.triangles)]
    first, edges = (
        corners[:, 0],
        np.stack([corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]], axis=-1),
    )
    inverse = np.linalg.inv(edges)
    constant = -np.einsum("tij,tj->ti", inverse, first)
    rows = np.concatenate([constant[..., None], inverse], axis=-1)
    y, x = np.mgrid[: net.side, : net.side] - net.side / 2
    parts = np.einsum("tik,yxk->yxti", rows, np.stack([np.ones_like(x), x, y], axis=-1))
    least = np.minimum(parts.min(-1), 1 - parts.sum(-1))
    assert (least.max(-1) > -1e-9).all()
    return least.argmax(-1), rows[:, 0], rows[:, 1]


def validator_file(nets: list[Network]) -> Writer:
    file = Writer()
    file.integers("kind", 3)
    file.integers("views", len(nets))
    for centre in CENTRES[: len(nets)]:
        file.matrix("centre", np.array(centre)[:, None], "f8")
    for net in nets:
        file.matrix("mean", net.mean[None], "f8")
        file.matrix("deviation", net.deviation[None], "f8")
        file.integers("layers", 6)
        file.integers("layer", 0)
        file.integers("maps in", 1)
        file.integers("maps out", len(net.biases))
        file.field("biases", net.biases.astype("<f4").tobytes())
        for kernel in net.kernels[0]:
            file.matrix("kernel", kernel, "f4")
        file.integers("layer", 3, 1)
        for activation, (weights, bias) in ((4, net.first), (None, net.second)):
            file.integers("layer", 2)
            file.matrix("full bias", bias[:, None], "f4")
            file.matrix("full weights", weights, "f4")
            if activation is not None:
                file.integers("layer", activation)
        triangle, alpha, beta = warp_of(net)
        mask = mask_of(net.side)
        file.integers("pixels", int(mask.sum()))
        file.numbers("least", -net.side / 2, -net.side / 2)
        file.matrix("landmarks", net.landmarks.T.reshape(-1, 1), "f8")
        file.matrix("triangles", np.array(net.triangles), "i4")
        file.matrix("triangle", np.where(mask, triangle, -1), "i4")
        file.matrix("mask", mask, "i4")
        file.matrix("alpha", alpha, "f8")
        file.matrix("beta", beta, "f8")
    return file


def plain(net: Network, image: np.ndarray, landmarks: np.ndarray) -> tuple[float, np.ndarray]:
    """The confidence and the network's outputs, pixel by pixel."""
    triangle, alpha, beta = warp_of(net)
    mask = mask_of(net.side)
    values = []
    for x, y in np.argwhere(mask.T):
        t = triangle[y, x]
        a, b, c = landmarks[list(net.triangles[t])]
        place = np.array([1, x - net.side / 2, y - net.side / 2])
        position = a + alpha[t] @ place * (b - a) + beta[t] @ place * (c - a)
        values.append(sample(image, *position))
    values = np.array(values) - np.mean(values)
    values = (values / values.std() - net.mean) / net.deviation
    maps = np.zeros((net.side, net.side))
    maps.T[mask.T] = values
    k = net.kernels.shape[-1]
    windows = np.lib.stride_tricks.sliding_window_view(maps, (k, k))
    maps = np.einsum("yxij,kij->kyx", windows, net.kernels[0]) + net.biases[:, None, None]
    maps = np.maximum(maps, 0)
    pooled = [
        [[m[y : y + 2, x : x + 2].max() for x in range(0, m.shape[1], 2)]
         for y in range(0, m.shape[0], 2)]
        for m in maps
    ]  # fmt: skip
    flat = np.concatenate([np.array(m).T.ravel() for m in pooled])
    hidden = 1 / (1 + np.exp(-(flat @ net.first[0] + net.first[1])))
    out = hidden @ net.second[0] + net.second[1]
    step = 2 / BINS
    return (1 - (-1 + step / 2 + np.argmax(out) * step)) / 2, out


def sample(image: np.ndarray, x: float, y: float) -> float:
    x0, y0 = int(np.floor(x)), int(np.floor(y))
    total = 0.0
    for v, wy in ((y0, 1 - y + y0), (y0 + 1, y - y0)):
        for u, wx in ((x0, 1 - x + x0), (x0 + 1, x - x0)):
            if 0 <= v < image.shape[0] and 0 <= u < image.shape[1]:
                total += wx * wy * image[v, u]
    return total


@pytest.fixture(scope="module")
def nets():
    rng = np.random.default_rng(1)
    return [network(rng) for _ in CENTRES]


@pytest.fixture(scope="module")
def image():
    rng = np.random.default_rng(2)
    return cv2.GaussianBlur(rng.uniform(0, 255, (60, 70)).astype(np.float32), (0, 0), 1.5)


def faces(count: int, rng: np.random.Generator) -> np.ndarray:
    """Landmarks of faces in the image, some of them partly outside it."""
    square = np.array([[0, 0], [1, 0], [1, 1], [0, 1], [0.4, 0.45]])
    corners, sizes = rng.uniform(-8, 45, (count, 1, 2)), rng.uniform(15, 30, (count, 1, 1))
    return corners + sizes * (square + rng.normal(0, 0.03, (count, N, 2)))


def load(folder: Path, data: bytes, landmarks: int = N):
    path = folder / "validator.txt"
    path.write_bytes(data)
    return make_validator(read_validator(path, landmarks))


compiled = jax.jit(Validator.__call__)


@pytest.mark.parametrize("sides", [(9, 9, 9), (9, 12, 10)])
def test_it_is_that_of_the_plain_version(tmp_path, image, rng, sides):
    nets = [network(rng, side) for side in sides]
    validator = load(tmp_path, bytes(validator_file(nets).data))
    assert isinstance(validator.views, View) == (len(set(sides)) == 1)
    shown = set()
    for i, landmarks in enumerate(faces(60, rng)):
        rotation = np.radians(np.array(CENTRES[i % 3]) + rng.uniform(-15, 15, 3))
        expected, out = plain(nets[i % 3], image, landmarks)
        if np.ptp(np.sort(out)[-2:]) < 1e-3:
            continue
        found = compiled(
            validator, image, jnp.asarray(landmarks, jnp.float32), jnp.float32(rotation)
        )
        np.testing.assert_allclose(found, expected, atol=1e-6)
        shown.add(round(expected, 3))
    assert len(shown) > 2


@pytest.mark.parametrize("sides", [(9, 9, 9), (9, 12, 10)])
def test_vmap_gives_the_same(tmp_path, image, rng, sides):
    validator = load(tmp_path, bytes(validator_file([network(rng, s) for s in sides]).data))
    landmarks = jnp.asarray(faces(9, rng), jnp.float32)
    rotations = jnp.radians(jnp.array(CENTRES * 3))
    together = jax.jit(jax.vmap(Validator.__call__, in_axes=(None, None, 0, 0)))
    found = together(validator, image, landmarks, rotations)
    each = [compiled(validator, image, x, r) for x, r in zip(landmarks, rotations, strict=True)]
    np.testing.assert_allclose(found, each, atol=1e-6)


def test_nothing_to_see_gives_none(tmp_path, nets, image):
    validator = partial(compiled, load(tmp_path, bytes(validator_file(nets).data)))
    landmarks, front = jnp.asarray(20 + nets[0].landmarks, jnp.float32), jnp.zeros(3)
    assert validator(image, landmarks, front) > 0
    for level in (0.0, 90.7, 254.9):
        assert validator(np.full_like(image, level), landmarks, front) == 0
    assert validator(image, landmarks + 500, front) == 0
    assert validator(image, landmarks * np.nan, front) == 0


def test_pooling_keeps_the_last_of_an_odd_row():
    maps = jnp.arange(15.0).reshape(1, 3, 5)
    np.testing.assert_array_equal(MaxPool()(maps), [[[6, 8, 9], [11, 13, 14]]])


def test_bytes_of_grey_levels_will_do(tmp_path, nets, image, rng):
    validator = partial(compiled, load(tmp_path, bytes(validator_file(nets).data)))
    landmarks, front = jnp.asarray(faces(1, rng)[0], jnp.float32), jnp.zeros(3)
    grey = image.astype(np.uint8)
    expected = validator(grey.astype(np.float32), landmarks, front)
    assert validator(grey, landmarks, front) == expected


@pytest.fixture
def tiny() -> Writer:
    return validator_file([network(np.random.default_rng(0), side=4, hidden=2)])


def test_files_cut_off_at_any_byte(tmp_path, tiny):
    data = bytes(tiny.data)
    load(tmp_path, data)
    for size in range(1, len(data), 3):
        with pytest.raises(ModelFileError, match=r"validator\.txt, byte \d+: .*truncated"):
            load(tmp_path, data[:size])
    with pytest.raises(ModelFileError, match=f"byte {len(data)}: 1 bytes follow"):
        load(tmp_path, data + b"\0")


def integer_fields() -> list[str]:
    file = validator_file([network(np.random.default_rng(0), side=4, hidden=2)])
    ends = [offset for _, offset in file.fields[1:]] + [len(file.data)]
    sized = zip(file.fields, ends, strict=True)
    return sorted({name for (name, start), end in sized if end - start == 4})


@pytest.mark.parametrize("name", integer_fields())
def test_absurd_counts_and_markers(tmp_path, tiny, name):
    for offset in tiny.offsets(name):
        true = struct.unpack_from("<i", tiny.data, offset)[0]
        # Another layer without numbers of its own may stand in place of one.
        allowed = {1, 3, 4} if name == "layer" and true != 2 and true != 0 else set()
        for value in {-(2**31), -1, 0, 1, 3, 7, 10**6, 2**30, 2**31 - 1} - {true} - allowed:
            data = bytearray(tiny.data)
            struct.pack_into("<i", data, offset, value)
            with little_memory(), pytest.raises(ModelFileError, match=r"validator\.txt, byte"):
                load(tmp_path, bytes(data))


@pytest.mark.parametrize("name", ["mean", "deviation", "kernel", "full weights", "alpha", "least"])
@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_numbers_that_are_not_finite(tmp_path, tiny, name, value):
    data, offset = bytearray(tiny.data), tiny.offsets(name)[0]
    if name in ("kernel", "full weights"):
        struct.pack_into("<f", data, offset, np.float32(np.inf) if value > 1e38 else value)
    else:
        struct.pack_into("<d", data, offset, value)
    with pytest.raises(ModelFileError, match=r"validator\.txt, byte \d+: view 0: "):
        load(tmp_path, bytes(data))


def test_networks_that_do_not_go_together(tmp_path):
    def altered(**changes: object) -> bytes:
        net = network(np.random.default_rng(0), side=4, hidden=2)
        for name, value in changes.items():
            setattr(net, name, value)
        return bytes(validator_file([net]).data)

    ones = np.ones
    with pytest.raises(ModelFileError, match="layer 3 takes 7 numbers"):
        load(tmp_path, altered(first=(ones((7, 2)), ones(2))))
    with pytest.raises(ModelFileError, match="layer 0 puts out"):
        load(tmp_path, altered(kernels=ones((1, 2, 5, 5))))
    with pytest.raises(ModelFileError, match="two or more bins"):
        load(tmp_path, altered(second=(ones((2, 1)), ones(1))))
    with pytest.raises(ModelFileError, match="a mean face of 3 pixels"):
        load(tmp_path, altered(mean=ones(3), deviation=ones(3)))
    with pytest.raises(ModelFileError, match="a deviation of faces is not positive"):
        load(tmp_path, altered(deviation=0 * ones(15)))
    with pytest.raises(ModelFileError, match="is 10 x 1, not 12 x 1"):
        load(tmp_path, altered(), landmarks=6)


def test_warps_that_lead_out_of_their_triangles(tmp_path, tiny):
    for name in ("alpha", "beta", "landmarks"):
        data = bytearray(tiny.data)
        struct.pack_into("<d", data, tiny.offsets(name)[0], 0.77)
        with pytest.raises(ModelFileError, match="do not put pixels in their triangles"):
            load(tmp_path, bytes(data))
    for name, value, problem in (
        ("triangles", 5, "a corner that is no landmark"),
        ("triangles", -1, "a corner that is no landmark"),
        ("mask", 1, "not one of 15 pixels"),
    ):
        data = bytearray(tiny.data)
        struct.pack_into("<i", data, tiny.offsets(name)[0], value)
        with pytest.raises(ModelFileError, match=problem):
            load(tmp_path, bytes(data))


def test_damaged_files_load_or_say_so(tmp_path, tiny):
    """Random bytes: never anything but a validator with finite numbers, or our error."""
    rng, loaded = random.Random(7), 0
    for _ in range(200):
        data = bytearray(tiny.data)
        for _ in range(rng.randint(1, 3)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        try:
            with little_memory():
                validator = load(tmp_path, bytes(data))
        except ModelFileError:
            continue
        loaded += 1
        for array in jax.tree.leaves(validator):
            assert np.isfinite(array).all()
    assert 10 < loaded < 190


def test_other_kinds_are_refused(tmp_path):
    with pytest.raises(ModelFileError, match=r"kind of the validator .* is 2, not 3"):
        load(tmp_path, struct.pack("<ii", 2, 7))


def test_loading_a_model_brings_its_validator(tmp_path, nets):
    from support.openface_files import random_model, write_model

    main = write_model(tmp_path, random_model(landmarks=N))
    assert load_openface(main).confidence is None
    with pytest.raises(ModelFileError, match=r"validator\.txt: no such file; main_clnf_general"):
        load_openface(main, validator=True)
    (tmp_path / "validator.txt").write_bytes(validator_file(nets).data)
    assert isinstance(load_openface(main, validator=True).confidence, Validator)
    assert load_openface(main).confidence is None
    with pytest.raises(ModelFileError, match="names 0 validators"):
        load_openface(tmp_path / "clnf_general.txt", validator=True)
    (tmp_path / "validator.txt").write_bytes(b"\3\0\0\0")
    with pytest.raises(ModelFileError, match="truncated"):
        load_openface(main, validator=True)


@pytest.mark.parametrize("file", ["validator_cnn.txt", "validator_cnn_68.txt"])
def test_openfaces_own_files(shared, file):
    path = shared / "openface" / "model" / "detection_validation" / file
    read = read_validator(path, 68)
    assert np.degrees(read.centres[:, 1]).round().tolist() == [0, -20, -45, -70, 20, 45, 70]
    assert [view.mask.sum() for view in read.views] == [2642, 2469, 1665, 1491, 2494, 1690, 1536]
    assert isinstance(make_validator(read).views, View)


def test_recorded_confidences(shared):
    folder = shared / "openface"
    path = folder / "model" / "detection_validation" / "validator_cnn.txt"
    validator = make_validator(read_validator(path, 68))
    recorded = np.load(folder / "reference" / "final_fits.npz")
    compiled, found, expected = jax.jit(Validator.__call__), [], []
    for number in [*range(0, 40, 4), 7, 23, 38]:
        prefix = f"hier/{number:03d}"
        if not recorded[f"{prefix}/certainty"].item():
            continue  # a failed fit
        image = cv2.imread(str(folder / "images" / f"{number:03d}.png"), cv2.IMREAD_GRAYSCALE)
        canvas = np.zeros((512, 512), np.uint8)  # of one size, to be compiled once
        canvas[: image.shape[0], : image.shape[1]] = image
        landmarks = jnp.asarray(recorded[f"{prefix}/landmarks"].T)
        rotation = jnp.asarray(recorded[f"{prefix}/params_global"].ravel()[1:4])
        found.append(compiled(validator, canvas, landmarks, rotation))
        expected.append(recorded[f"{prefix}/certainty"].item())
    assert len(expected) > 10
    np.testing.assert_allclose(found, expected, atol=1e-6)
