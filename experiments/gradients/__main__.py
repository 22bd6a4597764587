"""Are the derivatives of a fit right, and what do they cost?

    python -m experiments.gradients [checks|costs] [--model NAME]

`checks`: double precision; every kind of leaf against central differences, forward against reverse
mode, implicit against unrolled. `costs`: single precision; time and memory of value and gradient
with respect to all experts' parameters. Both with OpenFace's CCNF model (from the development data)
and with the bundled one, or with the named one alone. Each writes its part of results.json, and
results.md from all.
"""

import argparse
import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import jclnf
from experiments.common import faces, model_file, table, write_results
from jclnf.experts import CCNF
from jclnf.fitting import crops_of_one_size, fit_from, initial_state, map_faces
from jclnf.params import DERIVATIVES, as_dtype
from tests.support.recordings import Face

HERE = Path(__file__).resolve().parent

FACES = 5
DIRECTIONS = 4
"""In each leaf; in each of a network's many kernels one."""
STEP = {"image": 1e-6, "box": 1e-9, "params.weight_factor": 1e-5}
"""Of central differences, relative to the mean size of a leaf's numbers; 1e-7 unless given. Slopes
along the weight factor are so small that rounding decides there; a box moves all positions that
crops are read at, each of which has a kink at every pixel."""
KINK = 1e-3
"""Relative difference of the slopes to both sides from which on a place is taken for a kink."""
MANY = 50
BATCH = 32


def openface_ccnf() -> jclnf.Model:
    """OpenFace's model, with settings under which every leaf plays a part."""
    clnf = jclnf.load_openface(model_file("general"))
    settings = jclnf.FitParams.openface(clnf, arithmetic="exact")
    factor = jnp.where(jnp.array(settings.windows) > 0, 2.5, 0.0)
    return dataclasses.replace(clnf, defaults=settings.replace(weight_factor=factor))


MODELS = {"OpenFace CCNF": openface_ccnf, "bundled": jclnf.load_model}


def some_faces(count: int) -> list[Face]:
    """Recorded faces in crops of one size."""
    picked = faces()[:: 120 // count][:count]
    crops = crops_of_one_size([face.image for face in picked], [face.box for face in picked])
    return [Face(f.name, p.image, p.box) for f, p in zip(picked, crops, strict=True)]


def leaves_of(model: jclnf.Model, face: Face) -> dict[str, Any]:
    """All that derivatives are taken with respect to, in double precision."""
    return as_dtype(
        {
            "params": model.defaults,
            "experts": model.experts,
            "pdm": model.pdm,
            "box": jnp.asarray(face.box),
            "rotation": jnp.array([0.02, -0.03, 0.01]),
            "image": jnp.asarray(face.image, jnp.float32),
        },
        jnp.float64,
    )


def outputs(at: dict[str, Any], **changes: Any) -> tuple[Any, jclnf.FitResult]:
    """A number of the landmarks, one of the pose, and the likelihood."""
    model = jclnf.Model(at["pdm"], at["experts"], at["params"])
    params = at["params"].replace(**changes)
    result = jclnf.fit(model, at["image"], at["box"], params, init=at["rotation"])
    n = result.landmarks.size
    weights = jnp.cos(jnp.arange(n, dtype=result.landmarks.dtype)).reshape(-1, 2)
    pose = jnp.sum(result.pose.rotation * jnp.array([3.0, -2.0, 5.0])) + result.pose.scale
    return jnp.stack([jnp.sum(weights * result.landmarks), pose, result.likelihood]), result


def kinds(at: dict[str, Any]) -> list[tuple[int, str]]:
    """Index and name of every leaf that has a derivative."""
    paths = jax.tree_util.tree_flatten_with_path(at)[0]
    named = [
        (i, jax.tree_util.keystr(p, simple=True, separator="."), a)
        for i, (p, a) in enumerate(paths)
    ]
    return [
        (i, name)
        for i, name, array in named
        if eqx.is_inexact_array(array) and not name.endswith("centres")
    ]


def check_slopes(model: jclnf.Model, picked: list[Face]) -> dict[str, Any]:
    """Reverse mode against central differences and against forward mode, for every kind of leaf."""
    with jax.enable_x64(True):
        value = jax.jit(lambda at: outputs(at)[0])
        every = jax.jit(jax.jacrev(lambda f, rest: outputs(eqx.combine(f, rest))[0]))
        forward = jax.jit(
            lambda f, along, rest: jax.jvp(
                lambda f: outputs(eqx.combine(f, rest))[0], (f,), (along,)
            )[1]
        )
        errors: dict[str, list[float]] = {}
        disagreement, kinks, count = [], 0, 0
        rng = np.random.default_rng(0)
        for face in picked:
            at = leaves_of(model, face)
            floats, rest = eqx.partition(at, eqx.is_inexact_array)
            slopes = jax.tree.leaves(every(floats, rest))
            middle = np.asarray(value(at))
            where = {id(leaf): i for i, leaf in enumerate(jax.tree.leaves(floats))}
            still = jax.tree.map(jnp.zeros_like, floats)
            for index, name in kinds(at):
                array = jax.tree.leaves(at)[index]
                slot = where[id(array)]
                kind = name.removeprefix("experts.") if "kernels" not in name else "kernels"
                for _ in range(1 if kind == "kernels" else DIRECTIONS):
                    along = rng.standard_normal(array.shape)
                    # The image: a spot near the face. An array with zeros: only where it is not.
                    if name == "image":
                        along = spot(at["box"], array.shape, rng)
                    along *= np.abs(np.asarray(array)).mean() * (np.asarray(array) != 0)
                    step = STEP.get(name, 1e-7)
                    ends = [
                        np.asarray(
                            value(eqx.combine(replaced(floats, slot, array + s * along), rest))
                        )
                        for s in (step, -step)
                    ]
                    numeric = (ends[0] - ends[1]) / (2 * step)
                    sides = (ends[0] - middle) / step, (middle - ends[1]) / step
                    found = np.tensordot(np.asarray(slopes[slot]), along, along.ndim)
                    tangent = replaced(still, slot, jnp.asarray(along))
                    ahead = np.asarray(forward(floats, tangent, rest))
                    size = np.abs(numeric) + 1e-9
                    disagreement.append((np.abs(ahead - found) / (np.abs(found) + 1e-12)).max())
                    for k in range(3):
                        count += 1
                        if abs(sides[0][k] - sides[1][k]) / size[k] > KINK:
                            kinks += 1
                            continue
                        errors.setdefault(kind, []).append(
                            float(abs(found[k] - numeric[k]) / size[k])
                        )
    return {"errors": errors, "forward": disagreement, "kinks": kinks, "count": count}


def replaced(tree: Any, slot: int, leaf: Any) -> Any:
    """The tree with another leaf."""
    leaves, structure = jax.tree.flatten(tree)
    leaves[slot] = leaf
    return jax.tree.unflatten(structure, leaves)


def spot(box: Any, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """A bright spot somewhere in the box."""
    x, y, w, h = np.asarray(box)
    v, u = np.mgrid[: shape[0], : shape[1]]
    cx, cy = x + rng.uniform(0.2, 0.8) * w, y + rng.uniform(0.3, 0.9) * h
    return np.exp(-((u - cx) ** 2 + (v - cy) ** 2) / (2 * (0.05 * w) ** 2))


def check_implicit(model: jclnf.Model, picked: list[Face]) -> list[dict[str, Any]]:
    """Cosine of implicit and unrolled derivatives with respect to the last scale's leaves."""
    lines = []
    with jax.enable_x64(True):

        def last(params: Any, experts: Any) -> Any:
            arrays = [params.regularisation, params.kernel_width, params.weight_factor]
            trained = [
                leaf
                for path, leaf in jax.tree_util.tree_leaves_with_path(experts)
                if not {"centres", "components"} & {getattr(p, "name", "") for p in path}
                and jnp.issubdtype(leaf.dtype, jnp.floating)
            ]
            return [array[-1] for array in arrays], [array[-1] for array in trained]

        def gradient(how: str) -> Any:
            def loss(chosen: Any, rest: Any) -> Any:
                at = eqx.combine(chosen, rest)
                values, result = outputs(at, iterations=MANY, derivatives=how)
                return values[0], result.status

            return jax.jit(jax.grad(loss, has_aux=True))

        both = {how: gradient(how) for how in ("rematerialised", "implicit")}
        for face in picked:
            at = leaves_of(model, face)
            chosen = {k: at[k] if k in ("params", "experts") else None for k in at}
            floats = eqx.filter(chosen, eqx.is_inexact_array)
            rest = {k: None if k in ("params", "experts") else v for k, v in at.items()}
            rest = (
                rest
                | eqx.filter(chosen, eqx.is_inexact_array, inverse=True)
                | {k: v for k, v in at.items() if k not in ("params", "experts")}
            )
            found = {}
            for how, compute in both.items():
                slopes, status = compute(floats, rest)
                found[how] = last(slopes["params"], slopes["experts"])
            line: dict[str, Any] = {"face": face.name, "status": int(status)}
            for group, (a, b) in zip(
                ("settings", "experts"), zip(*found.values(), strict=True), strict=True
            ):
                a, b = (np.concatenate([np.ravel(x) for x in part]) for part in (a, b))
                line[group] = float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))
            lines.append(line)
            print(line, flush=True)
    return lines


def costs(model: jclnf.Model, name: str) -> dict[str, Any]:
    """Time and temporary memory of a batch: forward, and value and gradient with respect to all
    experts."""
    picked = some_faces(BATCH)
    images = jnp.stack([jnp.asarray(face.image, jnp.float32) for face in picked])
    boxes = jnp.stack([jnp.asarray(face.box) for face in picked])
    floats, rest = eqx.partition(model.experts, eqx.is_inexact_array)

    def fits(floats: Any, images: Any, boxes: Any, how: str) -> Any:
        params = model.defaults.replace(derivatives=how)
        changed = dataclasses.replace(model, experts=eqx.combine(floats, rest)).prepare(params)

        def one(face: Any) -> Any:
            pose, shape = jax.lax.stop_gradient(initial_state(changed, *face))
            return fit_from(changed, face[0], pose, shape, params).landmarks

        side_by_side = not isinstance(model.experts, CCNF)
        return map_faces(one, (images, boxes), side_by_side=side_by_side)

    def loss(floats: Any, images: Any, boxes: Any, how: str) -> Any:
        return jnp.mean((fits(floats, images, boxes, how) - 100.0) ** 2)

    programs = {"forward": jax.jit(lambda *a: fits(*a, "unrolled"))} | {
        how: jax.jit(jax.value_and_grad(lambda *a, how=how: loss(*a, how))) for how in DERIVATIVES
    }
    memory, compiled, seconds = {}, {}, {key: [] for key in programs}
    for key, program in programs.items():
        began = time.perf_counter()
        compiled[key] = program.lower(floats, images, boxes).compile()
        memory[key] = compiled[key].memory_analysis().temp_size_in_bytes / 1e6
        jax.block_until_ready(compiled[key](floats, images, boxes))
        print(
            name,
            key,
            f"{memory[key]:.0f} MB, compiled in {time.perf_counter() - began:.0f} s",
            flush=True,
        )
    for _ in range(7):
        for key, program in compiled.items():
            began = time.perf_counter()
            jax.block_until_ready(program(floats, images, boxes))
            seconds[key].append(time.perf_counter() - began)
    ratio = {key: float(np.median(np.divide(seconds[key], seconds["forward"]))) for key in programs}
    per_face = {key: 1e3 * float(np.median(times)) / BATCH for key, times in seconds.items()}
    return {"ms a face": per_face, "ratio": ratio, "temporaries MB": memory}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help="checks, costs; both if not given")
    parser.add_argument("--model", choices=MODELS, action="append", help="default: all")
    args = parser.parse_args()
    wanted = args.parts or ["checks", "costs"]
    used = {name: MODELS[name]() for name in args.model or MODELS}
    file = HERE / "results.json"
    numbers = json.loads(file.read_text()) if file.exists() else {}
    numbers.pop("environment", None)
    jclnf.enable_compilation_cache()
    if "checks" in wanted:
        checks = {}
        for name, model in used.items():
            picked = some_faces(FACES)
            checks[name] = {
                "slopes": check_slopes(model, picked),
                "implicit": check_implicit(model, picked),
            }
            found = np.concatenate(list(map(np.array, checks[name]["slopes"]["errors"].values())))
            print(name, np.median(found), found.max(), flush=True)
        numbers["checks"] = numbers.get("checks", {}) | summary_of(checks)
    if "costs" in wanted:
        measured = {name: costs(model, name) for name, model in used.items()}
        numbers["costs"] = numbers.get("costs", {}) | measured
    write_results(HERE, "Derivatives of a fit: right, and at what cost", text(numbers), numbers)


def summary_of(checks: dict[str, Any]) -> dict[str, Any]:
    out = {}
    for name, check in checks.items():
        slopes = check["slopes"]
        together = np.concatenate([np.array(v) for v in slopes["errors"].values()])
        out[name] = {
            "by kind": {
                kind: [len(v), float(np.median(v)), float(np.max(v))]
                for kind, v in slopes["errors"].items()
            },
            "median": float(np.median(together)),
            "worst": float(together.max()),
            "kinks": slopes["kinks"],
            "checked": slopes["count"],
            "forward against reverse": float(np.max(slopes["forward"])),
            "implicit": check["implicit"],
        }
    return out


def text(numbers: dict[str, Any]) -> str:
    parts = []
    for name, check in numbers.get("checks", {}).items():
        rows = [[k, n, f"{m:.1e}", f"{w:.1e}"] for k, (n, m, w) in check["by kind"].items()]
        rows.append(
            ["all (asked 1e-4, 1e-2)", "", f"{check['median']:.1e}", f"{check['worst']:.1e}"]
        )
        parts.append(
            f"## {name}\n\n"
            f"Relative error of derivatives of landmarks, pose and likelihood against central "
            f"differences, {FACES} faces, {DIRECTIONS} random directions in each leaf, one in each "
            "of a network's kernels:\n\n"
            + table(["leaf", "checked", "median", "worst"], rows)
            + f"\n\nKinks, left out: {check['kinks']} of {check['checked']} (asked: at most 5 %). "
            f"Forward against reverse mode: {check['forward against reverse']:.1e} (asked 1e-8)."
        )
        rows = [
            [line["face"], jclnf.FitStatus(line["status"]).name.lower()]
            + [f"{line[group]:.6f}" for group in ("settings", "experts")]
            for line in check["implicit"]
        ]
        parts.append(
            f"Implicit against unrolled derivatives at {MANY} iterations, cosine over the last "
            "scale's leaves (asked 0.999 where converged):\n\n"
            + table(["face", "status", "settings", "experts"], rows)
        )
    for name, cost in numbers.get("costs", {}).items():
        rows = [
            [key, f"{cost['ms a face'][key]:.2f}", f"{cost['ratio'][key]:.2f}"]
            + [f"{cost['temporaries MB'][key]:.0f}"]
            for key in cost["ratio"]
        ]
        parts.append(
            f"## Cost, {name}\n\nA batch of {BATCH} faces; value and "
            "gradient with respect to all of the experts' parameters (asked: at most 6 times the "
            "forward fit, and rematerialised a third of the unrolled memory):\n\n"
            + table(["", "ms a face", "times forward", "temporaries, MB"], rows)
        )
    return "\n\n".join(parts)


if __name__ == "__main__":
    main()
