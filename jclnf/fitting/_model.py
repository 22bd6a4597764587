"""A model: shape model, patch experts, and the settings that they were trained for."""

import dataclasses
from abc import abstractmethod
from typing import Any

import equinox as eqx
import jax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jclnf.errors import ModelFileError
from jclnf.experts import PatchExperts
from jclnf.fitting._confidence import Confidence
from jclnf.fitting._start import LearnedStart
from jclnf.fitting._uncertainty import Uncertainty
from jclnf.fitting._validator import Validator
from jclnf.geometry import PDM
from jclnf.params import FitParams, as_dtype


class StartRule(eqx.Module):
    """Which of several start rotations is kept, without fitting all of them to the end."""

    @abstractmethod
    def best(
        self,
        model: "Model",
        image: Any,
        box: Float[Array, "4"],
        rotations: Float[Array, "r 3"],
        params: FitParams,
    ) -> Any:
        """The `FitResult` of the start that is kept, postprocessed; neither compiled nor checked.

        A pure function, as `jclnf.fit` is.
        """


class Model(eqx.Module):
    """Everything that a fit needs but the image; a pytree whose arrays may be differentiated."""

    pdm: PDM
    experts: PatchExperts
    defaults: FitParams
    """The settings that a fit uses unless it is given others."""
    name: str = eqx.field(static=True, default="")
    parts: tuple["Part", ...] = ()
    """Models of parts of the face, in the order in which their landmarks replace the face's; used
    by fits with `FitParams.parts`."""
    validator: Validator | None = None
    """What a fit has its confidence from: OpenFace's way."""
    start: LearnedStart | None = None
    """Where a fit starts that is given no start; without, at the frontal mean shape."""
    readout: PDM | None = None
    """What landmarks are read off by at the end of a fit; without, `pdm`."""
    uncertainty: Uncertainty | None = None
    """What the covariances of its landmarks are calibrated by; without, they are only roughly of
    the right size."""
    confidence: Confidence | None = None
    """What a fit has its confidence from, as a probability, if there is no validator."""
    early_termination: StartRule | None = None
    """When one of several start rotations is so good that the others are not needed."""

    def __check_init__(self) -> None:
        landmarks = self.experts.visible.shape[-1]
        if landmarks != self.pdm.n_landmarks:
            raise ModelFileError(
                self.name or "model",
                f"the shape model has {self.pdm.n_landmarks} landmarks, the experts {landmarks}",
            )
        if self.start is not None and self.start.n_modes != self.pdm.n_modes:
            problem = f"the learned start has {self.start.n_modes} modes, not {self.pdm.n_modes}"
            raise ModelFileError(self.name or "model", problem)
        if self.confidence is not None:
            sizes = (self.confidence.n_landmarks, self.confidence.n_modes)
            if sizes != (landmarks, self.pdm.n_modes):
                problem = f"the confidence is for {sizes[0]} landmarks and {sizes[1]} modes"
                expected = f"not {landmarks} and {self.pdm.n_modes}"
                raise ModelFileError(self.name or "model", f"{problem}, {expected}")
        if self.early_termination is not None:
            views = self.experts.centres.shape[1]
            numbers = jax.tree.leaves(self.early_termination)
            if any(array.shape != (views,) for array in numbers):
                problem = f"the rule for early termination is not one for the {views} views"
                raise ModelFileError(self.name or "model", problem)
        if self.readout is not None and self.readout.components.shape != self.pdm.components.shape:
            problem = f"its readout is {self.readout.components.shape}, its shape model is "
            problem += f"{self.pdm.components.shape}"
            raise ModelFileError(self.name or "model", problem)
        names = [part.name for part in self.parts]
        for part in self.parts:
            if names.count(part.name) > 1:
                raise ModelFileError(self.name or "model", f"has two parts named {part.name!r}")
            if max(part.main_index) >= landmarks:
                problem = f"the part {part.name!r} takes landmark {max(part.main_index)}"
                raise ModelFileError(self.name or "model", f"{problem}, of {landmarks}")

    @property
    def scalings(self) -> tuple[float, ...]:
        """Reference pixels per millimetre of each scale, coarse to fine."""
        return self.experts.scalings

    def astype(self, dtype: DTypeLike) -> "Model":
        """This model in another precision, as `model.astype(jnp.float64)`: a fit computes in that
        of its model. Double precision needs JAX's option `jax_enable_x64`."""
        changed: Model = as_dtype(self, dtype)
        return changed

    def prepare(self, params: FitParams | None = None) -> "Model":
        """This model with everything precomputed that the windows of `params` allow.

        Parts are prepared for their own settings. A fit gives the same result with or without, and
        `jclnf.fit` and the others prepare each model by themselves. To take derivatives with
        respect to the experts' parameters, differentiate a function that prepares inside, or fit
        with the model as it was loaded.
        """
        windows = (self.defaults if params is None else params).windows
        parts = tuple(dataclasses.replace(p, model=p.model.prepare()) for p in self.parts)
        return dataclasses.replace(self, experts=self.experts.prepare(windows), parts=parts)


class Part(eqx.Module):
    """A part of the face with a model of its own, whose `defaults` are the settings of its fit.

    Landmark `main_index[i]` of the face is landmark `part_index[i]` of the part.
    """

    model: Model
    main_index: tuple[int, ...] = eqx.field(static=True)
    part_index: tuple[int, ...] = eqx.field(static=True)

    def __check_init__(self) -> None:
        problem = None
        if len(self.main_index) != len(self.part_index):
            problem = f"{len(self.main_index)} landmarks of the face, {len(self.part_index)} of it"
        for index in (self.main_index, self.part_index):
            if len(set(index)) < max(len(index), 2) or min(index) < 0:
                problem = f"its landmarks must be two or more, all different, not {index}"
        if problem is None and max(self.part_index) >= self.model.pdm.n_landmarks:
            problem = f"landmark {max(self.part_index)} of {self.model.pdm.n_landmarks}"
        if problem is not None:
            raise ModelFileError(f"part {self.name!r}", problem)

    @property
    def name(self) -> str:
        """The name of its model."""
        return self.model.name
