"""Patch experts: what turns the image around a landmark into a map of where the landmark is."""

from jclnf.experts.base import PatchExperts
from jclnf.experts.ccnf import CCNF, PreparedCCNF
from jclnf.experts.cen import CEN
from jclnf.experts.svr import SVR
from jclnf.experts.trunk import TrunkExperts

__all__ = ["CCNF", "CEN", "SVR", "PatchExperts", "PreparedCCNF", "TrunkExperts"]
