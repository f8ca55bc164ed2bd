"""How the losses of the tasks combine into one."""

from multigate.balance.absent import Absent
from multigate.balance.aligned_mtl import AlignedMTL
from multigate.balance.balance import Balance, Balancer
from multigate.balance.cagrad import CAGrad
from multigate.balance.dwa import DWA
from multigate.balance.famo import FAMO
from multigate.balance.fixed import Fixed
from multigate.balance.geometric_mean import GeometricMean
from multigate.balance.gradnorm import GradNorm
from multigate.balance.gramian import GramianBalance, task_gramian
from multigate.balance.imtl_g import IMTLG
from multigate.balance.mgda import MGDA
from multigate.balance.nash_mtl import FairGrad, NashMTL
from multigate.balance.pcgrad import GradVac, PCGrad
from multigate.balance.random_weights import RandomWeights
from multigate.balance.stch import STCH
from multigate.balance.uncertainty import IMTLL, Uncertainty
from multigate.balance.upgrad import DualProj, UPGrad

BALANCES: dict[str, type[Balance]] = {
    "fixed": Fixed,
    "uncertainty": Uncertainty,
    "imtl_l": IMTLL,
    "dwa": DWA,
    "famo": FAMO,
    "stch": STCH,
    "geometric_mean": GeometricMean,
    "random": RandomWeights,
    "pcgrad": PCGrad,
    "gradvac": GradVac,
    "cagrad": CAGrad,
    "mgda": MGDA,
    "imtl_g": IMTLG,
    "aligned_mtl": AlignedMTL,
    "nash_mtl": NashMTL,
    "fairgrad": FairGrad,
    "upgrad": UPGrad,
    "dualproj": DualProj,
    "gradnorm": GradNorm,
}

__all__ = [
    "BALANCES",
    "Balance",
    "Balancer",
    "GramianBalance",
    "task_gramian",
    "Absent",
    "AlignedMTL",
    "CAGrad",
    "DWA",
    "DualProj",
    "FAMO",
    "FairGrad",
    "Fixed",
    "GeometricMean",
    "GradNorm",
    "GradVac",
    "IMTLG",
    "IMTLL",
    "MGDA",
    "NashMTL",
    "PCGrad",
    "RandomWeights",
    "STCH",
    "UPGrad",
    "Uncertainty",
]
