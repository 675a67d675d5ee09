"""The distillation methods, by the name that a configuration calls them."""

from __future__ import annotations

from typing import Annotated, Any, Union

import torch
from pydantic import Field
from torch import nn

from gankd.data.augment import AugmentationConfig
from gankd.data.loader import SAMPLINGS
from gankd.methods.alone.bake import BAKE
from gankd.methods.alone.byot import BYOT
from gankd.methods.alone.cs_kd import CSKD
from gankd.methods.alone.ddgsd import DDGSD
from gankd.methods.alone.dks import DKS
from gankd.methods.alone.frskd import FRSKD
from gankd.methods.alone.mixing import CutMix, Mixup
from gankd.methods.alone.mixskd import MixSKD
from gankd.methods.alone.ps_kd import PSKD
from gankd.methods.alone.sad import SAD
from gankd.methods.alone.smoothing import Focal, LabelSmoothing, MaxEntropy, VirtualSoftmax
from gankd.methods.alone.supervised import Supervised
from gankd.methods.alone.tf_kd import TFKDReg, TFKDSelf
from gankd.methods.alone.zipf_ls import ZipfLS
from gankd.methods.base import Distiller, Method, MethodConfig
from gankd.methods.combined import CombinedConfig
from gankd.methods.label_free.simreg import SimReg
from gankd.methods.label_free.squeeze_and_span import SqueezeAndSpan
from gankd.methods.label_free.two_views import SimSiam, VICReg
from gankd.methods.peers.afd import AFD
from gankd.methods.peers.dml import DML
from gankd.methods.peers.ffl import FFL
from gankd.methods.peers.kdcl import KDCL
from gankd.methods.peers.lmcl import LMCL
from gankd.methods.peers.mcl import MCL
from gankd.methods.peers.mfef import MFEF
from gankd.methods.peers.okddip import OKDDip
from gankd.methods.peers.one import ONE
from gankd.methods.teacher.ab import AB
from gankd.methods.teacher.at import AT
from gankd.methods.teacher.attentive_hint import AttentiveHint
from gankd.methods.teacher.cc import CC
from gankd.methods.teacher.crd import CRD
from gankd.methods.teacher.dist import DIST
from gankd.methods.teacher.dkd import DKD
from gankd.methods.teacher.fitnet import FitNet
from gankd.methods.teacher.fsp import FSP
from gankd.methods.teacher.ft import FT
from gankd.methods.teacher.hsakd import HSAKD, HSAKDTeacher
from gankd.methods.teacher.kd import CTKD, KD
from gankd.methods.teacher.nst import NST
from gankd.methods.teacher.ofd import OFD
from gankd.methods.teacher.pkt import PKT
from gankd.methods.teacher.reviewkd import ReviewKD
from gankd.methods.teacher.rkd import RKD
from gankd.methods.teacher.scalar_regression import AttentiveImitation, OutlierRejection, TeacherBounded
from gankd.methods.teacher.sp import SP
from gankd.methods.teacher.vid import VID
from gankd.methods.terms import Distillation, Term
from gankd.models.teacher import Teacher
from gankd.tasks import CLASSIFICATION, Task
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
