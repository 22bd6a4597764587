"""Programs for accelerators that are not there: each is lowered for them, none is compiled."""

import jax
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

    exported = jax.export.export(jax.jit(jax.value_and_grad(loss)), platforms=ACCELERATORS)(
        params.regularisation,
        jax.ShapeDtypeStruct((BATCH, SIDE, SIDE), jnp.float32),
        jax.ShapeDtypeStruct((BATCH, 4), jnp.float32),
    )
    assert exported.platforms == ACCELERATORS
    assert "lapack" not in exported.mlir_module()
