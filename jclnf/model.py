"""A model: shape model, patch experts, and the settings that they were trained for."""

import equinox as eqx

from jclnf.errors import ModelFileError
from jclnf.experts import CEN, PatchExperts
from jclnf.params import FitParams
from jclnf.pdm import PDM


class Model(eqx.Module):
    """Everything that a fit needs but the image; a pytree whose arrays may be differentiated."""

    pdm: PDM
    experts: PatchExperts
    defaults: FitParams
    """The settings that a fit uses unless it is given others."""
    name: str = eqx.field(static=True, default="")

    def __check_init__(self) -> None:
        landmarks = self.experts.visible.shape[-1]
        if landmarks != self.pdm.n_landmarks:
            raise ModelFileError(
                self.name or "model",
                f"the shape model has {self.pdm.n_landmarks} landmarks, the experts {landmarks}",
            )

    @property
    def scalings(self) -> tuple[float, ...]:
        """Reference pixels per millimetre of each scale, coarse to fine."""
        return self.experts.scalings

    def prepare(self, params: FitParams | None = None) -> "Model":
        """This model with everything precomputed that the windows of `params` allow.

        A fit gives the same result with or without; prepare once where you fit often. To take
        derivatives by the experts' parameters, differentiate a function that prepares inside, or
        fit with the model as it was loaded.
        """
        windows = (self.defaults if params is None else params).windows
        return eqx.tree_at(lambda model: model.experts, self, self.experts.prepare(windows))


def openface_model(pdm: PDM, experts: PatchExperts, *, name: str, wild: bool) -> Model:
    """A model with OpenFace's settings for its experts, in exact arithmetic.

    CCNF and SVR experts may be meant for faces "in the wild"; convolutional ones have one setting.
    """
    settings = FitParams.openface_wild if wild else FitParams.openface
    if isinstance(experts, CEN):
        settings = FitParams.openface_ceclm
    return Model(pdm, experts, settings(experts, arithmetic="exact"), name)
