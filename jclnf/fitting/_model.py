"""A model: shape model, patch experts, and the settings that they were trained for."""

import dataclasses
from abc import abstractmethod
from typing import Any

import equinox as eqx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jclnf.errors import ModelFileError, check_fields
from jclnf.experts import PatchExperts
from jclnf.fitting._confidence import AbstractConfidence
from jclnf.fitting._start import LearnedStart
from jclnf.fitting._uncertainty import Uncertainty
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

    @abstractmethod
    def misfit(self, experts: PatchExperts) -> str | None:
        """A reason why it is no rule for these experts, if there is one."""


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
    start: LearnedStart | None = None
    """Where a fit starts that is given no start; without, at the frontal mean shape."""
    readout: PDM | None = None
    """Shape model that landmarks are read off by at the end of a fit; without, `pdm`."""
    uncertainty: Uncertainty | None = None
    """Calibration of the covariances of its landmarks; without, they are only roughly of
    the right size."""
    confidence: AbstractConfidence | None = None
    """How far its fits are to be trusted; without, they have no confidence."""
    early_termination: StartRule | None = None
    """When one of several start rotations is so good that the others are not needed."""

    def __check_init__(self) -> None:
        where = self.name or "model"
        check_fields(self, where)
        landmarks, modes = self.pdm.n_landmarks, self.pdm.n_modes
        found = self.experts.visible.shape[-1]
        problem = None
        if found != landmarks:
            problem = f"the shape model has {landmarks} landmarks, the experts {found}"
        elif len(self.defaults.windows) != len(self.scalings):
            windows = self.defaults.windows
            problem = f"defaults has the windows {windows} for {len(self.scalings)} scales"
        elif self.start is not None and self.start.n_modes != modes:
            problem = f"the learned start has {self.start.n_modes} modes, not {modes}"
        elif self.readout is not None and self.readout.components.shape != (landmarks, 3, modes):
            shapes = self.readout.components.shape, self.pdm.components.shape
            problem = f"its readout is {shapes[0]}, its shape model is {shapes[1]}"
        elif self.confidence is not None:
            problem = self.confidence.misfit(self.pdm)
        if problem is None and self.early_termination is not None:
            problem = self.early_termination.misfit(self.experts)
        if problem is not None:
            raise ModelFileError(where, problem)
        names = [part.name for part in self.parts]
        for part in self.parts:
            if names.count(part.name) > 1:
                raise ModelFileError(where, f"has two parts named {part.name!r}")
            if max(part.main_index) >= landmarks:
                problem = f"the part {part.name!r} takes landmark {max(part.main_index)}"
                raise ModelFileError(where, f"{problem}, of {landmarks}")

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
        check_fields(self, "part")
        problem = None
        if len(self.main_index) != len(self.part_index):
            problem = f"{len(self.main_index)} landmarks of the face, {len(self.part_index)} of it"
        for index in (self.main_index, self.part_index):
            if len(set(index)) < max(len(index), 2) or min(index, default=0) < 0:
                problem = f"its landmarks must be two or more, all different, not {index}"
        if problem is None and max(self.part_index) >= self.model.pdm.n_landmarks:
            problem = f"landmark {max(self.part_index)} of {self.model.pdm.n_landmarks}"
        if problem is not None:
            raise ModelFileError(f"part {self.name!r}", problem)

    @property
    def name(self) -> str:
        """The name of its model."""
        return self.model.name
