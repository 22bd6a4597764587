"""Which pixels move which landmarks? Derivatives of a fit with respect to its image.

    python -m experiments.sensitivity

The Jacobian of all landmarks with respect to all pixels of a photograph (Grace Hopper, US Navy,
public domain; it comes with matplotlib), through the whole fit, in double precision: for the
bundled model from its own start, and for OpenFace's CCNF model if the development data are there.
Where the sensitivity lies, and whether pixels that are changed move landmarks as their derivatives
say.
"""

import dataclasses
from pathlib import Path
from typing import Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np

import jclnf
from experiments.common import HOPPER_BOX, command_line, hopper, model_file, table, write_results
from jclnf.images import read_image
from jclnf.params import as_dtype

HERE = Path(__file__).resolve().parent

LANDMARKS = {
    36: "outer eye corner",
    19: "eyebrow",
    30: "tip of the nose",
    48: "corner of the mouth",
    8: "chin",
    3: "jaw",
}
RADII = (10.0, 20.0, 40.0)
"""Millimetres on the face, as the fit has its scale."""
STRONGEST = 200
"""Pixels that are changed together."""
CHANGES = (0.01, 0.1, 1.0, 4.0)
"""Grey levels that they are changed by."""
PARTS = 8
"""In which the Jacobian is computed."""
WIDTH = 170
"""Of a map, in pixels of the PNG."""


def models() -> dict[str, jclnf.Model]:
    found = {"bundled": jclnf.load_model()}
    if model_file("general").exists():
        clnf = jclnf.load_openface(model_file("general"))
        exact = jclnf.FitParams.openface(clnf, arithmetic="exact")
        found["openface"] = dataclasses.replace(clnf, defaults=exact)
    return found


class Fitter:
    """Fits of one face by one model, in double precision."""

    def __init__(self, model: jclnf.Model, box: Any) -> None:
        model = as_dtype(model, jnp.float64)
        box = jnp.asarray(box, jnp.float64)

        def fit(image: Any) -> jclnf.FitResult:
            return jclnf.fit(model, image, box, model.defaults)

        # Some at a time: one by one, gradients of convolutions take ten times as long.
        def slopes(image: Any, seeds: Any) -> Any:
            back = jax.vjp(lambda image: fit(image).landmarks.ravel(), image)[1]
            return jax.vmap(lambda seed: back(seed)[0])(seeds)

        self.fit, self.slopes = jax.jit(fit), jax.jit(slopes)

    def landmarks(self, image: np.ndarray) -> np.ndarray:
        """`(n, 2)` pixels."""
        return np.asarray(self.fit(jnp.asarray(image)).landmarks)

    def jacobian(self, image: np.ndarray) -> np.ndarray:
        """`(n, 2, h, w)` pixels a grey level."""
        n = len(self.landmarks(image))
        parts = np.array_split(np.eye(2 * n), PARTS)
        found = [np.asarray(self.slopes(jnp.asarray(image), part)) for part in parts]
        return np.concatenate(found).reshape(n, 2, *image.shape)


def where(jacobian: np.ndarray, landmarks: np.ndarray, scale: float) -> dict[str, np.ndarray]:
    """How far from their pixels landmarks are.

    Args:
        jacobian: `(n, 2, h, w)`.
        landmarks: `(n, 2)` pixels.
        scale: pixels a millimetre.

    Returns:
        `shares` `(n, r)` of the sensitivity within `RADII`, `half` `(n,)` the radius (mm) with half
        of it.
    """
    strength = np.sqrt((jacobian**2).sum(1))
    v, u = np.mgrid[: strength.shape[1], : strength.shape[2]]
    shares, half = [], []
    for sensitivity, (x, y) in zip(strength, landmarks, strict=True):
        away = np.hypot(u - x, v - y) / scale
        shares.append([sensitivity[away <= r].sum() / sensitivity.sum() for r in RADII])
        order = np.argsort(away, axis=None)
        sums = np.cumsum(sensitivity.ravel()[order])
        half.append(away.ravel()[order][np.searchsorted(sums, sums[-1] / 2)])
    return {"shares": np.array(shares), "half": np.array(half)}


def predictions(fitter: Fitter, image: np.ndarray, jacobian: np.ndarray) -> list[dict[str, float]]:
    """Each chosen landmark's coordinates, moved by the pixels that move them most."""
    before = fitter.landmarks(image)
    lines = []
    for landmark in LANDMARKS:
        for axis in (0, 1):
            slope = jacobian[landmark, axis]
            # Pixels that stay within the grey levels there are.
            free = (image > max(CHANGES)) & (image < 255 - max(CHANGES))
            least = np.sort(np.abs(slope)[free])[-STRONGEST]
            along = np.where(free & (np.abs(slope) >= least), np.sign(slope), 0.0)
            for change in CHANGES:
                moved = fitter.landmarks(image + change * along) - before
                lines.append(
                    {
                        "landmark": landmark,
                        "axis": axis,
                        "change": change,
                        "predicted": change * float((slope * along).sum()),
                        "measured": float(moved[landmark, axis]),
                    }
                )
    return lines


def draw(file: Path, image: np.ndarray, jacobian: np.ndarray, landmarks: np.ndarray) -> None:
    """The maps of the chosen landmarks, each as bright as its strongest pixels."""
    x, y, w, h = HOPPER_BOX
    low = np.floor([y - 0.25 * h, x - 0.25 * w]).astype(int)
    high = np.ceil([y + 1.25 * h, x + 1.25 * w]).astype(int)
    part = np.s_[low[0] : high[0], low[1] : high[1]]
    zoom = WIDTH / (high[1] - low[1])
    shown = []
    for landmark, name in LANDMARKS.items():
        strength = np.sqrt((jacobian[landmark] ** 2).sum(0))
        # Sampling picks single pixels: smoothed a little, their pattern can be seen.
        heat = cv2.GaussianBlur(strength, (0, 0), 1.5)[part]
        heat = np.sqrt(np.clip(heat / np.quantile(heat, 0.998), 0, 1))
        grey = np.repeat(0.45 * image[part][..., None], 3, axis=2)
        colour = cv2.applyColorMap((255 * heat).astype(np.uint8), cv2.COLORMAP_INFERNO)
        panel = (1 - heat[..., None]) * grey + heat[..., None] * colour
        panel = cv2.resize(panel, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_AREA)
        panel = np.clip(panel, 0, 255).astype(np.uint8)
        at = zoom * (landmarks[landmark] - low[::-1])
        centre = tuple(int(c) for c in np.rint(at))
        cv2.drawMarker(panel, centre, (200, 255, 80), cv2.MARKER_CROSS, 9, 1, cv2.LINE_AA)
        cv2.putText(panel, name, (4, 12), 0, 0.38, (255, 255, 255), 1, cv2.LINE_AA)
        shown.append(panel)
    rows = [np.hstack(shown[i : i + 3]) for i in range(0, len(shown), 3)]
    cv2.imwrite(str(file), np.vstack(rows), [cv2.IMWRITE_PNG_COMPRESSION, 9])


def main() -> None:
    command_line(__doc__).parse_args()
    jclnf.enable_compilation_cache()
    image = read_image(hopper())
    grey = image.astype(np.float64)
    shares_lines, line_lines, images, numbers = [], [], [], {}
    with jax.enable_x64(True):
        for name, model in models().items():
            fitter = Fitter(model, HOPPER_BOX)
            result = fitter.fit(jnp.asarray(grey))
            landmarks, scale = np.asarray(result.landmarks), float(result.pose.scale)
            jacobian = fitter.jacobian(grey)
            draw(HERE / f"{name}.png", grey, jacobian, landmarks)
            images.append(f"![sensitivity of six landmarks, {name}]({name}.png)")
            near = where(jacobian, landmarks, scale)
            groups = {
                **{f"{label} ({index})": [index] for index, label in LANDMARKS.items()},
                "inner 51": list(range(17, 68)),
                "jaw, 17": list(range(17)),
            }
            for label, group in groups.items():
                shares = near["shares"][group].mean(0)
                largest = np.sqrt((jacobian[group] ** 2).sum(1)).max((1, 2)).mean()
                shares_lines.append(
                    [name, label, *(f"{100 * share:.0f} %" for share in shares)]
                    + [f"{near['half'][group].mean():.0f}", f"{largest:.1e}"]
                )
            checks = predictions(fitter, grey, jacobian)
            for change in CHANGES:
                of = [c for c in checks if c["change"] == change]
                predicted, measured = (
                    np.array([c[key] for c in of]) for key in ("predicted", "measured")
                )
                error = np.abs(measured / predicted - 1)
                line_lines.append(
                    [name, f"{change:g}", f"{np.median(predicted):.2g}"]
                    + [f"{np.median(measured):.2g}"]
                    + [f"{100 * np.median(error):.2g} %", f"{100 * error.max():.2g} %"]
                )
            numbers[name] = {
                "pixels a millimetre": scale,
                "shares": near["shares"],
                "half": near["half"],
                "checks": checks,
            }
            print(name, flush=True)
    body = (
        f"Grace Hopper, box {HOPPER_BOX}; all landmarks with respect to all pixels. Share of the "
        "sensitivity (length of a landmark's derivative with respect to each pixel, summed) within "
        "a distance of the landmark, the distance within which half of it lies, and the movement "
        "for one grey level of the strongest pixel:\n\n"
        + table(
            ["model", "landmark", *(f"{r:g} mm" for r in RADII), "half, mm", "px a grey level"],
            shares_lines,
        )
        + "\n\n"
        + "\n\n".join(images)
        + f"\n\n## Do they move as predicted?\n\nFor x and y of each of the {len(LANDMARKS)} "
        f"landmarks: its {STRONGEST} strongest pixels made brighter or darker, each so that the "
        "landmark should move forwards.\n\n"
        + table(
            ["model", "grey levels", "predicted, px", "moved, px", "off by, median", "worst"],
            line_lines,
        )
    )
    write_results(HERE, "Which pixels move which landmarks?", body, numbers)


if __name__ == "__main__":
    main()
