"""Part models, on a face whose parts have experts that look for what the image shows."""

import csv
import dataclasses

import cv2
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.recordings import LARGE, filled, openface_model
from support.synthetic import default_params, planted

import jclnf
from jclnf.fitting import Model, Part, fit_points
from jclnf.fitting._parts import fit_parts
from jclnf.geometry import PDM
from jclnf.geometry import project as eager_project
from jclnf.params import FitParams, as_dtype, to_device

LANDMARKS = {
    "one": (6, 5, 4, 3, 2, 1, 0),
    "other": (7, 8, 9, 10, 11, 12, 13),
    "third": (12, 13, 14, 15, 16, 17, 18, 19),
}
"""Of the face, in the order of the parts'. The first two parts are alike, the last two overlap."""

ROUGH = default_params(windows=(9, 0), iterations=1)
"""Settings of a fit of the whole face."""
fit_parts_compiled = eqx.filter_jit(fit_parts)
project = jax.jit(eager_project)


def part_of(model: Model, name: str, *, given: slice = slice(None)) -> Part:
    """The part of a model that some of its landmarks are, of which the face has those `given`."""
    own = np.array(LANDMARKS[name])
    shapes = (to_device(np.asarray(a)[own]) for a in (model.pdm.mean, model.pdm.components))
    pdm = PDM(*shapes, model.pdm.eigenvalues)
    names = ("weights", "norm_weight", "bias", "alpha", "beta", "visible", "confidence")
    experts = dataclasses.replace(
        model.experts,
        **{name: to_device(np.asarray(getattr(model.experts, name))[:, :, own]) for name in names},
    )
    index = tuple(range(len(own)))[given]
    of_face = tuple(int(own[i]) for i in index)
    # The finer scale alone compiles in half the time.
    return Part(Model(pdm, experts, default_params(windows=(0, 7)), name), of_face, index)


@pytest.fixture(scope="module")
def face():
    return planted()


@pytest.fixture(scope="module")
def model(face):
    parts = (
        part_of(face.model, "one"),
        part_of(face.model, "other"),
        part_of(face.model, "third", given=slice(1, None)),
    )
    return dataclasses.replace(face.model, parts=parts)


@pytest.fixture(scope="module")
def one_part(model):
    """The model with its first part only, which compiles sooner."""
    return dataclasses.replace(model, parts=model.parts[:1])


@pytest.fixture(scope="module")
def box(face):
    return (face.box + [3, -2, 0, 0]) * [1, 1, 1.04, 0.98]


@pytest.fixture(scope="module")
def rough(face, box):
    """A fit of the whole face that leaves something to do."""
    return jclnf.fit(face.model, face.image, box, ROUGH)


def distances(landmarks, truth):
    return np.linalg.norm(np.asarray(landmarks) - truth, axis=1)


@pytest.mark.parametrize("arithmetic", ["exact", "openface"])
def test_parts_bring_the_landmarks_nearer(face, model, rough, arithmetic):
    params = default_params(arithmetic=arithmetic)
    refined = fit_parts_compiled(model, face.image, rough, params)
    before = distances(rough.landmarks, face.landmarks)
    assert before.mean() > 1
    assert distances(refined.landmarks, face.landmarks).mean() < 0.4 * before.mean()
    assert set(refined.parts) == set(LANDMARKS)
    for name, own in LANDMARKS.items():
        part = refined.parts[name]
        assert part.fitted
        off = distances(part.landmarks, face.landmarks[list(own)]).mean()
        assert off < 0.5 * before[list(own)].mean()
        of_part = next(p.model.pdm for p in model.parts if p.name == name)
        np.testing.assert_allclose(
            part.landmarks, project(of_part, part.pose, part.shape), atol=1e-3
        )
        scaled = part.pose.scale * part.landmarks3d[:, :2] + part.pose.translation
        np.testing.assert_allclose(part.landmarks, scaled, atol=1e-3)


def test_the_face_is_that_of_the_parts_landmarks(face, model, rough):
    """The later of two parts that share landmarks has the last word; what no part has, stays."""
    for order in (model.parts, model.parts[:0:-1]):
        changed = dataclasses.replace(model, parts=order)
        refined = fit_parts_compiled(changed, face.image, rough, default_params())
        points = np.array(rough.landmarks)
        for part in order:
            own = refined.parts[part.name].landmarks
            points[list(part.main_index)] = np.asarray(own)[list(part.part_index)]
        pose, shape = fit_points(model.pdm, jnp.asarray(points), jnp.ones(len(points), bool))
        np.testing.assert_allclose(refined.landmarks, project(model.pdm, pose, shape), atol=2e-3)
        np.testing.assert_allclose(refined.shape, shape, atol=2e-2)
        np.testing.assert_allclose(refined.pose.matrix, pose.matrix, atol=1e-3)
        assert float(refined.likelihood) == float(rough.likelihood)


def test_each_part_starts_from_the_face_as_it_was(face, model, rough):
    """So that parts, alike or not, neither see each other nor depend on their order."""
    together = fit_parts_compiled(model, face.image, rough, default_params())
    for order in (model.parts[:1], model.parts[:0:-1]):
        changed = dataclasses.replace(model, parts=order)
        others = fit_parts_compiled(changed, face.image, rough, default_params())
        for name, part in others.parts.items():
            np.testing.assert_allclose(part.landmarks, together.parts[name].landmarks, atol=2e-3)


def test_faces_too_small_for_their_parts_stay(face, model, rough):
    """Only the scale decides, here beside landmarks of another."""
    limit = 0.9 * model.parts[0].model.scalings[0]

    def of_scale(scale):
        return eqx.tree_at(lambda result: result.pose.scale, rough, jnp.float32(scale))

    fitted = fit_parts_compiled(model, face.image, of_scale(1.001 * limit), default_params())
    assert all(part.fitted for part in fitted.parts.values())
    unfitted = fit_parts_compiled(model, face.image, of_scale(0.999 * limit), default_params())
    np.testing.assert_array_equal(unfitted.landmarks, rough.landmarks)
    np.testing.assert_array_equal(unfitted.shape, rough.shape)
    for part in model.parts:
        result = unfitted.parts[part.name]
        assert not result.fitted
        points = np.zeros((part.model.pdm.n_landmarks, 2), np.float32)
        points[list(part.part_index)] = np.asarray(rough.landmarks)[list(part.main_index)]
        present = np.isin(np.arange(len(points)), part.part_index)
        pose, shape = fit_points(part.model.pdm, jnp.asarray(points), jnp.asarray(present))
        np.testing.assert_allclose(
            result.landmarks, project(part.model.pdm, pose, shape), atol=2e-3
        )


def test_all_landmarks_are_replaced_if_any_part_is_fitted(face, model, rough):
    first, second, _ = model.parts
    experts = dataclasses.replace(second.model.experts, scalings=(2.5, 5.0))
    small = dataclasses.replace(second, model=dataclasses.replace(second.model, experts=experts))
    mixed = dataclasses.replace(model, parts=(first, small))
    refined = fit_parts_compiled(mixed, face.image, rough, default_params())
    assert [bool(part.fitted) for part in refined.parts.values()] == [True, False]
    points = np.array(rough.landmarks)
    for part in mixed.parts:
        own = np.asarray(refined.parts[part.name].landmarks)
        points[list(part.main_index)] = own[list(part.part_index)]
    pose, shape = fit_points(model.pdm, jnp.asarray(points), jnp.ones(len(points), bool))
    np.testing.assert_allclose(refined.landmarks, project(model.pdm, pose, shape), atol=2e-3)


def test_settings_decide_whether_a_fit_refines_parts(face, one_part, box):
    plain = jclnf.fit(one_part, face.image, box, ROUGH)
    assert plain.parts == {}
    refined = jclnf.fit(one_part, face.image, box, ROUGH.replace(parts=True))
    expected = fit_parts_compiled(one_part, face.image, plain, default_params())
    np.testing.assert_allclose(refined.landmarks, expected.landmarks, atol=1e-3)
    assert np.abs(np.asarray(refined.landmarks - plain.landmarks)).max() > 1e-2
    assert FitParams.openface(one_part).parts
    assert not FitParams.openface(face.model).parts
    with pytest.raises(jclnf.errors.ParamsError, match="the model has none"):
        jclnf.fit(face.model, face.image, box, default_params(parts=True))


def test_prepared_parts_give_the_same(face, one_part, rough):
    raw = fit_parts_compiled(one_part, face.image, rough, default_params())
    prepared = fit_parts_compiled(one_part.prepare(), face.image, rough, default_params())
    np.testing.assert_allclose(prepared.landmarks, raw.landmarks, atol=2e-3)


def test_parts_follow_the_face_into_its_image(face, model, rough):
    refined = fit_parts_compiled(model, face.image, rough, default_params())
    moved = refined.shifted(np.array([30.0, -7.0]))
    for name, part in refined.parts.items():
        change = np.asarray(moved.parts[name].landmarks - part.landmarks)
        np.testing.assert_allclose(change, np.tile([30.0, -7.0], (len(change), 1)), atol=1e-4)
        own = next(p.model.pdm for p in model.parts if p.name == name)
        again = project(own, moved.parts[name].pose, part.shape)
        np.testing.assert_allclose(again, moved.parts[name].landmarks, atol=1e-3)


@pytest.mark.slow
def test_batches_refine_parts_as_single_fits_do(face, one_part, box):
    params, image = ROUGH.replace(parts=True), jnp.asarray(face.image)
    single = jclnf.fit(one_part, face.image, box, params)
    turns = np.array([[0.0, 0.0, 0.4], [0.0, 0.0, 0.0]], np.float32)
    boxes = jnp.stack([jnp.asarray(box)] * 2)
    batch = jclnf.fit_images(one_part, [face.image] * 2, boxes, params, init=turns)
    vmapped = jax.vmap(lambda box: jclnf.fit(one_part, image, box, params))(boxes)
    for many in (batch, vmapped):
        own, expected = many.parts["one"].landmarks[1], single.parts["one"].landmarks
        np.testing.assert_allclose(own, expected, atol=5e-3)
        np.testing.assert_allclose(many.landmarks[1], single.landmarks, atol=5e-3)


@pytest.mark.slow
def test_derivatives_are_those_of_finite_differences(face, one_part, rough):
    with jax.enable_x64(True):
        whole, start = as_dtype(one_part, float), as_dtype(rough, float)
        image = jnp.asarray(face.image, float)
        x, y = face.landmarks[2].astype(int)
        spot = jnp.zeros_like(image).at[y - 3 : y + 3, x - 2 : x + 4].set(1.0)

        @jax.jit
        @jax.value_and_grad
        def loss(at):
            def prior(model):
                return [part.model.defaults.regularisation for part in model.parts]

            changed = eqx.tree_at(prior, whole, [at["prior"] * r for r in prior(whole)])
            moved = eqx.tree_at(lambda r: r.landmarks, start, start.landmarks + at["move"])
            result = fit_parts(changed, image + at["light"] * spot, moved, default_params())
            return jnp.sum(jnp.sin(result.landmarks / 30))

        at = {"light": jnp.array(0.3), "prior": jnp.array(1.1), "move": jnp.array(0.02)}
        gradient, step = loss(at)[1], 1e-7
        for name, value in at.items():
            ends = [loss(at | {name: value + sign * step})[0] for sign in (1, -1)]
            numeric = (ends[0] - ends[1]) / (2 * step)
            assert numeric != 0, name
            np.testing.assert_allclose(gradient[name], numeric, rtol=2e-3, atol=1e-6, err_msg=name)


def test_parts_that_do_not_fit_their_face(face, model):
    whole = part_of(face.model, "one").model
    for of_face, of_part in (
        ((0, 1), (0, 1, 2)),
        ((0, 0), (0, 1)),
        ((0,), (0,)),
        ((0, 1), (0, 7)),
        ((0, 1), (0, -1)),
    ):
        with pytest.raises(jclnf.errors.ModelFileError, match="part 'one'"):
            Part(whole, of_face, of_part)
    with pytest.raises(jclnf.errors.ModelFileError, match="landmark 20, of 20"):
        dataclasses.replace(face.model, parts=(Part(whole, (3, 20), (0, 1)),))
    with pytest.raises(jclnf.errors.ModelFileError, match="two parts named 'one'"):
        dataclasses.replace(face.model, parts=model.parts[:1] * 2)


def test_parts_and_validator_are_saved_with_their_model(model, tmp_path):
    from test_validator import load, network, validator_file

    rng = np.random.default_rng(5)
    for sides in ((9, 9), (9, 8)):
        validator = load(tmp_path, bytes(validator_file([network(rng, s) for s in sides]).data))
        whole = dataclasses.replace(model, confidence=validator)
        jclnf.save_model(whole, tmp_path / "model.safetensors")
        loaded = jclnf.load_model(tmp_path / "model.safetensors")
        assert jax.tree.structure(loaded) == jax.tree.structure(whole)
        for before, after in zip(jax.tree.leaves(whole), jax.tree.leaves(loaded), strict=True):
            np.testing.assert_array_equal(before, after)


@pytest.fixture
def openface_files(tmp_path):
    """The main file of a model with a part."""
    from support.openface_files import random_model, write_model

    main = write_model(tmp_path, random_model(landmarks=10))
    write_model(tmp_path / "eye", random_model(1, landmarks=8, scalings=(1.0, 1.5), windows=()))
    line = "LandmarkDetector_part eye/main_clnf_general.txt left_eye_28 4 0 6 2 8 5"
    main.write_text(f"LandmarkDetector clnf_general.txt\n{line}\n")
    return main


def test_loading_a_model_brings_its_parts(openface_files):
    assert jclnf.load_openface(openface_files).parts == ()
    model = jclnf.load_openface(openface_files, parts=True)
    (part,) = model.parts
    assert (part.name, part.main_index, part.part_index) == ("left_eye_28", (4, 6, 8), (0, 2, 5))
    assert model.defaults.parts
    settings = part.model.defaults
    assert settings.windows == (3, 5)
    np.testing.assert_allclose(settings.regularisation, [0.5, 0.5])
    np.testing.assert_allclose(settings.kernel_width, [1.0, 1.0])
    np.testing.assert_allclose(settings.weight_factor, [0.0, 0.0])


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("eye/main_clnf_general.txt", "line 2: a part without a name"),
        ("eye/main_clnf_general.txt nose 0 1", "line 2: a part 'nose'"),
        ("eye/main_clnf_general.txt inner", "pairs of whole numbers"),
        ("eye/main_clnf_general.txt inner 0 1 2", "pairs of whole numbers"),
        ("eye/main_clnf_general.txt inner 0 -1 2 3", "pairs of whole numbers"),
        ("eye/main_clnf_general.txt inner 0 1e0 2 3", "pairs of whole numbers"),
        ("eye/main_clnf_general.txt left_eye_28 10 0 1 1", "landmark 10 of a face that has 10"),
        ("eye/main_clnf_general.txt left_eye_28 0 0 0 1", "two or more, all different"),
        ("eye/main_clnf_general.txt left_eye_28 0 0 1 8", "landmark 8 of 8"),
        ("eye/main_clnf_general.txt inner 0 0 1 1", "has 2 scales, more than 1"),
        ("absent.txt inner 0 1 2 3", "names it (LandmarkDetector_part): keep OpenFace's model"),
    ],
)
def test_lines_that_name_no_part(openface_files, line, problem):
    openface_files.write_text(f"LandmarkDetector clnf_general.txt\nLandmarkDetector_part {line}\n")
    jclnf.load_openface(openface_files)
    with pytest.raises(jclnf.errors.ModelFileError) as error:
        jclnf.load_openface(openface_files, parts=True)
    assert problem in str(error.value)


def test_a_model_without_parts_says_so(openface_files):
    with pytest.raises(jclnf.errors.ModelFileError, match="names no parts"):
        jclnf.load_openface(openface_files.parent / "clnf_general.txt", parts=True)


@pytest.mark.slow
def test_recorded_faces(shared):
    """A few large faces, of which one is too small for its parts."""
    folder = shared / "openface"
    model = openface_model(folder, "general")
    params = FitParams.openface(model)
    recorded = np.load(folder / "reference" / "parts_large_faces.npz")
    with open(folder / "images_large" / "boxes.csv", newline="") as file:
        rows = {row["image"][:3]: [float(row[s]) for s in "xywh"] for row in csv.DictReader(file)}
    worst, worst_of_parts = [], []
    for name in ("000", "030", "072", "078", "102"):
        path = folder / "images_large" / f"{name}.png"
        image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        result = jclnf.fit(model, filled(image, LARGE), np.float32(rows[name]), params)
        prefix = f"clnf_general/{name}"
        worst.append(distances(result.landmarks, recorded[f"{prefix}/landmarks"].T).max())
        for index, part in enumerate(model.parts):
            expected = recorded[f"{prefix}/part{index}/landmarks"].T
            worst_of_parts.append(distances(result.parts[part.name].landmarks, expected).max())
        assert all(part.fitted == (name != "078") for part in result.parts.values())
        np.testing.assert_allclose(
            result.confidence, recorded[f"{prefix}/certainty"].item(), atol=1e-6
        )
        assert result.success == bool(recorded[f"{prefix}/success"].item())
    # Rounding flips entries of OpenFace's kernel table, which moves landmarks by so much.
    assert np.median(worst) < 0.1
    assert np.median(worst_of_parts) < 0.05
    assert max(*worst, *worst_of_parts) < 0.3
