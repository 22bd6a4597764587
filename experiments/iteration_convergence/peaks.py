"""Where the peaks of the response maps lie, jclnf and C++."""

from typing import Any

import numpy as np

from experiments.common import Row, recording, table
from tests.support.recordings import PASSES, scales

LANDMARKS = (48, 1, 6)
"""Those whose peaks the report that started the project found to stay off-centre."""
SHOWN = (0, 2, 4)

Pairs = dict[Any, list[tuple[float, float]]]


def beside_recorded(infos: dict[str, dict[str, Any]]) -> tuple[list[Row], str, str]:
    """Distances of landmarks from peaks, and of peaks from centres: jclnf's and C++'s."""
    from_landmark: Pairs = {}
    from_centre: Pairs = {}
    same = total = 0
    for scale in scales(recording("stages_clnf_general")):
        info, window = infos[scale.face], scale.window
        maps = scale.maps("responses")
        seen = maps.any((1, 2))
        y, x = np.divmod(maps.reshape(len(maps), -1).argmax(1), window)
        peaks = np.stack([x, y], axis=1)
        theirs = peaks - (window - 1) / 2
        ours = info["windows"][scale.index]["peak_offsets"]
        same, total = same + int(np.sum(np.all(ours == theirs, axis=1)[seen])), total + seen.sum()
        for i in LANDMARKS:
            pair = np.linalg.norm(ours[i]), np.linalg.norm(theirs[i])
            from_centre.setdefault((window, i), []).append(pair)
        own = distances(info, scale.index, seen)
        for step in scale.iterations():
            away = np.linalg.norm(peaks - scale.at(step, "offsets"), axis=1)[seen].mean()
            at = PASSES[not step.rigid], step.number
            pair = float(own[int(not step.rigid)][step.number]), float(away)
            from_landmark.setdefault((window, at), []).append(pair)
    windows = sorted({window for window, _ in from_centre}, reverse=True)
    steps = [(name, number) for name in PASSES for number in SHOWN]
    near = table(
        ["window", *(f"{name} {number}" for name, number in steps)],
        [[w, *(_mean(from_landmark[w, step]) for step in steps)] for w in windows],
    )
    centre = table(
        ["window", *(f"landmark {i}" for i in LANDMARKS)],
        [[w, *(_mean(from_centre[w, i]) for i in LANDMARKS)] for w in windows],
    )
    rows = [Row("response maps with the same peak pixel as C++'s", "stages", int(total), same)]
    return rows, near, centre


def by_iterations(infos: dict[int, list[dict[str, Any]]]) -> str:
    """Mean distance of jclnf's landmarks from their peaks at each scale's last iteration."""
    lines = []
    for n, of_faces in infos.items():
        ends = []
        for info in of_faces:
            performed = info["result"].trace.performed[:, 1]
            last = performed.sum(1) - 1
            ends.append([distances(info, k, info["visible"])[1][at] for k, at in enumerate(last)])
        lines.append([n, *(f"{away:.3g}" for away in np.mean(ends, axis=0))])
    windows = [entry["window"] for entry in infos[next(iter(infos))][0]["windows"]]
    return table(["iterations", *(f"window {window}" for window in windows)], lines)


def distances(info: dict[str, Any], scale: int, seen: np.ndarray) -> np.ndarray:
    """Mean distance of the visible landmarks from their peaks, (pass, iteration)."""
    offsets = info["result"].trace.peak_offset[scale]
    return np.linalg.norm(offsets, axis=-1)[..., seen].mean(-1)


def _mean(pairs: list[tuple[float, float]]) -> str:
    return " / ".join(f"{value:.3g}" for value in np.mean(pairs, axis=0))
