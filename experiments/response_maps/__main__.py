"""Picture what the patch experts see and answer: areas, response maps, their peaks.

    python -m experiments.response_maps                    a photograph in the public domain
    ... --image face.jpg --box 60 40 200 190               any photograph
    ... --recorded 010                                     a face with C++'s maps beside jclnf's

Images of recorded faces stay out of the repository, in `out/`.
"""

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np

import jclnf
from experiments.common import (
    HOPPER_BOX,
    faces,
    hopper,
    model_file,
    recording,
    table,
    write_results,
)
from jclnf.fitting._scales import response_maps
from jclnf.geometry import sample_areas
from jclnf.images import read_image
from tests.support.recordings import Face, Scale, scales

HERE = Path(__file__).resolve().parent

LANDMARKS = (36, 48, 30, 8, 1, 6)
OUT = HERE / "out"

maps_jit = eqx.filter_jit(response_maps)
areas_jit = eqx.filter_jit(sample_areas)


class Maps(NamedTuple):
    """One scale: what each landmark's expert was given, and its answer."""

    window: int
    areas: np.ndarray
    responses: np.ndarray
    points: np.ndarray
    """Landmarks in the image."""
    recorded: np.ndarray | None = None


def maps_at(
    model: jclnf.Model, image: np.ndarray, pose: Any, shape: Any, scale: int, window: int
) -> Maps:
    """The maps of one scale around a shape, in openface arithmetic."""
    params = jclnf.FitParams.openface(model)
    k = jnp.array(scale)
    view = model.experts.nearest_view(k, pose.rotation)
    grey = jnp.asarray(image, jnp.float32)
    found = maps_jit(model, grey, params, pose, jnp.asarray(shape), k, view, window)
    side = window + model.experts.support - 1
    areas = areas_jit(grey, found.base, found.to_image, side, fixed_point=True)
    return Maps(window, np.asarray(areas), np.asarray(found.responses), np.asarray(found.base))


def of_photograph(model: jclnf.Model, face: Face) -> list[Maps]:
    """The maps of each scale, at the state in which a fit comes to it."""
    params = jclnf.FitParams.openface(model)
    windows, found = params.windows, []
    pose = jclnf.geometry._pdm.pose_from_box(model.pdm, jnp.asarray(face.box), jnp.zeros(3))
    shape = model.pdm.mean_shape()
    for k, window in enumerate(windows):
        if k:
            before = params.replace(windows=windows[:k] + (0,) * (len(windows) - k))
            fit = jclnf.fit(model, face.image, face.box, before)
            pose, shape = fit.pose, fit.shape
        found.append(maps_at(model, face.image, pose, shape, k, window))
    return found


def of_recorded(model: jclnf.Model, name: str) -> tuple[Face, list[Maps]]:
    """The maps of each scale at the recorded parameters, with the recorded ones."""
    (face,) = faces([name])
    found = []
    for scale in scales(recording("stages_clnf_general")):
        if scale.face == name:
            found.append(_beside(model, face, scale))
    if not found:
        raise SystemExit(f"no response maps are recorded for {name}")
    return face, found


def _beside(model: jclnf.Model, face: Face, scale: Scale) -> Maps:
    own = maps_at(model, face.image, *scale.start, scale.index, scale.window)
    return own._replace(recorded=scale.maps("responses"))


def peak(response: np.ndarray) -> np.ndarray:
    """Position (x, y) of the largest response, from the centre of the map."""
    side = len(response)
    y, x = divmod(int(response.argmax()), side)
    return np.array([x, y]) - (side - 1) / 2


def numbers(found: list[Maps], landmarks: list[int]) -> tuple[list[list[Any]], list[str]]:
    """Lines of a table of peaks, and its header."""
    lines: list[list[Any]] = []
    for maps in found:
        for i in landmarks:
            x, y = peak(maps.responses[i])
            line = [maps.window, i, f"({x:+.0f}, {y:+.0f})", f"{np.hypot(x, y):.1f} px"]
            if maps.recorded is not None:
                x, y = peak(maps.recorded[i])
                off = np.abs(maps.responses[i] - maps.recorded[i]).max() / maps.recorded[i].max()
                line += [f"({x:+.0f}, {y:+.0f})", f"{off:.2g}"]
            lines.append(line)
    header = ["window", "landmark", "peak from centre", "distance"]
    if found[0].recorded is not None:
        header += ["C++", "largest difference by C++'s maximum"]
    return lines, header


def draw(face: Face, found: list[Maps], landmarks: list[int], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    kinds = ["area", "response"]
    if found[0].recorded is not None:
        kinds += ["C++ response", "difference"]
    rows = len(kinds) * len(found)
    columns = len(landmarks)
    figure = plt.figure(figsize=(4.2 + 1.05 * columns, 1.12 * rows))
    left, right = figure.add_gridspec(1, 2, width_ratios=[3.4, 1.05 * columns], wspace=0.15)
    whole = figure.add_subplot(left)
    whole.set_anchor("N")
    grid = right.subgridspec(rows, columns, wspace=0.08, hspace=0.12)
    _draw_face(whole, face, found[0], landmarks)
    for s, maps in enumerate(found):
        for r, kind in enumerate(kinds):
            for c, i in enumerate(landmarks):
                axis = figure.add_subplot(grid[s * len(kinds) + r, c])
                _draw_cell(axis, maps, i, kind)
                if s + r == 0:
                    axis.set_title(f"landmark {i}", fontsize=7)
                if c == 0:
                    axis.set_ylabel(f"{kind}\n(window {maps.window})", fontsize=6)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=90, bbox_inches="tight")
    plt.close(figure)


def _draw_face(axis: Any, face: Face, start: Maps, landmarks: list[int]) -> None:
    x, y, w, h = face.box
    axis.imshow(face.image, cmap="gray", vmin=0, vmax=255)
    axis.plot(*start.points.T, ".", color="white", ms=2)
    axis.plot(*start.points[landmarks].T, "o", color="red", mfc="none", ms=4)
    for i in landmarks:
        axis.annotate(str(i), start.points[i], color="red", fontsize=6)
    axis.set_xlim(x - 0.3 * w, x + 1.3 * w)
    axis.set_ylim(y + 1.3 * h, y - 0.5 * h)
    axis.set_title("start", fontsize=7)
    axis.axis("off")


def _draw_cell(axis: Any, maps: Maps, landmark: int, kind: str) -> None:
    axis.set_xticks([])
    axis.set_yticks([])
    response = maps.responses[landmark]
    if kind == "area":
        axis.imshow(maps.areas[landmark], cmap="gray", vmin=0, vmax=255)
        return
    if kind == "difference":
        highest = maps.recorded[landmark].max()
        off = (response - maps.recorded[landmark]) / highest
        axis.imshow(off, cmap="RdBu", vmin=-0.01, vmax=0.01)
        axis.text(0.03, 0.03, f"{np.abs(off).max():.1g}", fontsize=6, transform=axis.transAxes)
        return
    shown = response if kind == "response" else maps.recorded[landmark]
    middle = (maps.window - 1) / 2
    axis.imshow(shown, cmap="viridis", vmin=0)
    axis.plot(middle, middle, "+", color="white", ms=5)
    axis.plot(*(peak(shown) + middle), "x", color="red", ms=4)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--landmarks", type=int, nargs="+", default=LANDMARKS)
    parser.add_argument("--image", type=Path, help="a photograph (Grace Hopper's if not given)")
    parser.add_argument("--box", type=float, nargs=4, metavar=("X", "Y", "W", "H"))
    parser.add_argument("--recorded", metavar="NNN", help="a face with recorded C++ maps")
    args = parser.parse_args()
    if args.image is not None and args.box is None:
        parser.error("--image needs --box: x y w h, tight around the face, eyebrows to chin")
    model = jclnf.load_openface(model_file("general"))
    landmarks = list(args.landmarks)
    if args.recorded is not None:
        face, found = of_recorded(model, args.recorded)
        path = OUT / f"recorded_{args.recorded}.png"
    else:
        face = photograph(args.image, args.box)
        found = of_photograph(model, face)
        path = (OUT if args.image else HERE) / f"{face.name}.png"
    draw(face, found, landmarks, path)
    lines, header = numbers(found, landmarks)
    text = table(header, lines)
    if path.parent == HERE:
        body = f"![areas and response maps]({path.name})\n\n{text}"
        write_results(HERE, "Response maps of a photograph", body, {"peaks": [header, *lines]})
    else:
        print(text)
    print(f"image: {path}")


def photograph(path: Path | None, box: list[float] | None) -> Face:
    path = path or hopper()
    return Face(path.stem, read_image(path), np.array(box or HOPPER_BOX, np.float32))


if __name__ == "__main__":
    main()
