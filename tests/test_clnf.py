"""The object interface, and batches over several devices."""

import subprocess
import sys
import textwrap

import numpy as np
import pytest
from support.synthetic import planted

import jclnf


@pytest.fixture(scope="module")
def face():
    return planted()


def test_the_loop_over_iterations_of_the_failure_report(face, tmp_path):
    jclnf.save_model(face.model, tmp_path / "model.safetensors")
    gray, face_bbox = face.image.astype(np.uint8), tuple(face.box + [3, -2, 0, 0])
    errors = []
    for max_iter in [1, 5]:
        clnf = jclnf.CLNF(model_dir=tmp_path / "model.safetensors", max_iterations=max_iter)
        landmarks, info = clnf.fit(gray, face_bbox)
        errors.append(np.linalg.norm(landmarks - face.landmarks, axis=1).mean())
        assert info["iterations"] == 2 * 2 * max_iter
        assert info["converged"] == (info["status"] == jclnf.FitStatus.CONVERGED)
        assert [entry["window"] for entry in info["windows"]] == [9, 7]
        for entry in info["windows"]:
            assert entry["peak_offsets"].shape == (20, 2)
            for name in ("rigid", "nonrigid"):
                assert {len(values) for values in entry[name].values()} == {max_iter}
        last = info["windows"][-1]["nonrigid"]
        assert info["update_norm"] == pytest.approx(float(last["update"][-1]))
        assert info["mean_shift_norm"] == pytest.approx(float(last["mean_shift"][-1]))
    first = info["windows"][0]["rigid"]
    assert last["peak_distance"][-1] < 0.9 * first["peak_distance"][0]
    assert last["update"][-1] < 0.1 * first["update"][0]
    offsets = info["result"].trace.peak_offset[0, 0, 0]
    distance = np.linalg.norm(offsets, axis=-1).mean()
    assert first["peak_distance"][0] == pytest.approx(distance, rel=1e-5)
    assert errors[1] < errors[0] < 3


def test_a_batch_needs_a_box_for_each_image(face):
    for images, boxes in (([], np.zeros((0, 4))), ([face.image], [face.box, face.box])):
        with pytest.raises(jclnf.errors.BoxError, match="boxes"):
            jclnf.fit_images(face.model, images, boxes)
    with pytest.raises(jclnf.errors.BoxError):
        jclnf.fit_images(face.model, [face.image], [[np.nan, 0, 5, 5]])
    good = [100, 100, 120, 120]
    with pytest.raises(jclnf.errors.BoxError, match=r"^face 1: "):
        jclnf.fit_images(face.model, [face.image] * 2, [good, [0, 0, -1, 5]])


@pytest.mark.slow
def test_a_batch_over_two_devices_gives_the_single_fits():
    """In a process of its own: JAX decides on its devices once. Five faces fill two unevenly."""
    script = """
        import jax
        jax.config.update("jax_num_cpu_devices", 2)
        import jclnf, numpy as np
        from support.synthetic import default_params, planted
        face, params = planted(), default_params(iterations=2, windows=(9, 0))
        boxes = face.box + np.arange(5)[:, None] * [0.5, 0.3, 0, 0]
        init = [[0, 0, 0], [0, 0.5, 0]]
        batch = jclnf.fit_images(face.model, [face.image] * 5, boxes, params, init=init)
        assert jax.local_device_count() == 2
        assert batch.landmarks.shape == (5, 20, 2)
        for found, box in zip(batch.landmarks, boxes, strict=True):
            one = jclnf.fit(face.model, face.image, box, params, init=init)
            np.testing.assert_allclose(found, one.landmarks, atol=1e-3)
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    subprocess.run(command, check=True, cwd=__file__.rpartition("/")[0], timeout=300)


@pytest.mark.slow
def test_vmapped_fits_on_two_devices_do_not_wait_for_each_other(shared):
    """jaxlib's batched factorisations do, for ever, with as few threads; see `rlms.solve`."""
    script = """
        import sys
        import jax
        jax.config.update("jax_num_cpu_devices", 2)
        import jax.numpy as jnp, numpy as np
        from jax.sharding import NamedSharding, PartitionSpec
        import jclnf
        model = jclnf.load_openface(sys.argv[1])
        params = model.defaults.replace(windows=(11, 0, 0), rotations=None)
        image = jnp.asarray(np.random.default_rng(0).uniform(0, 255, (160, 160)), jnp.float32)
        boxes = np.array([40, 40, 70, 70], np.float32) + np.arange(32)[:, None] * [0.1, 0.1, 0, 0]
        mesh, split = jax.make_mesh((2,), ("faces",)), PartitionSpec("faces")
        fit = jax.vmap(lambda box: jclnf.fit(model, image, box, params).landmarks)
        spread = dict(mesh=mesh, in_specs=split, out_specs=split, check_vma=False)
        fit = jax.jit(jax.shard_map(fit, **spread))
        boxes = jax.device_put(jnp.asarray(boxes, jnp.float32), NamedSharding(mesh, split))
        for _ in range(5):
            landmarks = jax.block_until_ready(fit(boxes))
        assert np.isfinite(landmarks).all()
    """
    path = shared / "openface" / "model" / "main_clnf_general.txt"
    command = [sys.executable, "-c", textwrap.dedent(script), str(path)]
    subprocess.run(command, check=True, timeout=300)
