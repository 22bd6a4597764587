"""Early termination: its two forms against a plain restatement.

No recorded fit of OpenFace uses it.
"""

import dataclasses
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.synthetic import default_params, planted, uncropped

import jclnf
from jclnf import FitStatus
from jclnf.errors import ModelFileError
from jclnf.fitting import fit_face
from jclnf.openface import EarlyTermination
from jclnf.openface import _early_termination as early
from jclnf.openface._read_early_termination import read_early_termination

ROTATIONS = np.array(
    [[0.0, -0.9, 0.3], [0.2, 1.2, 0.0], [0, 0, 0], [0, 0.1, 0], [0.4, 0, 0.2]], np.float32
)
PARAMS = default_params(iterations=2)


@pytest.fixture(scope="module")
def face():
    case = planted()
    return case._replace(image=uncropped(case.image))


@pytest.fixture(scope="module")
def box(face):
    return np.float32((face.box + [3, -2, 0, 0]) * [1, 1, 1.04, 0.98])


@pytest.fixture(scope="module")
def begun(face, box):
    """The fits at the first scale, one after the other: likelihood and view."""
    first = PARAMS.replace(windows=(PARAMS.windows[0], 0))
    fits = [jclnf.fit(face.model, face.image, box, first, init=r) for r in ROTATIONS]
    return fits, [float(f.likelihood) for f in fits], [int(f.trace.view[0]) for f in fits]


fit_from = eqx.filter_jit(jclnf.fitting.fit_from)


def rule_of(weight, bias, cutoff) -> EarlyTermination:
    return EarlyTermination(*(jnp.asarray(a, jnp.float32) for a in (weight, bias, cutoff)))


def with_rule(face, rule: EarlyTermination):
    return dataclasses.replace(face.model, early_termination=rule)


def restated(face, begun, rule: EarlyTermination):
    """What should come out, written down step by step; also which start it comes from."""
    fits, likelihoods, views = begun
    weight, bias, cutoff = (np.asarray(a) for a in (rule.weight, rule.bias, rule.cutoff))
    scores = [
        value * weight[view] + bias[view] for value, view in zip(likelihoods, views, strict=True)
    ]

    def complete(index):
        later = PARAMS.replace(windows=(0, PARAMS.windows[1]))
        pose, shape = fits[index].pose, fits[index].shape
        return fit_from(face.model, face.image, pose, shape, later)

    for index, score in enumerate(scores):
        if score > cutoff[views[index]]:
            return index, complete(index)
    best = sorted(range(len(scores)), key=lambda index: -scores[index])[:3]
    results = {index: complete(index) for index in best}
    winner = max(best, key=lambda index: float(results[index].likelihood))
    return winner, results[winner]


@pytest.fixture(scope="module")
def rules(begun):
    """Rules by which start is accepted."""
    _, likelihoods, views = begun
    assert sorted(set(views)) == [0, 1]
    nobody = rule_of([1, 1], [0, 0], [100, 100])
    everybody = rule_of([1, 1], [0, 0], [-100, -100])
    # The first start that uses the first view, however likely the others are.
    of_view = rule_of([1, 1], [0, 0], [-100, 100])
    best = int(np.argmax(likelihoods))
    only_best = np.sort(likelihoods)[-2:].mean()
    return {
        "nobody": (nobody, None),
        "everybody": (everybody, 0),
        "first of a view": (of_view, views.index(0)),
        "the best": (rule_of([1, 1], [0, 0], [only_best] * 2), best),
        "the best, shifted": (rule_of([2, 2], [3, 3], [2 * only_best + 3] * 2), best),
        "a worse one, by its view": (rule_of([1, 0], [0, 9], [100, 8]), views.index(1)),
    }


NAMES = (
    "nobody", "everybody", "first of a view", "the best", "the best, shifted",
    "a worse one, by its view",
)  # fmt: skip


@eqx.filter_jit
def fitted(model, image, box, one_by_one):
    del one_by_one  # decides at compile time, by what the test has set
    return fit_face(model, image, box, jnp.asarray(ROTATIONS), PARAMS)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("one_by_one", [True, False])
def test_it_does_what_is_said(face, box, begun, rules, monkeypatch, name, one_by_one) -> None:
    """Both on a CPU and on accelerators, where all starts run at once."""
    monkeypatch.setattr(early, "one_by_one", lambda: one_by_one)
    rule, accepted = rules[name]
    winner, expected = restated(face, begun, rule)
    if accepted is not None:
        assert winner == accepted
    found = fitted(with_rule(face, rule), face.image, box, one_by_one)
    np.testing.assert_allclose(found.landmarks, expected.landmarks, atol=2e-3)
    np.testing.assert_allclose(found.likelihood, expected.likelihood, atol=1e-3)
    assert found.status == expected.status
    assert found.trace.performed.shape == (2, 2, PARAMS.iterations)
    np.testing.assert_array_equal(found.trace.view[1:], expected.trace.view)
    assert found.trace.view[0] == begun[2][winner]


def test_an_accepted_start_gives_a_fit_in_one_go(face, box, rules) -> None:
    model = with_rule(face, rules["everybody"][0])
    for first in (1, 2):
        whole = jclnf.fit(face.model, face.image, box, PARAMS, init=ROTATIONS[first])
        found = jclnf.fit(model, face.image, box, PARAMS, init=ROTATIONS[first : first + 2])
        np.testing.assert_allclose(found.landmarks, whole.landmarks, atol=1e-3)
        assert jax.tree.structure(found) == jax.tree.structure(whole)
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(whole), strict=True):
            assert (a.shape, a.dtype) == (b.shape, b.dtype)
        np.testing.assert_array_equal(found.trace.performed, whole.trace.performed)


def test_no_more_starts_are_fitted_than_it_needs(face, box, rules, monkeypatch) -> None:
    """One after the other, as on a CPU."""
    begin, complete, calls = early.begin, early.complete, []

    def counted(name, work):
        def call(*args):
            jax.debug.callback(lambda: calls.append(name))
            return work(*args)

        return call

    monkeypatch.setattr(early, "begin", counted("begin", begin))
    monkeypatch.setattr(early, "complete", counted("complete", complete))
    params = PARAMS.replace(iterations=1)  # compiled by no other test
    for name, expected in (
        ("everybody", ["begin", "complete"]),
        ("nobody", ["begin"] * 5 + ["complete"] * 3),
    ):
        calls.clear()
        model = with_rule(face, rules[name][0])
        jax.block_until_ready(jclnf.fit(model, face.image, box, params, init=ROTATIONS))
        jax.effects_barrier()
        assert sorted(calls) == expected


def test_a_face_that_becomes_too_small_stays_as_it_was(face, rules) -> None:
    tiny = np.float32([100, 100, 15, 15])
    whole = jclnf.fit(face.model, face.image, tiny, PARAMS, init=ROTATIONS[2])
    assert whole.status == FitStatus.FACE_TOO_SMALL
    model = with_rule(face, rules["everybody"][0])
    found = jclnf.fit(model, face.image, tiny, PARAMS, init=ROTATIONS[2:4])
    assert found.status == FitStatus.FACE_TOO_SMALL
    np.testing.assert_allclose(found.landmarks, whole.landmarks, atol=1e-3)
    assert not found.trace.performed[1].any()


def test_with_one_scale_there_is_nothing_to_complete(face, box, rules) -> None:
    params = PARAMS.replace(windows=(0, PARAMS.windows[1]))
    whole = jclnf.fit(face.model, face.image, box, params, init=ROTATIONS[0])
    model = with_rule(face, rules["everybody"][0])
    found = jclnf.fit(model, face.image, box, params, init=ROTATIONS)
    np.testing.assert_allclose(found.landmarks, whole.landmarks, atol=1e-3)


@pytest.mark.slow
def test_its_derivatives_are_those_of_the_fit_that_is_kept(face, box, rules) -> None:
    model = with_rule(face, rules["everybody"][0])

    def kept(box):
        return jclnf.fit(model, face.image, box, PARAMS, init=ROTATIONS).landmarks

    def alone(box):
        return jclnf.fit(face.model, face.image, box, PARAMS, init=ROTATIONS[0]).landmarks

    along = jnp.array([1.0, -0.5, 0.3, 0.2])
    found, expected = (
        jax.jit(lambda box, f=f: jax.jvp(f, (box,), (along,))[1])(jnp.asarray(box))
        for f in (kept, alone)
    )
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(found, expected, atol=1e-2 * np.abs(expected).max())


def test_likelihoods_that_are_not_numbers_are_last() -> None:
    rule = rule_of([1, 2], [0, 1], [-3, -3])
    score, accepted = rule.score(jnp.array([-1.0, jnp.nan, -4.0]), jnp.array([1, 0, 0]))
    np.testing.assert_array_equal(score, [-1, -np.inf, -4])
    np.testing.assert_array_equal(accepted, [True, False, False])


def test_rules_for_other_views(face) -> None:
    with pytest.raises(ModelFileError, match="not one for the 2 views"):
        with_rule(face, rule_of(*np.ones((3, 3))))


def test_a_rule_is_saved_with_its_model(face, tmp_path: Path) -> None:
    rule = rule_of([1, 2], [3, 4], [5, 6])
    jclnf.save_model(with_rule(face, rule), tmp_path / "model.safetensors")
    loaded = jclnf.load_model(tmp_path / "model.safetensors").early_termination
    for name in ("weight", "bias", "cutoff"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(rule, name))


def test_the_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "early.txt"
    path.write_text("# two views\n1 2  0.5 -0.5\n-3 4e-1\n")
    rule = read_early_termination(path)
    np.testing.assert_array_equal(rule.weight, [1, 2])
    np.testing.assert_array_equal(rule.bias, [0.5, -0.5])
    np.testing.assert_array_equal(rule.cutoff, np.float32([-3, 0.4]))


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("1 2 3 4", "4 numbers"),
        ("# nothing", "0 numbers"),
        ("1 2 nan", "'nan' is not a finite"),
        ("1 2 x", "'x' is not a number"),
        ("1 " * 303, "303 numbers, more than 300"),
        ("1 2 \0", "zero byte"),
    ],
)
def test_damaged_files(tmp_path: Path, content: str, match: str) -> None:
    path = tmp_path / "early.txt"
    path.write_text(content)
    with pytest.raises(ModelFileError, match=match):
        read_early_termination(path)


def test_openfaces_own_file(shared: Path) -> None:
    rule = read_early_termination(shared / "openface" / "model" / "early_term_cen_of.txt")
    np.testing.assert_allclose(rule.weight, [1, 1.005, 1.054, 0.976, 0.976, 1.054, 1.005])
    np.testing.assert_allclose(rule.cutoff, [-0.23, -0.2, -0.14, 0.26, 0.26, -0.14, -0.2])
