"""Patch experts: what turns the image around a landmark into a map of where the landmark is."""

from jclnf.experts._base import GaussianResponses, PatchExperts, Responses, WholeFaceExperts
from jclnf.experts._ccnf import CCNF, PreparedCCNF, to_blocks
from jclnf.experts._cen import CEN
from jclnf.experts._layers import (
    Layer,
    Shapes,
    check_weights,
    convolve,
    doubled,
    initial_weights,
    normalised,
    plain_layer,
)
from jclnf.experts._neural_field import (
    ccnf_responses,
    covariances,
    neurons_side_by_side,
    side_by_side,
    symmetric_bases,
)
from jclnf.experts._pyramid import MapNetwork, PyramidExperts, map_network, map_shapes
from jclnf.experts._svr import ABSENT_BIAS, SVR
from jclnf.experts._trunk import TRUNK_SAMPLING, TrunkExperts, trunk_network, trunk_shapes

__all__ = [
    "ABSENT_BIAS",
    "CCNF",
    "CEN",
    "SVR",
    "TRUNK_SAMPLING",
    "GaussianResponses",
    "Layer",
    "MapNetwork",
    "PatchExperts",
    "PreparedCCNF",
    "PyramidExperts",
    "Responses",
    "Shapes",
    "TrunkExperts",
    "WholeFaceExperts",
    "ccnf_responses",
    "check_weights",
    "convolve",
    "covariances",
    "doubled",
    "initial_weights",
    "map_network",
    "map_shapes",
    "neurons_side_by_side",
    "normalised",
    "plain_layer",
    "side_by_side",
    "symmetric_bases",
    "to_blocks",
    "trunk_network",
    "trunk_shapes",
]
