"""Programs for accelerators that are not there: each is lowered for them, none is compiled."""

import jax
import jax.extend
import jax.numpy as jnp
import pytest
from support.synthetic import default_params, planted

import jclnf
from jclnf.fitting import fit_face

ACCELERATORS = ("cuda", "tpu")
BATCH, SIDE = 4, 256


def example(name: str) -> tuple[jclnf.Model, jclnf.FitParams]:
    if name == "bundled":
        model = jclnf.load_model()
        return model, model.defaults
    return planted().model, default_params(rotations=None)


def landmarks(model, params, images, boxes):
    """The landmarks of a batch, side by side as accelerators fit it."""
    return jax.vmap(lambda image, box: fit_face(model, image, box, params.rotations, params))(
        images, boxes
    ).landmarks


@pytest.mark.parametrize("name", ["bundled", "planted"])
def test_a_batch_of_fits_and_its_gradient(name):
    """With nothing in it that only a CPU has: LAPACK's custom calls fail where they run."""
    model, params = example(name)

    def loss(regularisation, images, boxes):
        fitted = params.replace(regularisation=regularisation)
        return jnp.sum(landmarks(model, fitted, images, boxes) ** 2)

    function = jax.jit(jax.value_and_grad(loss))
    given = (
        params.regularisation,
        jax.ShapeDtypeStruct((BATCH, SIDE, SIDE), jnp.float32),
        jax.ShapeDtypeStruct((BATCH, 4), jnp.float32),
    )
    exported = jax.export.export(function, platforms=ACCELERATORS)(*given)
    assert exported.platforms == ACCELERATORS
    assert "lapack" not in exported.mlir_module()
    convolved = "conv_general_dilated"
    program = function.trace(*given).jaxpr.jaxpr
    assert (convolved in used(program)) == (name == "bundled")
    # XLA gives convolutions in branches and loops no fast form on CPUs, nor their derivatives.
    assert convolved not in used(program, within=("cond", "while", "scan"))


def used(program, within: tuple[str, ...] = (), inside: bool = False) -> set[str]:
    """The operations of a program; or those alone that are inside of some kinds of operations."""
    found = set()
    for equation in program.eqns:
        name = equation.primitive.name
        if inside or not within:
            found.add(name)
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            found |= used(inner, within, inside or name in within)
    return found
