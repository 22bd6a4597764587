"""The last step of a training: fits are to have no constant offsets from what is annotated."""

import dataclasses

import numpy as np

from jclnf.model import Model
from jclnf.train.batches import BoxExamples, Example
from jclnf.train.faces import Posed

ROUNDS = 4
"""How often the mean shape is moved. Each time about half of the offset goes: the prior holds a
landmark only in part."""
_CHUNK = 32


def centred(model: Model, posed: Posed, size: int, margin: tuple[float, float]) -> Model:
    """The model with its mean shape moved so that fits have no constant offsets.

    The prior draws every face towards the mean shape, and annotations are not where responses peak
    for all landmarks. What is left of both in the median over the training faces, in the head's
    own frame, is added to the mean shape's x and y; again and again, since a fit follows it in part
    only.

    Args:
        model: a trained model.
        posed: the faces to learn from.
        size, margin: of the pictures that are fitted, see `BoxExamples`.
    """
    from jclnf.train.pipeline import fitted

    make = BoxExamples(posed, size, margin)
    made = [make(face, np.random.default_rng([face, 1])) for face in range(len(posed.faces))]
    examples: Example = {key: np.stack([one[key] for one in made]) for key in made[0]}
    for _ in range(ROUNDS):
        moves = []
        for first in range(0, len(made), _CHUNK):
            part = slice(first, first + _CHUNK)
            result = fitted(model, examples["picture"][part], examples["box"][part])
            apart = examples["points"][part] - np.asarray(result.landmarks)
            matrix, scale = np.asarray(result.pose.matrix), np.asarray(result.pose.scale)
            in_head = np.einsum("fnc,fcd->fnd", apart, matrix[:, :2, :2])
            moves.append(in_head / scale[:, None, None])
        move = np.median(np.concatenate(moves), axis=0)
        mean = model.pdm.mean.at[:, :2].add(move.astype(np.float32))
        model = dataclasses.replace(model, pdm=dataclasses.replace(model.pdm, mean=mean))
    return model
