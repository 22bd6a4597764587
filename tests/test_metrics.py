import numpy as np
import pytest

from jclnf.evaluation import Statistics, draw_curves, face_errors
from jclnf.evaluation._metrics import (
    GROUPS_68,
    INNER,
    area_under_curve,
    box_size,
    cumulative_error_curve,
    failure_rate,
    nme,
    outer_eye_distance,
    point_errors,
    remove_offsets,
    summarise,
    yaw_range,
)

NAN = np.nan


@pytest.fixture
def truth(rng):
    return rng.uniform(20, 80, (7, 68, 2))


@pytest.fixture
def predicted(rng, truth):
    return truth + rng.normal(0, 3, truth.shape)


def test_errors_one_by_one(truth, predicted):
    for i in range(len(truth)):
        distances = [float(np.hypot(*(p - t))) for p, t in zip(predicted[i], truth[i], strict=True)]
        np.testing.assert_allclose(point_errors(predicted, truth)[i], distances)
        (x, y), (right, bottom) = truth[i].min(0), truth[i].max(0)
        eyes = float(np.hypot(*(truth[i, 36] - truth[i, 45])))
        assert outer_eye_distance(truth)[i] == pytest.approx(eyes)
        box = ((right - x) * (bottom - y)) ** 0.5
        assert box_size(truth)[i] == pytest.approx(box)
        errors = {name: values[i] for name, values in face_errors(predicted, truth).items()}
        assert errors["all_eye"] == pytest.approx(100 * sum(distances) / 68 / eyes)
        assert errors["inner_eye"] == pytest.approx(100 * sum(distances[17:]) / 51 / eyes)
        assert errors["all_box"] == pytest.approx(100 * sum(distances) / 68 / box)
        assert errors["inner_box"] == pytest.approx(100 * sum(distances[17:]) / 51 / box)


def test_groups_are_all_landmarks_once():
    together = np.concatenate(list(GROUPS_68.values()))
    np.testing.assert_array_equal(np.sort(together), np.arange(68))
    inner = np.concatenate([index for name, index in GROUPS_68.items() if name != "jaw"])
    np.testing.assert_array_equal(np.sort(inner), INNER)


def test_curve_by_hand():
    errors = [1.0, 3.0, NAN, 8.0]
    np.testing.assert_array_equal(
        cumulative_error_curve(errors, [0, 1, 2.9, 3, 7.9, 8, 1e9]),
        [0, 0.25, 0.25, 0.5, 0.5, 0.75, 0.75],
    )
    # Exactly at the limit is not over it; a face that was not fitted is over every one.
    assert failure_rate(errors, 8.0) == 0.25
    assert failure_rate(errors, 7.99) == 0.5
    assert failure_rate(errors, 1e9) == 0.25


def test_area_is_that_under_the_sampled_curve(rng):
    errors = np.append(rng.gamma(4, 1.5, 200), [NAN, 50.0])
    for limit in (8.0, 10.0):
        middle = (np.arange(200_000) + 0.5) * limit / 200_000
        sampled = cumulative_error_curve(errors, middle).mean()
        assert area_under_curve(errors, limit) == pytest.approx(sampled, abs=1e-5)
    assert area_under_curve([0.0], 8.0) == 1
    assert area_under_curve([NAN, 8.0], 8.0) == 0


def test_faces_that_were_not_fitted_count():
    found = Statistics.of([2.0, 4.0, 9.0, NAN])
    assert (found.faces, found.not_fitted) == (4, 1)
    assert found.mean == pytest.approx(5)
    assert found.median == pytest.approx(6.5)  # between 4 and 9 of all four
    assert found.p90 == np.inf
    assert (found.over_8, found.over_10) == (0.5, 0.25)
    assert found.auc_8 == pytest.approx((6 / 8 + 4 / 8) / 4)
    none = Statistics.of([NAN, NAN])
    assert np.isnan(none.mean)
    assert (none.median, none.over_10, none.auc_10) == (np.inf, 1, 0)
    # As numpy has it where all are fitted, and where the place is exactly that of a face.
    assert Statistics.of([1.0, 2.0, 4.0]).p90 == pytest.approx(np.percentile([1, 2, 4], 90))
    assert Statistics.of([1.0, 2.0, NAN]).median == 2


def test_one_missing_landmark_is_a_face_not_fitted(truth, predicted):
    predicted[2, 5, 0] = NAN  # on the jaw: the inner landmarks are all there
    for name, values in face_errors(predicted, truth).items():
        np.testing.assert_array_equal(np.isnan(values), np.arange(7) == 2, err_msg=name)
    found = summarise(predicted, truth)
    for stats in (*found.measures.values(), *found.groups.values()):
        assert stats.not_fitted == 1


def test_constant_offsets_are_removed(rng, truth):
    size = outer_eye_distance(truth)
    offsets = rng.normal(0, 0.05, (68, 2))
    biased = truth + size[:, None, None] * offsets
    np.testing.assert_allclose(remove_offsets(biased, truth), truth, atol=1e-9)
    assert face_errors(biased, truth)["all_eye_corrected"].max() < 1e-6

    # Of scatter, the median of each coordinate goes, of the fitted faces.
    scattered = biased + rng.normal(0, 1, truth.shape)
    scattered[3] = NAN
    left = (remove_offsets(scattered, truth) - truth) / size[:, None, None]
    assert np.isnan(left[3]).all()
    fitted = np.arange(7) != 3
    np.testing.assert_allclose(np.median(left[fitted], axis=0), 0, atol=1e-12)
    before = (scattered - truth) / size[:, None, None]
    change = (before - left)[fitted]
    np.testing.assert_allclose(change, np.broadcast_to(change[0], change.shape), atol=1e-12)


def test_nothing_fitted(truth):
    found = summarise(np.full_like(truth, NAN), truth, np.zeros(7))
    for stats in (*found.measures.values(), *found.groups.values(), *found.yaw.values()):
        assert (stats.not_fitted, stats.over_10) == (7, 1)


def test_by_yaw(truth, predicted):
    degrees = np.array([0, -14.9, 15.1, -29, 44, -61, NAN])
    found = summarise(predicted, truth, np.deg2rad(degrees))
    assert {name: stats.faces for name, stats in found.yaw.items()} == {
        "0-15": 2,
        "15-30": 2,
        "30-45": 1,
        "60+": 1,
        "unknown": 1,
    }
    errors = face_errors(predicted, truth)["all_eye"]
    assert found.yaw["15-30"].mean == pytest.approx(errors[2:4].mean())
    assert found.yaw["60+"].mean == pytest.approx(errors[5])
    assert yaw_range(-np.pi / 2) == "60+"


def test_another_scheme_has_one_measure(rng):
    truth = rng.uniform(0, 50, (3, 20, 2))
    found = summarise(truth + 1, truth, np.zeros(3))
    assert list(found.measures) == ["all_box"]
    assert found.groups == {}
    expected = 100 * 2**0.5 / box_size(truth)
    assert found.yaw["0-15"].mean == pytest.approx(expected.mean())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: point_errors(np.zeros((2, 5, 2)), np.zeros((3, 5, 2))), "shape"),
        (lambda: point_errors(np.zeros((5, 2)), np.zeros((5, 2))), "shape"),
        (lambda: outer_eye_distance(np.zeros((1, 5, 2))), "68"),
        (lambda: nme(np.zeros((1, 5, 2)), np.zeros((1, 5, 2)), [0.0]), "positive"),
        (lambda: nme(np.zeros((1, 5, 2)), np.zeros((1, 5, 2)), [1.0, 2.0]), "positive"),
        (lambda: failure_rate([], 8.0), "b > 0"),
        (lambda: summarise(np.ones((1, 5, 2)), np.eye(5)[None, :, :2], [0.0, 1.0]), "2 angles"),
    ],
)
def test_refuses(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_curves_are_drawn():
    data = draw_curves({"one": [1.0, 2.0, NAN], "other": [NAN]}, limit=8.0, label="error")
    assert data.startswith(b"\x89PNG")
    assert data != draw_curves({"one": [7.0, 7.0, 7.0], "other": [NAN]}, limit=8.0, label="error")
