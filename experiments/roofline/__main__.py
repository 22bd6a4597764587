"""Measure how near the responses of CCNF experts are to what a processor core can do.

Counted are the operations and bytes of the algorithm, whatever the implementation does; measured in
the same run, alternately, are the core's two ceilings (a large product of matrices, and a sum over
a large array) and `ccnf_responses` with weights of OpenFace's shapes. Run it with one core:

    taskset -c 0 python -m experiments.roofline
"""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common import command_line, table, write_results
from experiments.timing import timed
from jclnf.experts import CCNF, ccnf_responses, neurons_side_by_side, side_by_side, symmetric_bases
from jclnf.fitting import known_options

HERE = Path(__file__).resolve().parent
LANDMARKS, VIEWS, NEURONS, SUPPORT = 68, 7, 7, 11
WINDOWS = (11, 9, 7)
FACES = 32
ROUNDS = 15


def work(window: int) -> tuple[float, float]:
    """Floating-point operations and bytes of one face's responses at one scale."""
    positions, patch = window**2, SUPPORT**2
    sides = [(len(basis), basis.shape[-1]) for basis in symmetric_bases(window)]
    projections = 2 * LANDMARKS * NEURONS * patch * positions
    # Sums and squares along rows and columns, from which mean and norm of each patch follow.
    normalisation = 4 * LANDMARKS * positions * 2 * SUPPORT
    sigmoids = 10 * LANDMARKS * NEURONS * positions
    # Into the basis of the field's covariance, where it is blocks, and back.
    smoothing = LANDMARKS * (sum(2 * n * side**2 for n, side in sides) + 2 * 2 * 8 * positions)
    numbers = NEURONS * (patch + 2) + sum(side**2 for _, side in sides)
    read = LANDMARKS * (numbers + (window + SUPPORT - 1) ** 2)
    return projections + normalisation + sigmoids + smoothing, 4.0 * (read + LANDMARKS * positions)


def responses(window: int):
    """The responses of random experts for a batch of faces, one after the other in one program: a
    fit calls them from within its own."""
    rng = np.random.default_rng(window)
    side = window + SUPPORT - 1
    numbers = sum(basis.shape[-1] ** 2 for basis in symmetric_bases(window))

    def random(*shape: int) -> jax.Array:
        return jnp.asarray(rng.standard_normal(shape), jnp.float32)

    # Of all views, as in a model: each face has its own, which is the same one here.
    by_neuron = [random(VIEWS, LANDMARKS, NEURONS) for _ in range(3)]
    weights = random(VIEWS, LANDMARKS, NEURONS, SUPPORT, SUPPORT)
    neurons = neurons_side_by_side(weights, *by_neuron)
    covariances = side_by_side(random(VIEWS, LANDMARKS, numbers), axis=1)
    areas = 128 + 40 * random(FACES, LANDMARKS, side, side)
    views = jnp.full(FACES, VIEWS // 2)

    @functools.partial(jax.jit, compiler_options=dict(known_options(CCNF.cpu_options)))
    def of_all(areas, neurons, covariances, views):
        def of_one(face):
            of_view = (each[face[1]] for each in neurons)
            return ccnf_responses(face[0], *of_view, covariances, face[1], window)

        return jax.lax.map(of_one, (areas, views))

    return lambda: of_all(areas, neurons, covariances, views)


def main() -> None:
    """Measure, print and write the results."""
    command_line(__doc__).parse_args()
    square, long = jnp.ones((1024, 1024)), jnp.ones(2**24)
    product, total = jax.jit(jnp.matmul), jax.jit(jnp.sum)
    pieces = {
        "product": lambda: product(square, square),
        "sum": lambda: total(long),
        **{f"window {window}": responses(window) for window in WINDOWS},
    }
    # As in a batch or a video: at first each waits for memory that the one before has used.
    rounds = [
        {name: np.median([timed(piece) for _ in range(10)][5:]) for name, piece in pieces.items()}
        for _ in range(ROUNDS)
    ]
    seconds = {name: float(np.median([found[name] for found in rounds])) for name in pieces}
    peak, bandwidth = 2 * 1024**3 / seconds["product"], long.nbytes / seconds["sum"]
    lines, numbers = [], {"gflops": peak / 1e9, "gigabytes": bandwidth / 1e9}
    for window in WINDOWS:
        operations, moved = work(window)
        least = max(operations / peak, moved / bandwidth)
        took = seconds[f"window {window}"] / FACES
        numbers[f"window {window}"] = {"ms": 1e3 * took, "least_ms": 1e3 * least}
        lines.append(
            [
                window,
                f"{operations / 1e6:.1f}",
                f"{moved / 1e6:.2f}",
                f"{1e3 * least:.3f}",
                f"{1e3 * took:.3f}",
                f"{took / least:.1f}",
                f"{operations / took / 1e9:.1f}",
            ]
        )
    body = (
        f"One core: {peak / 1e9:.0f} GFLOP/s in a product of 1024 x 1024 matrices, "
        f"{bandwidth / 1e9:.1f} GB/s in a sum over 64 MB. {LANDMARKS} landmarks, {NEURONS} neurons "
        f"of {SUPPORT} x {SUPPORT}, a face of a batch of {FACES}; medians of {ROUNDS} rounds.\n\n"
    )
    head = ["window", "MFLOP", "MB", "least ms", "ms", "times the least", "GFLOP/s"]
    body += table(head, lines)
    write_results(HERE, "The roofline of CCNF responses", body, numbers)


if __name__ == "__main__":
    main()
