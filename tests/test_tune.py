"""Tuning by gradient descent through the fit."""

import dataclasses

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.synthetic import default_params, planted

import jclnf
from jclnf.errors import TrainingError
from jclnf.experts import initial_weights
from jclnf.fitting import LearnedStart, start_shapes
from jclnf.train import TrainConfig, distance, tune
from jclnf.train._parametrisation import Parametrisation
from jclnf.train._validation import map_chunks

CONFIG = TrainConfig(epochs=3, batch_size=4, learning_rate=5e-3)


@pytest.fixture(scope="module")
def face():
    return planted(views=1)


@pytest.fixture(scope="module")
def faces(face):
    """The planted face from boxes that are off; its truth is where good settings end."""
    rng = np.random.default_rng(0)
    count = 12
    boxes = face.box + rng.normal(0, 3, (count, 4)) * [1, 1, 0.6, 0.6]
    truth = np.tile(face.landmarks, (count, 1, 1))
    return [face.image.astype(np.uint8)] * count, boxes.astype(np.float32), truth


def spoilt(**changes):
    """Settings that keep the fit near its start."""
    bad = {"regularisation": jnp.array([3000.0, 3000.0]), "kernel_width": jnp.array([0.4, 0.4])}
    return default_params(iterations=3, **(bad | changes))


def test_leaves_are_chosen_by_their_names(face):
    model = dataclasses.replace(face.model, defaults=default_params())
    assert set(Parametrisation(model, "params").names) == {
        "params.regularisation",
        "params.kernel_width",
        "params.weight_factor",
        "model.experts.confidence",
    }
    experts = Parametrisation(model, "experts").names
    assert {"model.experts.weights", "model.experts.bias", "model.experts.beta"} <= set(experts)
    left_out = ("centres", "components", "confidence", "visible")
    assert not any(part in name for name in experts for part in left_out)
    pdm = {"model.pdm.mean", "model.pdm.components", "model.pdm.eigenvalues"}
    assert set(Parametrisation(model, "pdm").names) == pdm
    everything = set(Parametrisation(model, "all").names)
    assert everything == pdm | set(experts) | set(Parametrisation(model, "params").names)
    assert Parametrisation(model, ["model.pdm.mean"]).names == ("model.pdm.mean",)
    with pytest.raises(
        jclnf.errors.ParamsError, match=r"'model\.start'; there are .*model\.pdm\.mean"
    ):
        Parametrisation(model, "model.start")
    with pytest.raises(jclnf.errors.ParamsError, match="as it was loaded"):
        Parametrisation(model.prepare(), "params")


def test_bounds_are_held_and_nothing_changes_by_itself(face):
    params = default_params(weight_factor=jnp.array([0.0, 0.7]))
    model = dataclasses.replace(face.model, defaults=params)
    leaves = Parametrisation(model, "all", {"params.kernel_width": (0.5, 4.0)})
    free = leaves.free()
    assert all(np.isfinite(array).all() for array in free.values())
    same = leaves.model(free)
    for a, b in zip(jax.tree.leaves(model), jax.tree.leaves(same), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    for far in (-50.0, 50.0):
        moved = leaves.model({name: array + far for name, array in free.items()})
        width, factor = moved.defaults.kernel_width, moved.defaults.weight_factor
        assert (width >= 0.5).all()
        assert (width <= 4.0).all()
        assert (moved.defaults.regularisation > 0).all()
        assert factor[0] == 0
        assert factor[1] > 0
        assert (moved.pdm.eigenvalues > 0).all()
    with pytest.raises(jclnf.errors.ParamsError, match="outside its bounds"):
        Parametrisation(model, "params", {"params.kernel_width": (2.0, 4.0)})
    with pytest.raises(jclnf.errors.ParamsError, match="not tuned"):
        Parametrisation(model, "pdm", {"params.kernel_width": (0.5, 4.0)})


def test_unknown_landmarks_do_not_count():
    truth = np.array([[0.0, 0], [10, 0], [0, 10], [10, 10]])
    found = jnp.asarray(truth + [[1.0, 0], [0, 0], [0, 0], [0, 0]])
    full = distance(found, jnp.asarray(truth))
    without = distance(found, jnp.asarray(np.where(np.arange(4)[:, None] == 0, np.nan, truth)))
    assert full > 2 * without
    slope = jax.grad(lambda f: distance(f, jnp.asarray(truth).at[0].set(jnp.nan)))(found)
    assert np.isfinite(slope).all()
    assert not slope[0].any()
    shifted = distance(found, jnp.asarray(truth) + 0.5, jnp.full((4, 2), 0.05))
    np.testing.assert_allclose(shifted, full, rtol=1e-5)


def tune_spoilt(face, faces, **options):
    """Batches of four and two faces held out, as the command below has them: one program."""
    options = {"params": spoilt(), "config": CONFIG} | options
    return tune(face.model, *faces, validation=1 / 6, offset=True, quiet=True, **options)


@pytest.fixture(scope="module")
def tuned(face, faces):
    return tune_spoilt(face, faces)


@pytest.mark.slow
def test_spoilt_settings_are_found_again(face, faces, tuned):
    good = default_params(iterations=3)
    errors = [
        np.mean(
            [
                np.linalg.norm(jclnf.fit(face.model, i, b, p).landmarks - t, axis=1).mean()
                for i, b, t in zip(*faces, strict=True)
            ]
        )
        for p in (spoilt(), good, tuned.params)
    ]
    assert tuned.epoch > 0
    assert tuned.history[tuned.epoch]["validation"] < 0.7 * tuned.history[0]["validation"]
    assert errors[2] < 0.65 * errors[0]
    # Nothing that was not chosen has moved; a weight factor of 0 keeps the landmarks alike.
    for name in ("weights", "bias", "alpha", "beta", "visible"):
        np.testing.assert_array_equal(
            getattr(tuned.model.experts, name), getattr(face.model.experts, name)
        )
    confidence = face.model.experts.confidence  # chosen, but without effect at weight factor 0
    np.testing.assert_allclose(tuned.model.experts.confidence, confidence, rtol=1e-6)
    np.testing.assert_array_equal(tuned.params.weight_factor, 0)
    assert tuned.model.defaults is tuned.params


@pytest.mark.slow
@pytest.mark.parametrize("where", ["on_epoch", "validation"])
def test_an_interrupted_tuning_is_resumed_and_a_finished_one_stays(
    face, faces, tuned, tmp_path, monkeypatch, where
):
    file = tmp_path / "tuning.eqx"

    def traced(*_, **__):
        raise AssertionError("compiled, although an equal tuning was")

    monkeypatch.setattr("jclnf.train._tune.fit_losses", traced)

    def run(on_epoch=None):
        return tune_spoilt(face, faces, checkpoint=file, on_epoch=on_epoch)

    def interrupt(epoch, *_):
        if epoch == 1:
            raise KeyboardInterrupt

    validations = 0

    def interrupted(*arguments):
        nonlocal validations
        validations += 1
        if validations == 2:
            raise KeyboardInterrupt
        return map_chunks(*arguments)

    with monkeypatch.context() as patch:
        if where == "validation":
            patch.setattr("jclnf.train._tune.map_chunks", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(interrupt)
    seen: list[int] = []
    parts = run(lambda epoch, *_: seen.append(epoch))
    assert seen == [1, 2, 3]
    assert [line["epoch"] for line in parts.history] == [0, 1, 2, 3]
    again = run()
    for one in (parts, again):
        assert one.history[1:] == tuned.history[1:]
        np.testing.assert_array_equal(one.offset, tuned.offset)
        for a, b in zip(jax.tree.leaves(one.model), jax.tree.leaves(tuned.model), strict=True):
            np.testing.assert_array_equal(a, b)
    data = file.read_bytes()
    for damaged in (data[: len(data) // 2], data[:10], b""):
        file.write_bytes(damaged)
        with pytest.raises(TrainingError, match=r"tuning\.eqx.*remove it"):
            run()


@pytest.mark.slow
def test_it_ends_without_progress_and_gives_back_the_best(face, faces):
    """Steps that are far too large make it worse: the model is as it was."""
    config = dataclasses.replace(CONFIG, epochs=20, learning_rate=0.2)
    params = default_params(iterations=3)
    tuned = tune_spoilt(face, faces, params=params, config=config, patience=2)
    assert len(tuned.history) < 20
    best = min(tuned.history, key=lambda line: line["validation"])
    assert tuned.epoch == best["epoch"] == len(tuned.history) - 3
    if tuned.epoch == 0:
        np.testing.assert_allclose(tuned.params.kernel_width, params.kernel_width, rtol=1e-6)


@pytest.mark.slow
def test_a_learned_start_moves_if_it_is_chosen_and_nothing_else_does(face, faces):
    images, boxes, truth = faces
    weights = initial_weights(start_shapes(face.model.pdm.eigenvalues.size), jax.random.key(0))
    model = dataclasses.replace(face.model, start=LearnedStart(weights))
    assert set(Parametrisation(model, ["experts", "start"]).names) == {
        *Parametrisation(model, "experts").names,
        *(f"model.start.kernels.{name}" for name in weights),
    }
    assert not any(name.startswith("model.start") for name in Parametrisation(model, "all").names)
    tuned = tune(
        model,
        images,
        boxes,
        truth,
        default_params(iterations=1, windows=(9, 0)),
        what="start",
        validation=0.25,
        config=TrainConfig(epochs=2, batch_size=3, learning_rate=1e-2),
        quiet=True,
    )
    errors = [line["validation"] for line in tuned.history]
    assert min(errors) < 0.9 * errors[0]
    assert not tuned.offset.any()
    assert not np.array_equal(tuned.model.start.kernels["out.kernel"], weights["out.kernel"])
    for a, b in zip(
        jax.tree.leaves((model.pdm, model.experts)),
        jax.tree.leaves((tuned.model.pdm, tuned.model.experts)),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_a_constant_offset_of_the_data_is_learned_apart(face, faces):
    images, boxes, truth = faces
    config = TrainConfig(epochs=12, batch_size=4, learning_rate=2e-3)
    size = float(np.sqrt(np.prod(np.ptp(truth[0], axis=0))))
    shift = np.zeros((20, 2))
    shift[:5] = [0.02, -0.015]
    moved = images, boxes, truth + shift * size
    tuned = tune_spoilt(face, moved, params=default_params(iterations=3), config=config)
    np.testing.assert_allclose(tuned.offset[:5], shift[:5], atol=0.006)
    assert np.abs(tuned.offset[5:]).mean() < 0.004


def test_unusable_input_is_named(face, faces):
    images, boxes, truth = faces
    with pytest.raises(jclnf.errors.BoxError, match="12 images need as many boxes"):
        tune(face.model, images, boxes[:3], truth)
    with pytest.raises(jclnf.errors.AnnotationError, match=r"\(12, 20, 2\) for this model"):
        tune(face.model, images, boxes, truth[:, :5])
    unknown = truth.copy()
    unknown[4] = np.nan
    with pytest.raises(jclnf.errors.AnnotationError, match="face 4: fewer than two"):
        tune(face.model, images, boxes, unknown)
    outside = boxes.copy()
    outside[7, 0] = 5000
    with pytest.raises(jclnf.errors.BoxError, match="face 7: "):
        tune(face.model, images, outside, truth)
    with pytest.raises(TrainingError, match="a part lies between"):
        tune(face.model, images, boxes, truth, validation=1.5)
    with pytest.raises(TrainingError, match="fewer than a batch"):
        tune(face.model, images, boxes, truth, config=TrainConfig(1, batch_size=64), quiet=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, face):
    """The planted face in six images of three people, from a file of boxes that are off."""
    data = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(1)
    n = len(face.landmarks)
    names = [f"{axis}_{i}" for i in range(n) for axis in "xy"]
    rows, boxes = ["image,identity," + ",".join(names)], ["image,x,y,w,h"]
    for k in range(6):
        cv2.imwrite(str(data / f"{k}.png"), face.image.astype(np.uint8))
        points = ",".join(f"{v:.3f}" for v in face.landmarks.ravel())
        rows.append(f"{k}.png,p{k // 2},{points}")
        box = face.box + rng.normal(0, 3, 4) * [1, 1, 0.6, 0.6]
        boxes.append(f"{k}.png," + ",".join(f"{v:.2f}" for v in box))
    (data / "landmarks.csv").write_text("\n".join(rows) + "\n")
    (data / "boxes.csv").write_text("\n".join(boxes) + "\n")
    jclnf.save_model(
        dataclasses.replace(face.model, defaults=spoilt()), data / "spoilt.safetensors"
    )
    return data


@pytest.mark.slow
class TestCommand:
    def run(self, folder, *more):
        from jclnf.cli import main

        return main(
            [
                "tune",
                str(folder / "landmarks.csv"),
                "--model",
                str(folder / "spoilt.safetensors"),
                "--boxes",
                str(folder / "boxes.csv"),
                "--held-out",
                "0.3",
                "--epochs",
                "2",
                *more,
            ]
        )

    def test_it_writes_a_better_model(self, folder, tmp_path, capsys):
        out = tmp_path / "tuned.safetensors"
        assert self.run(folder, "--out", str(out), "--what", "params", "--offset") == 0
        text = capsys.readouterr().out
        assert "held out:" in text
        assert "curves.csv" in text
        tuned = jclnf.load_model(out)
        assert tuned.name == "tuned"
        assert (np.asarray(tuned.defaults.regularisation) < 3000).all()
        lines = (tmp_path / "tuned.safetensors.tuning" / "curves.csv").read_text().split()
        errors = [float(line.split(",")[2]) for line in lines[1:]]
        assert len(errors) == 3
        assert min(errors[1:]) < errors[0]
        assert np.loadtxt(
            tmp_path / "tuned.safetensors.tuning" / "offset.csv", delimiter=","
        ).shape == (20, 2)

    def test_wrong_usage_is_one_line(self, folder, tmp_path, capsys):
        assert self.run(folder, "--out", "model.npz") == 2
        assert self.run(folder, "--out", str(tmp_path / "m.safetensors"), "--held-out", "7") == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 2
        assert "ends in .safetensors" in error
