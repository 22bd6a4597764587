"""Patch experts: what turns the image around a landmark into a map of where the landmark is."""

from jclnf.experts.base import PatchExperts
from jclnf.experts.ccnf import CCNF, PreparedCCNF

__all__ = ["CCNF", "PatchExperts", "PreparedCCNF"]
