"""A learned temperature that makes distillation harder step by step.

gradient_reversal: Ganin, Lempitsky, "Unsupervised Domain Adaptation by Backpropagation", ICML 2015, arXiv 1409.7495
ctkd_temperature, curriculum_strength, ctkd_loss: Li, Li, Yang, Zhao, Song, Luo, Li, Yang, "Curriculum Temperature for
Knowledge Distillation", AAAI 2023, arXiv 2211.16231
"""

import math
from typing import Any

import torch
from torch import Tensor

from .logits import kd_loss
from .precision import full_precision


class _GradientReversal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, strength: float) -> Tensor:
        ctx.strength = strength
        return input.view_as(input)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return -ctx.strength * gradient, None


def gradient_reversal(
    *,
    input: Tensor,  # any shape
    strength: float,  # >= 0
) -> Tensor:
    """The input forward, its gradient times -strength backward: what lies behind it climbs the loss that others descend.

    Strength 0 gives a gradient of zeros, not none. Raises ValueError for a negative strength.
    """
    if strength < 0:
        raise ValueError(f"a reversal strength of {strength} would not reverse; give the positive size")
    return _GradientReversal.apply(input, strength)


def ctkd_temperature(
    *,
    parameter: Tensor,  # [1], or [N, 1] for one temperature a sample
    strength: float,  # of the reversal, from curriculum_strength
    temperature_min: float = 1.0,
    temperature_range: float = 20.0,
) -> Tensor:  # the parameter's shape
    """T = min + range * sigmoid(parameter), and the parameter's gradient is reversed: it learns to raise the loss.

    A parameter of 1 gives 15.6 with the paper's range (1, 21). Raises ValueError for a negative strength.
    """
    reversed_parameter = gradient_reversal(input=full_precision(parameter), strength=strength)
    return temperature_min + temperature_range * torch.sigmoid(reversed_parameter)


def curriculum_strength(
    *,
    epoch: int,  # from 1
    num_epochs: int = 10,  # until the full strength; 0: from the start
    schedule: str = "cosine",  # "cosine" or "linear"
) -> float:  # in [0, 1]
    """How hard the temperature works against the student in this epoch: easy first, hard from num_epochs on.

    cosine  (1 - cos(pi p)) / 2,   linear  p,   with p = min(epoch, num_epochs) / num_epochs
    Raises ValueError for an unknown schedule or a negative epoch.
    """
    if schedule not in ("cosine", "linear"):
        raise ValueError(f"unknown curriculum schedule {schedule!r}: use 'cosine' or 'linear'")
    if epoch < 0 or num_epochs < 0:
        raise ValueError(f"epoch {epoch} of a curriculum of {num_epochs} epochs: neither may be negative")
    progress = min(epoch, num_epochs) / num_epochs if num_epochs > 0 else 1.0
    return progress if schedule == "linear" else (1 - math.cos(math.pi * progress)) / 2


def ctkd_loss(
    *,
    student_logits: Tensor,  # [N, K]
    teacher_logits: Tensor,  # [N, K], detached
    temperature_parameter: Tensor,  # [1], or [N, 1] for one temperature a sample
    strength: float,  # of the reversal, from curriculum_strength
    temperature_min: float = 1.0,
    temperature_range: float = 20.0,
) -> Tensor:
    """kd_loss at a learned temperature: the student descends it, the temperature parameter climbs it.

    L = 1/N sum_n T_n^2 KL( softmax(t_n / T_n) || softmax(s_n / T_n) ),   T = ctkd_temperature(parameter)

    The parameter's gradient comes through both softmaxes and through T^2; the student's is the plain one. Returns a scalar.
    Raises ValueError when the shapes differ or the strength is negative.
    """
    temperature = ctkd_temperature(
        parameter=temperature_parameter,
        strength=strength,
        temperature_min=temperature_min,
        temperature_range=temperature_range,
    )
    return kd_loss(student_logits=student_logits, teacher_logits=teacher_logits, temperature=temperature)
