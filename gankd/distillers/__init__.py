"""The distillation methods, by the name that a configuration calls them."""

from __future__ import annotations

from typing import Annotated, Any, Union

import torch
from pydantic import Field
from torch import nn

from gankd.data.augment import AugmentationConfig
from gankd.data.loader import SAMPLINGS
from gankd.distillers.ab import AB
from gankd.distillers.afd import AFD
from gankd.distillers.at import AT
from gankd.distillers.attentive_hint import AttentiveHint
from gankd.distillers.bake import BAKE
from gankd.distillers.base import Distiller, Method, MethodConfig
from gankd.distillers.byot import BYOT
from gankd.distillers.cc import CC
from gankd.distillers.combined import CombinedConfig
from gankd.distillers.crd import CRD
from gankd.distillers.cs_kd import CSKD
from gankd.distillers.ddgsd import DDGSD
from gankd.distillers.dist import DIST
from gankd.distillers.dkd import DKD
from gankd.distillers.dks import DKS
from gankd.distillers.dml import DML
from gankd.distillers.ffl import FFL
from gankd.distillers.fitnet import FitNet
from gankd.distillers.frskd import FRSKD
from gankd.distillers.fsp import FSP
from gankd.distillers.ft import FT
from gankd.distillers.hsakd import HSAKD, HSAKDTeacher
from gankd.distillers.kd import CTKD, KD
from gankd.distillers.kdcl import KDCL
from gankd.distillers.lmcl import LMCL
from gankd.distillers.mcl import MCL
from gankd.distillers.mfef import MFEF
from gankd.distillers.mixing import CutMix, Mixup
from gankd.distillers.mixskd import MixSKD
from gankd.distillers.nst import NST
from gankd.distillers.ofd import OFD
from gankd.distillers.okddip import OKDDip
from gankd.distillers.one import ONE
from gankd.distillers.pkt import PKT
from gankd.distillers.ps_kd import PSKD
from gankd.distillers.reviewkd import ReviewKD
from gankd.distillers.rkd import RKD
from gankd.distillers.sad import SAD
from gankd.distillers.scalar_regression import AttentiveImitation, OutlierRejection, TeacherBounded
from gankd.distillers.simreg import SimReg
from gankd.distillers.smoothing import Focal, LabelSmoothing, MaxEntropy, VirtualSoftmax
from gankd.distillers.sp import SP
from gankd.distillers.squeeze_and_span import SqueezeAndSpan
from gankd.distillers.supervised import Supervised
from gankd.distillers.terms import Distillation, Term
from gankd.distillers.tf_kd import TFKDReg, TFKDSelf
from gankd.distillers.two_views import SimSiam, VICReg
from gankd.distillers.vid import VID
from gankd.distillers.zipf_ls import ZipfLS
from gankd.tasks import CLASSIFICATION, Task
from gankd.teacher import Teacher
from generators.randomness import mix
from generators.settings import nearest

__all__ = [
    "METHODS",
    "AnyMethodConfig",
    "Distiller",
    "Method",
    "MethodConfig",
    "Term",
    "build_distiller",
    "check_method",
    "check_two_views",
    "check_views",
    "method_config",
    "sampling_of",
]

_ALL: tuple[type[Method], ...] = (
    Supervised,
    KD,
    CTKD,
    DKD,
    DIST,
    TeacherBounded,
    AttentiveImitation,
    OutlierRejection,
    AttentiveHint,
    SP,
    FitNet,
    AT,
    RKD,
    PKT,
    VID,
    CC,
    NST,
    FSP,
    AB,
    FT,
    ReviewKD,
    OFD,
    CRD,
    HSAKD,
    HSAKDTeacher,
    DML,
    KDCL,
    ONE,
    OKDDip,
    FFL,
    MFEF,
    AFD,
    MCL,
    LMCL,
    ZipfLS,
    MixSKD,
    LabelSmoothing,
    Focal,
    MaxEntropy,
    VirtualSoftmax,
    TFKDReg,
    TFKDSelf,
    CSKD,
    PSKD,
    BAKE,
    DDGSD,
    BYOT,
    DKS,
    SAD,
    FRSKD,
    Mixup,
    CutMix,
    SqueezeAndSpan,
    SimReg,
    VICReg,
    SimSiam,
)

METHODS: dict[str, type[Method]] = {method.Config.model_fields["name"].default: method for method in _ALL}
"""Every method but `combined`, which is a list of them."""

AnyMethodConfig = Annotated[
    Union[(*(method.Config for method in METHODS.values()), CombinedConfig)], Field(discriminator="name")  # noqa: UP007
]


def method_config(method: str | dict[str, Any] | MethodConfig) -> MethodConfig:
    """A method's settings from its name, from a dictionary with `name`, or from settings.

    Raises:
        ValueError: an unknown method.
    """
    if isinstance(method, MethodConfig):
        return method
    values = {"name": method} if isinstance(method, str) else method
    name = values.get("name")
    if name == "combined":
        return CombinedConfig.of(values)
    if name not in METHODS:
        raise ValueError(f"unknown method '{name}'{nearest(name, [*METHODS, 'combined'])}")
    return METHODS[name].Config.of(values)


def term_config(method: str | dict[str, Any] | MethodConfig) -> MethodConfig:
    """The settings of a method that is a term beside others.

    Raises:
        ValueError: an unknown method, or one that is more than a term.
    """
    config = method_config(method)
    if config.name not in METHODS or not issubclass(METHODS[config.name], Term):
        terms = ", ".join(name for name, known in METHODS.items() if issubclass(known, Term))
        raise ValueError(f"method {config.name} is no term that goes beside others; combine {terms}")
    return config


def check_method(config: MethodConfig, task_kind: str, *, has_teacher: bool, head: str = "scalar") -> None:
    """Raise a ValueError when a method, or a term of it, is not defined for the task or lacks its teacher."""
    for settings in config.terms if isinstance(config, CombinedConfig) else (config,):
        METHODS[settings.name].check(task_kind, has_teacher, head)
        settings.check_task(task_kind, head)


def sampling_of(config: MethodConfig, task_kind: str) -> str:
    """How the batches of a method are drawn (see `BatchSource`): in the largest groups that one of its terms asks for."""
    settings = config.terms if isinstance(config, CombinedConfig) else (config,)
    drawn = [item.sampling for item in settings if task_kind == CLASSIFICATION and getattr(item, "weight", 1) > 0]
    return max(drawn, key=SAMPLINGS.__getitem__, default="uniform")


def check_views(config: MethodConfig, views: int | None) -> None:
    """Raise a ValueError when views are to repeat (`views`) in a method that does not read them from `view_of`."""
    if views and config.name != "combined" and not issubclass(METHODS[config.name], (Term, Supervised, SimReg)):
        raise ValueError(f"method {config.name} draws fresh views in every step; leave `views` null.")


def check_two_views(config: MethodConfig, augmentation: AugmentationConfig, *, has_real: bool) -> None:
    """Raise a ValueError when a method without labels compares two views that would be the same."""
    compared = METHODS[config.name].compared_views if config.name in METHODS else None
    if augmentation == AugmentationConfig() and (compared == "all" or (compared == "real" and has_real)):
        raise ValueError(
            f"{config.name} learns from two views of an image, and without augmentation they are the same; set "
            "augmentation, e.g. {resized_crop: [0.2, 1], brightness: 0.4}."
        )


def build_distiller(
    student: nn.Module, teacher: Teacher | None, task: Task, config: MethodConfig, *, seed: int = 0, **others
) -> Distiller:
    """The distiller of a method. Its heads and banks are a function of `seed`. others: see `Distiller`.

    Raises:
        ValueError: a task that the method is not defined for, no teacher where it needs one, features it cannot use.
    """
    check_method(config, task.kind, has_teacher=teacher is not None, head=getattr(task, "head", "scalar"))
    with torch.random.fork_rng():
        torch.manual_seed(mix(seed, "distiller"))
        if isinstance(config, CombinedConfig) or issubclass(METHODS[config.name], Term):
            settings = config.terms if isinstance(config, CombinedConfig) else (config,)
            names = [item.name for item in settings]
            labels = [name if names.count(name) == 1 else f"{name}_{index}" for index, name in enumerate(names)]
            terms = {label: (METHODS[item.name], item) for label, item in zip(labels, settings, strict=True)}
            return Distillation(student, teacher, task, config, terms=terms, **others)
        return METHODS[config.name](student, teacher, task, config, **others)
