import dataclasses
import math

import numpy as np
import pytest
from support.synthetic import default_params

from jclnf.errors import ParamsError
from jclnf.params import Arithmetic, FitParams


class Scales:
    def __init__(self, *scalings):
        self.scalings = scalings


def test_openface_settings_follow_the_scales():
    params = FitParams.openface(Scales(0.25, 0.35, 0.5))
    octave = math.log2(0.35 / 0.25)
    np.testing.assert_allclose(params.regularisation, [25, 25 - 15 * octave, 10], rtol=1e-6)
    np.testing.assert_allclose(params.kernel_width, [1.5, 1.5 + 0.25 * octave, 1.75], rtol=1e-6)
    np.testing.assert_array_equal(params.weight_factor, 0)
    assert params.windows == (11, 9, 7)
    assert all(dataclasses.asdict(params.arithmetic).values())


def test_openface_settings_stop_following_at_the_third_scale():
    params = FitParams.openface_wild(Scales(0.25, 0.35, 0.5, 1.0), arithmetic="exact")
    np.testing.assert_allclose(params.regularisation[2:], [20, 20])
    np.testing.assert_allclose(
        params.weight_factor, [2.5, 2.5 + 5 * math.log2(1.4), 7.5, 7.5], rtol=1e-6
    )
    assert params.arithmetic == Arithmetic()
    assert params.iterations == 10


def test_regularisation_never_reaches_zero():
    params = FitParams.openface(Scales(0.25, 1.0, 2.0))
    np.testing.assert_allclose(params.regularisation[2], 0.001)


def test_replace_converts_and_checks():
    params = default_params()
    assert params.replace(arithmetic="openface").arithmetic.early_stop
    with pytest.raises(ParamsError, match="no setting sigma; there are regularisation"):
        params.replace(sigma=2)
    with pytest.raises(ParamsError, match="'fast' is not one of exact, openface"):
        params.replace(arithmetic="fast")
    with pytest.raises(ParamsError, match="at least 1"):
        params.replace(iterations=0)
    with pytest.raises(ParamsError, match="one number for each scale"):
        params.replace(windows=(9, 7, 5))
    for iterations in (2.5, "10"):
        with pytest.raises(ParamsError, match="whole number"):
            params.replace(iterations=iterations)
    with pytest.raises(ParamsError, match="whole numbers, one a scale"):
        params.replace(windows=(9.0, 7.0))
    for bad in ([0.0, 1.0], [-1.0, 1.0], [np.nan, 1.0]):
        with pytest.raises(ParamsError, match="must be positive"):
            params.replace(kernel_width=bad)
    assert params.replace(regularisation=(3, 1)).regularisation.dtype == np.float32
    assert params.replace(iterations=np.int64(3)).iterations == 3
    for windows in ((0, 0), (1, 7), (-3, 7)):
        with pytest.raises(ParamsError, match="sides must be 0"):
            params.replace(windows=windows)


def test_too_many_scales_for_openface():
    with pytest.raises(ParamsError, match="4 scales, not 5"):
        FitParams.openface(Scales(0.1, 0.2, 0.3, 0.4, 0.5))
