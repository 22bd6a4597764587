"""Training: examples, the loop and its checkpoints, the stages, the command."""

import csv
import dataclasses
import io
import json
from pathlib import Path

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support.training import drawn, shapes

import jclnf
from jclnf import geometry
from jclnf.annotations import pts_text
from jclnf.cli import main
from jclnf.errors import TrainingError
from jclnf.experts import TRUNK_SAMPLING, trunk_shapes
from jclnf.geometry import Pose, project
from jclnf.train import (
    MIRROR_68,
    BoxExamples,
    Faces,
    PipelineConfig,
    Progress,
    ShapeModel,
    TrainConfig,
    cut_out,
    fine_tune,
    fit_errors,
    learn_shape_model,
    one_of_each,
    train_model,
)
from jclnf.train._augment import augment
from jclnf.train._examples import COARSE, Perturbation, TrunkExamples, perturbed, warped
from jclnf.train._faces import Posed
from jclnf.train._loop import batches, train
from jclnf.train._networks import map_loss

NOT_AT_ALL = Perturbation((0.0, 0.0, 0.0), 0.0, 0.0, (1.0, 1.0), 0.0)
SMALL = PipelineConfig(
    modes=4,
    channels=(4, 8, 8, 8, 8),
    grid=24,
    scalings=(0.1, 0.11),
    middle=(0.0, 0.0),
    windows=(0, 7),  # fits see the second scale alone: half as much is compiled
    iterations=2,
    start=TrainConfig(2, batch_size=8),
    coarse=TrainConfig(2, batch_size=8),
    fine=TrainConfig(1, batch_size=8),
    fit=TrainConfig(2, batch_size=16, learning_rate=1e-3),  # as fine-tuning has it
    fits=2,
)


@pytest.fixture(scope="module")
def faces() -> Faces:
    return drawn(16)


@pytest.fixture(scope="module")
def model(faces) -> ShapeModel:
    return learn_shape_model(faces.points, shapes(40, seed=5), MIRROR_68, modes=6, iterations=10)


@pytest.fixture(scope="module")
def posed(faces, model) -> Posed:
    return Posed.of(faces, model)


class TestFaces:
    def test_mirrored_faces_show_mirrored_pictures(self, faces):
        both = faces.with_mirrored(MIRROR_68)
        assert len(both) == 2 * len(faces)
        for i in (0, 3):
            mirrored = both.images[len(faces) + i]
            assert (mirrored == faces.images[i][:, ::-1]).all()
            x, y = both.points[len(faces) + i, 0]
            np.testing.assert_allclose([159 - x, y], faces.points[i, 16])

    @pytest.mark.parametrize("side", [60, 400])
    def test_cutting_out_keeps_points_on_what_they_mark(self, side):
        """A bright spot under each point stays under it, also where the face is reduced."""
        rng = np.random.default_rng(0)
        points = rng.uniform(0.3, 0.7, (5, 2)) * 2.5 * side
        points[:2] = [[0.3 * 2.5 * side] * 2, [0.7 * 2.5 * side] * 2]
        image = np.zeros((round(2.5 * side),) * 2, np.float32)
        for x, y in points:
            at = (round(float(x) * 16), round(float(y) * 16))
            cv2.circle(image, at, max(2, side // 40) * 16, 255.0, -1, cv2.LINE_AA, 4)
        picture, moved = cut_out(image, points)
        assert max(picture.shape) <= 2.7 * min(side, 128) + 3
        for x, y in moved:
            assert picture[round(float(y)), round(float(x))] > 150


class TestExamples:
    def test_unperturbed_maps_are_where_a_fit_at_the_truth_puts_them(self, posed, model):
        """The host's geometry is that of the fit."""
        examples = TrunkExamples(posed, 0.2, 24, (0.0, 6.0), NOT_AT_ALL)
        pdm = model.pdm
        for face in range(3):
            found = examples(face, np.random.default_rng(0))
            shape = jnp.asarray(posed.latent[face] * np.sqrt(model.eigenvalues), jnp.float32)
            pose = Pose(
                jnp.float32(posed.scale[face]),
                jnp.asarray(posed.matrix[face], jnp.float32),
                jnp.asarray(posed.translation[face], jnp.float32),
            )
            base = project(pdm, pose, shape)
            frame = 0.2 * (pdm.mean + pdm.components @ shape)[:, :2]
            to_cells = geometry.similarity_between(base, frame)
            truth = jnp.asarray(posed.faces.points[face] - base.mean(0), jnp.float32)
            expected = (
                geometry.apply_similarity(to_cells, truth) - 0.2 * np.array([0.0, 6.0]) + 11.5
            )
            np.testing.assert_allclose(found["points"], expected, atol=2e-3)

    def test_pictures_show_what_the_experts_will_sample(self, posed):
        rng = np.random.default_rng(1)
        state = perturbed(posed, 2, COARSE, rng)
        to_image = np.linalg.inv(
            geometry.similarity_matrix(
                geometry.similarity_between(state.landmarks, 0.2 * state.shape[:, :2])
            )
        )
        for zoom in (1.0, 2.0):
            linear = zoom * to_image / TRUNK_SAMPLING
            centre = state.landmarks.mean(0)
            found = warped(posed.faces.images[2], centre, linear, 40)
            expected = geometry.sample_square(
                jnp.asarray(posed.faces.images[2], jnp.float32),
                jnp.asarray(centre, jnp.float32),
                jnp.asarray([linear[0, 0], linear[1, 0]], jnp.float32),
                40,
            )
            apart = np.abs(found.astype(float) - np.asarray(expected))
            assert np.corrcoef(found.ravel(), np.asarray(expected).ravel())[0, 1] > 0.97
            assert np.median(apart) < 6

    def test_boxes_hold_their_points(self, posed):
        examples = BoxExamples(posed.faces, 160, (1.8, 3.2), changed=False, inexact=False)
        for face in range(4):
            made = examples(face, np.random.default_rng(face))
            points, box = made["points"], made["box"]
            extent = np.ptp(points, axis=0)
            np.testing.assert_allclose(box[2:], extent, rtol=1e-4)
            np.testing.assert_allclose(box[:2] - points.min(0), 0.008 * extent.mean(), atol=0.05)
            dark = [made["image"][round(float(y)), round(float(x))] for x, y in points]
            assert np.median(dark) < 210  # the dots, not the background

    def test_they_follow_from_seed_and_epoch_alone(self, posed):
        examples = TrunkExamples(posed, 0.2, 24, (0.0, 0.0), COARSE)

        def epoch(number: int, threads: int) -> list:
            made = batches(examples, 4, seed=3, epoch=number, threads=threads)
            return list(made)

        one, two, other = epoch(0, 1), epoch(0, 3), epoch(1, 2)
        for a, b in zip(one, two, strict=True):
            for key in a:
                np.testing.assert_array_equal(a[key], b[key])
        assert any((a["points"] != b["points"]).any() for a, b in zip(one, other, strict=True))

    def test_augmented_pictures_are_pictures(self):
        picture = np.random.default_rng(0).integers(0, 256, (50, 40)).astype(np.uint8)
        made = [augment(picture, np.random.default_rng(seed)) for seed in range(60)]
        assert all(p.shape == picture.shape and p.dtype == np.uint8 for p in made)
        assert sum((p != picture).any() for p in made) > 40
        np.testing.assert_array_equal(made[3], augment(picture, np.random.default_rng(3)))


class Line:
    """Points on a line."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self):
        return self.count

    def __call__(self, face, rng):
        x = rng.normal()
        return {"x": np.float32(x), "y": np.float32(3 * x + 1 + 0 * face)}


class TestLoop:
    def train(self, checkpoint, epochs: int, on_epoch=None, validate=None, count: int = 64):
        """A line through points: the loss is a mean of squares."""

        def objective(w, batch):
            return jnp.mean((w[0] * batch["x"] + w[1] - batch["y"]) ** 2), batch["x"].mean()

        return train(
            jnp.zeros(2),
            objective,
            optax.sgd(0.05),
            Line(count),
            TrainConfig(epochs, batch_size=8),
            Progress("line", checkpoint, on_epoch, quiet=True),
            averages=jnp.zeros(()),
            validate=validate,
        )

    def test_it_learns(self):
        np.testing.assert_allclose(self.train(None, 12).learned, [3, 1], atol=0.05)

    @pytest.mark.parametrize("where", ["on_epoch", "validate"])
    def test_an_interrupted_training_goes_on_as_if_it_had_not_been(self, tmp_path, where):
        def far(w, _):
            return float(abs(w[0] - 2))  # least before the end

        whole = self.train(tmp_path / "a.eqx", 5, validate=far)
        assert [line["epoch"] for line in whole.history] == [0, 1, 2, 3, 4, 5]
        calls = 0

        def interrupt(*_):
            nonlocal calls
            calls += 1
            if calls == 4:
                raise KeyboardInterrupt
            return far(*_) if where == "validate" else None

        with pytest.raises(KeyboardInterrupt):
            self.train(tmp_path / "b.eqx", 5, **({"validate": far} | {where: interrupt}))
        epochs: list[float] = []

        def on_epoch(history):
            epochs.append(history[-1]["epoch"])

        again = self.train(tmp_path / "b.eqx", 5, on_epoch, far)
        assert epochs == [3, 4, 5]  # the steps of epoch 3 are not done again
        assert again.history[1:] == whole.history[1:]
        for a, b in zip(jax.tree.leaves(whole[:3]), jax.tree.leaves(again[:3]), strict=True):
            np.testing.assert_array_equal(a, b)
        assert (again.best != again.learned).any()
        epochs.clear()
        self.train(tmp_path / "b.eqx", 5, on_epoch, far)
        assert epochs == [5]  # what is finished is not done again

    def test_a_damaged_checkpoint(self, tmp_path):
        (tmp_path / "c.eqx").write_bytes(b"nothing")
        with pytest.raises(TrainingError, match=r"c\.eqx"):
            self.train(tmp_path / "c.eqx", 2)

    def test_fewer_faces_than_a_batch(self):
        with pytest.raises(TrainingError, match="batch"):
            self.train(None, 1, count=3)


def test_map_loss_against_numpy():
    rng = np.random.default_rng(0)
    maps = rng.standard_normal((2, 12, 12, 3)).astype(np.float32)
    points = rng.uniform(2, 9, (2, 3, 2)).astype(np.float32)
    points[1, 2] = [-3, 5]  # outside: counts 0
    y, x = np.mgrid[:12, :12]
    total = 0.0
    for b in range(2):
        for n in range(3):
            if (b, n) == (1, 2):
                continue
            squared = (x - points[b, n, 0]) ** 2 + (y - points[b, n, 1]) ** 2
            target = np.exp(-squared / (2 * 1.3**2))
            target /= target.sum()
            logs = maps[b, ..., n] - np.log(np.exp(maps[b, ..., n]).sum())
            total -= (target * logs).sum()
    found = jax.vmap(map_loss(1.3))(jnp.asarray(maps), {"points": jnp.asarray(points)}).mean()
    assert float(found) == pytest.approx(total / 6, rel=1e-4)


@pytest.fixture(scope="module")
def small(faces, tmp_path_factory):
    """A small model, what it was trained by, and what was said meanwhile."""
    said: list[str] = []
    work = tmp_path_factory.mktemp("small") / "work"
    arguments = (faces, drawn(6, seed=9), shapes(40, seed=5), MIRROR_68, work, SMALL)
    return train_model(*arguments, name="small", quiet=True, log=said.append), arguments, said


@pytest.mark.slow
def test_from_faces_to_a_model_and_further(tmp_path, faces, small):
    """All stages, at a small size; the model is one that can be stored, loaded and trained on."""
    trained, arguments, said = small
    work = arguments[4]
    assert len(said) == 3
    stages = [line.split(",")[0] for line in (work / "curves.csv").read_text().split()]
    expected = ["start"] * 3 + ["trunk0"] * 3 + ["trunk1"] * 2 + ["fit0"] * 3 + ["fit1"] * 3
    assert stages == ["stage", *expected]

    again = train_model(*arguments, name="small", quiet=True)
    for a, b in zip(jax.tree.leaves(trained), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(TrainingError, match="another training"):
        train_model(*arguments[:5], dataclasses.replace(SMALL, iterations=3), quiet=True)

    jclnf.save_model(trained, tmp_path / "small.safetensors")
    loaded = jclnf.load_model(tmp_path / "small.safetensors")
    box = np.array([40, 40, 80, 80], np.float32)
    image = faces.images[0].astype(np.float32)
    np.testing.assert_allclose(
        jclnf.fit(loaded, image, box).landmarks, jclnf.fit(trained, image, box).landmarks
    )

    config = TrainConfig(3, batch_size=16, learning_rate=1e-3)
    tuned = fine_tune(
        loaded, faces, drawn(6, seed=9), MIRROR_68, tmp_path / "t", config, quiet=True
    )
    examples = one_of_each(BoxExamples(faces, 160, (2.0, 2.0), changed=False))
    assert fit_errors(tuned, examples).mean() < fit_errors(loaded, examples).mean()


def test_fine_tuning_keeps_what_is_better_on_faces_held_out(tmp_path, faces, small, monkeypatch):
    """Whatever the training itself brings: a worse model is not returned, a better one is."""
    import jclnf.train._pipeline as pipeline

    model, held_out, said = small[0], drawn(6, seed=9), []
    spoiled = dataclasses.replace(
        model, pdm=dataclasses.replace(model.pdm, mean=model.pdm.mean + 9)
    )

    def tuned(start, ended, folder):
        monkeypatch.setattr(pipeline, "train_end_to_end", lambda *_, **__: ended)
        arguments = (start, faces, held_out, MIRROR_68, tmp_path / folder)
        return fine_tune(*arguments, quiet=True, log=said.append)

    monkeypatch.setattr(pipeline, "learn_readout", lambda model, _: model)
    assert tuned(model, spoiled, "worse") is model
    assert "stays as it was" in said[-1]
    found = tuned(spoiled, dataclasses.replace(model, readout=None), "better")
    watched = one_of_each(BoxExamples.of_fits(held_out))
    assert fit_errors(found, watched).mean() < 0.9 * fit_errors(spoiled, watched).mean()


def write_data(folder, faces: Faces):
    """The faces as files of the CSV format."""
    folder.mkdir()
    (folder / "images").mkdir()
    names = [f"{axis}_{i}" for i in range(68) for axis in "xy"]
    lines = [",".join(["image", "identity", *names])]
    for i, (picture, points) in enumerate(zip(faces.images, faces.points, strict=True)):
        cv2.imwrite(str(folder / "images" / f"{i}.png"), picture)
        lines.append(
            ",".join([f"{i}.png", f"person{i // 2}", *(f"{v:.3f}" for v in points.ravel())])
        )
    (folder / "landmarks.csv").write_text("\n".join(lines) + "\n")
    return folder / "landmarks.csv"


class TestCommand:
    def test_too_few_faces(self, tmp_path, capsys):
        data = write_data(tmp_path / "data", drawn(4))
        assert main(["train", str(data), "--out", str(tmp_path / "m.safetensors")]) == 2
        assert "too few" in capsys.readouterr().err

    def test_no_data(self, tmp_path, capsys):
        out = str(tmp_path / "m.safetensors")
        assert main(["train", str(tmp_path / "none.csv"), "--out", out]) == 2
        assert "none.csv" in capsys.readouterr().err

    def test_a_wrong_name_for_the_model(self, tmp_path, capsys):
        assert main(["train", str(tmp_path), "--out", str(tmp_path / "m.pt")]) == 2
        assert ".safetensors" in capsys.readouterr().err

    def test_a_shape_prior_of_other_landmarks(self, tmp_path, capsys):
        data = write_data(tmp_path / "data", drawn(16))
        np.savez(tmp_path / "prior.npz", examples=np.zeros((5, 20, 3)))
        options = ["--shape-prior", str(tmp_path / "prior.npz"), "--quiet"]
        assert main(["train", str(data), "--out", str(tmp_path / "m.safetensors"), *options]) == 2
        assert "68, 3" in capsys.readouterr().err

    def test_a_shape_prior_that_is_cut_off(self, tmp_path, capsys):
        data = write_data(tmp_path / "data", drawn(16))
        prior, whole = tmp_path / "prior.npz", io.BytesIO()
        np.savez(whole, examples=np.zeros((5, 68, 3)))
        options = ["--shape-prior", str(prior), "--quiet", "--out", str(tmp_path / "m.safetensors")]
        for count in (0, 10, 300, len(whole.getvalue()) - 40):
            prior.write_bytes(whole.getvalue()[:count])
            assert main(["train", str(data), *options]) == 2
            err = capsys.readouterr().err
            assert "prior.npz: holds no array `examples`" in err
            assert err.count("\n") == 1

    def test_people_are_kept_apart_or_it_is_refused(self, tmp_path, capsys):
        """A folder of .pts files: frames of four people, whose names are in the files' names."""
        faces = drawn(16)
        for k, (image, points) in enumerate(zip(faces.images, faces.points, strict=True)):
            name = f"{'abcd'[k % 4]}_{k}"
            cv2.imwrite(str(tmp_path / f"{name}.png"), image)
            (tmp_path / f"{name}.pts").write_text(pts_text(points))
        out, prior = tmp_path / "m.safetensors", tmp_path / "none.npz"
        command = ["train", str(tmp_path), "--out", str(out), "--shape-prior", str(prior)]
        assert main(command) == 2
        err = capsys.readouterr().err
        assert "not known whose 16 of 16 faces are (a_0.png, a_12.png, a_4.png, a_8.png and" in err
        assert "give --identity" in err
        assert main([*command, "--identity", "^[a-d]", "--held-out", "0.5"]) == 2  # no such prior
        shown = capsys.readouterr().out
        folder = tmp_path / "m.safetensors.training"
        with (folder / "held_out.csv").open(newline="") as file:
            held_out = list(csv.DictReader(file))
        people = sorted({row["identity"] for row in held_out})
        assert f"held out: 2 people with 8 faces, {', '.join(people)}; all in " in shown
        assert len(held_out) == 8
        assert all(Path(row["image"]).name[0] == row["identity"] for row in held_out)

    def test_the_model_to_begin_with_is_kept(self, tmp_path, capsys):
        model = tmp_path / "m.safetensors"
        model.write_bytes(b"mine")
        for command in (["train", "--from"], ["tune", "--model"]):
            asked = [command[0], str(tmp_path), command[1], str(model), "--out", str(model)]
            assert main(asked) == 2
            assert "is the model to begin with, and is kept" in capsys.readouterr().err

    @pytest.mark.slow
    def test_fine_tuning_writes_a_model_and_its_course(self, tmp_path, small, capsys):
        trained, _, _ = small
        jclnf.save_model(trained, tmp_path / "small.safetensors")
        data = write_data(tmp_path / "data", drawn(18, seed=3))
        out = tmp_path / "tuned.safetensors"
        options = ["--from", str(tmp_path / "small.safetensors"), "--effort", "0.03"]
        assert main(["train", str(data), "--out", str(out), *options]) == 0
        shown = capsys.readouterr().out
        assert "held out" in shown
        tuned = jclnf.load_model(out)
        assert tuned.name == "tuned"
        assert tuned.confidence.n_landmarks == 68
        assert float(tuned.uncertainty.residual) > 0
        before, after = trained.experts.kernels, tuned.experts.kernels
        changed = any((np.asarray(before[k]) != np.asarray(after[k])).any() for k in before)
        assert not (changed and "stays as it was" in shown)
        folder = tmp_path / "tuned.safetensors.training"
        assert (folder / "curves.csv").read_text().count("\n") > 1
        assert (folder / "curves.png").stat().st_size > 2000
        assert json.loads((folder / "training.json").read_text())["faces"] > 10


def test_the_trunk_fits_its_description():
    """The widths that stand for a trunk are read off its arrays."""
    described = trunk_shapes(68, (1, 2, 3, 4, 5))
    assert described["maps"] == (1, 5, 4 * 68)
    assert described["coarse_up"] == (1, 4, 3)
