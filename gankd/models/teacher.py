"""A frozen network that is asked, never trained."""

from __future__ import annotations

import contextlib
import copy
import difflib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from gankd.models.taps import Taps
from gankd.tasks import Regression, Task
from generators.images import channel_statistics, to_unit_range


class Normalize(nn.Module):
    """Images in [0, 1] to zero mean and unit variance per channel, [N, C, H, W]."""

    def __init__(self, mean: Tensor, std: Tensor):
        super().__init__()
        self.register_buffer("mean", mean.view(1, -1, 1, 1).float(), persistent=False)
        self.register_buffer("std", std.view(1, -1, 1, 1).float(), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return (images - self.mean) / self.std

    @classmethod
    def of(cls, images, sample: int = 10_000) -> Normalize:
        """The statistics of uint8 images [N, C, H, W], from an even sample of at most `sample` of them."""
        return cls(*channel_statistics(images, sample))


class Teacher:
    """A frozen module with its own normalisation: images in [0, 1] in, outputs out; eval mode, no gradient.

    Not an `nn.Module`, so that whoever holds it neither trains, saves nor wraps it for data-parallel training.

    Args:
        module: the network; moved to `device`, put in eval mode and frozen.
        normalize: what its inputs need.
        feature_path: module whose output (averaged over space) is the feature; None: the input of the last linear layer.
        task: what its outputs mean, where that is not what they mean to the student (see `speak`).
    """

    def __init__(
        self,
        module: nn.Module,
        normalize: nn.Module,
        *,
        device: torch.device | str = "cpu",
        feature_path: str | None = None,
        task: Task | None = None,
    ):
        self.module = module.to(device).eval().requires_grad_(False)
        self.normalize = normalize.to(device)
        self.device = torch.device(device)
        self.feature_path, self.task, self.presumed_task = feature_path, task, task
        self.translate: Callable[[Tensor], Tensor] = lambda outputs: outputs

    def speak(self, task: Task, device: torch.device | str | None = None) -> Teacher:
        """The same teacher, on `device`, answering as the student does: with the head and the standardisation of `task`."""
        speaker = copy.copy(self)
        theirs = speaker.presumed_task = self.presumed_task or task  # unless told otherwise, that of its first student
        speaker.device = torch.device(device or self.device)
        speaker.module, speaker.normalize = self.module.to(speaker.device), self.normalize.to(speaker.device)
        speaker.translate = lambda outputs: outputs
        if isinstance(task, Regression) and isinstance(theirs, Regression):
            speaker.translate = lambda outputs: task.translate(outputs, theirs)
        return speaker

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Outputs [N, K] for images [N, C, H, W] in [0, 1]."""
        return self.translate(self.module(self.normalize(images)))

    @torch.no_grad()
    def outputs_and_taps(self, images: Tensor, paths: list[str]) -> tuple[Tensor, list[Tensor]]:
        """Outputs [N, K] and what passes through the modules at `paths` (see `models.taps`), for images in [0, 1]."""
        outputs, features = Taps(self.module, paths)(self.normalize(images))
        return self.translate(outputs), features

    @torch.no_grad()
    def outputs_and_features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs [N, K] and features [N, D] (the tapped output averaged over space, or the last linear layer's input).

        Raises:
            ValueError: a feature_path that the module does not have; no linear layer that takes part in the forward pass.
        """
        caught: list[Tensor] = []
        if self.feature_path:
            hook = self._tap().register_forward_hook(lambda _, __, output: caught.append(output))
        else:
            hook = self._last_linear().register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0]))
        try:
            outputs = self(images)
        finally:
            hook.remove()
        if not caught:
            raise ValueError(
                f"the module that {type(self.module).__name__}'s features come from takes no part in its forward pass; "
                "name another feature_path (teacher.features in a configuration)."
            )
        features = caught[-1]
        if features.ndim > 2:  # a map [N, D, H, W], or tokens [N, L, D]
            features = features.mean(dim=1) if features.ndim == 3 else features.flatten(2).mean(2)
        return outputs, features

    def _tap(self) -> nn.Module:
        modules = dict(self.module.named_modules())
        if self.feature_path not in modules:
            close = difflib.get_close_matches(self.feature_path, modules, n=5, cutoff=0.3) or list(modules)[1:9]
            raise ValueError(
                f"{type(self.module).__name__} has no module '{self.feature_path}'; nearest: {', '.join(close)}."
            )
        return modules[self.feature_path]

    def _last_linear(self) -> nn.Linear:
        linears = [module for module in self.module.modules() if isinstance(module, nn.Linear)]
        if not linears:
            raise ValueError(f"{type(self.module).__name__} has no linear layer; name the teacher's feature_path.")
        return linears[-1]

    def map(self, images, function: Callable[[Tensor], Tensor], batch_size: int = 512) -> Tensor:
        """`function` of uint8 images [N, C, H, W] in chunks (images in [0, 1] on the device), joined on the CPU."""
        chunks = torch.arange(len(images)).split(batch_size)
        return torch.cat([function(to_unit_range(images[chunk].to(self.device))).cpu() for chunk in chunks])


@contextlib.contextmanager
def borrowed(module: nn.Module) -> Iterator[None]:
    """Give a network back as it was lent: which of its parameters are trainable, and its mode."""
    trainable = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
    training = [(part, part.training) for part in module.modules()]  # some may be frozen in evaluation mode
    try:
        yield
    finally:
        for parameter, flag in trainable:
            parameter.requires_grad_(flag)
        for part, flag in training:
            part.training = flag
