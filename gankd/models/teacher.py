"""A frozen network that is asked, never trained."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gankd.class_names import class_columns
from gankd.models.inputs import normalization_of, task_known_to
from gankd.models.outputs import outputs_of
from gankd.models.taps import INPUT, Taps
from gankd.tasks import Classification, Regression, Task
from generators.images import to_unit_range

HALF = (torch.float16, torch.bfloat16)


class Teacher:
    """A frozen module with its own normalisation: images in [0, 1] in, outputs out; eval mode, no gradient.

    Not an `nn.Module`, so that whoever holds it neither trains, saves nor wraps it for data-parallel training.

    module: the network, of any precision; moved to `device`, put in eval mode and frozen.
    normalize: what its inputs need; None: what the network says itself (see `normalization_of`).
    feature_path: a path as `Taps` takes them; what is there, averaged over space, is the feature. None: the input of
        the last linear layer.
    task: what its outputs mean; None: what the network says itself (see `task_known_to`), else what they mean to the
        first that it answers (see `for_task`).
    image_size: height and width to which images are resized for it; None: they stay as they are.
    Raises ValueError: no normalisation, given or known.
    """

    def __init__(
        self,
        module: nn.Module,
        normalize: nn.Module | None = None,
        *,
        device: torch.device | str = "cpu",
        feature_path: str | None = None,
        task: Task | None = None,
        image_size: int | None = None,
    ):
        normalize = normalize or normalization_of(module)
        if normalize is None:
            raise ValueError(
                f"{type(module).__name__} does not say how its inputs are normalised: give Teacher(network, "
                "Normalize(mean, std)) with the means and standard deviations per channel that it was trained with."
            )
        self.module = module.to(device).eval()
        for parameter in self.module.parameters():  # a scripted module has no requires_grad_
            parameter.requires_grad_(False)
        self.normalize = normalize.to(device)
        self.device = torch.device(device)
        self.dtype = next((each.dtype for each in module.parameters() if each.is_floating_point()), torch.float32)
        self.feature_path, self.image_size = feature_path, image_size
        self.task = task or task_known_to(module)
        self.answers_in = self.task
        self.translate: Callable[[Tensor], Tensor] = lambda outputs: outputs

    def for_task(self, task: Task, device: torch.device | str | None = None) -> "Teacher":
        """The same teacher, on `device`, answering as networks of `task` do: with its head and its standardisation.

        One whose own task is not known is taken to answer in the first one that it is asked for, also later on. Classes
        are matched by their names; of those that only the teacher knows nothing is asked.
        Raises ValueError: a class that the teacher does not know, scalars in another unit.
        """
        asked = copy.copy(self)
        asked.answers_in = own = self.answers_in or task
        asked.device = torch.device(device or self.device)
        asked.module, asked.normalize = self.module.to(asked.device), self.normalize.to(asked.device)
        asked.translate = lambda outputs: outputs
        if own.kind != task.kind:
            raise ValueError(f"the teacher was trained for {own.kind}, the task is {task.kind}: give one of this task.")
        if isinstance(task, Classification) and isinstance(own, Classification):
            columns = class_columns(task.class_names, own.class_names, "the teacher")
            if columns is not None:
                asked.translate = lambda outputs: outputs[:, columns]
        if isinstance(task, Regression) and isinstance(own, Regression):
            if task.unit and own.unit and task.unit != own.unit:
                raise ValueError(
                    f"the teacher answers in {own.unit}, the labels are in {task.unit}: give both in one unit, or one name."
                )
            asked.translate = lambda outputs: task.translate(outputs, own)
        return asked

    def answer(self, images: Tensor) -> Tensor:
        """Outputs [N, K] for images [N, C, H, W] in [0, 1], with the gradient to the images."""
        return self.translate(_at_least_float32(outputs_of(self.module(self.inputs(images)))))

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Outputs [N, K] for images [N, C, H, W] in [0, 1]."""
        return self.answer(images)

    @torch.no_grad()
    def outputs_and_taps(self, images: Tensor, paths: list[str]) -> tuple[Tensor, list[Tensor]]:
        """Outputs [N, K] and what passes through the modules at `paths` (see `models.taps`), for images in [0, 1]."""
        outputs, features = Taps(self.module, paths)(self.inputs(images))
        return self.translate(_at_least_float32(outputs)), [_at_least_float32(feature) for feature in features]

    def outputs_and_features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs [N, K] and features [N, D]: what is at `feature_path`, averaged over space or tokens.
        Raises ValueError: a path that the module does not have or that takes no part in its forward; no linear layer."""
        path = self.feature_path or self._last_linear()
        try:
            outputs, (feature,) = self.outputs_and_taps(images, [path])
        except ValueError as error:
            raise ValueError(f"the teacher's feature_path (teacher.features in a configuration): {error}") from error
        if feature.ndim > 2:  # a map [N, D, H, W], or tokens [N, L, D]
            feature = feature.mean(dim=1) if feature.ndim == 3 else feature.flatten(2).mean(2)
        return outputs, feature

    def inputs(self, images: Tensor) -> Tensor:
        """What its module takes for images [N, C, H, W] in [0, 1]: of its size, normalised, in its precision."""
        if self.image_size not in (None, images.shape[-1]):
            images = F.interpolate(images, size=self.image_size, mode="bilinear", align_corners=False, antialias=True)
        return self.normalize(images).to(self.dtype)

    def _last_linear(self) -> str:
        linears = [path for path, module in self.module.named_modules() if isinstance(module, nn.Linear)]
        if isinstance(self.module, torch.jit.ScriptModule):
            return INPUT  # Taps says what is wrong
        if not linears:
            raise ValueError(f"{type(self.module).__name__} has no linear layer; name the teacher's feature_path.")
        return f"{linears[-1]}{INPUT}"

    def map(self, images, function: Callable[[Tensor], Tensor], batch_size: int = 512) -> Tensor:
        """`function` of uint8 images [N, C, H, W] in chunks (images in [0, 1] on the device), joined on the CPU."""
        chunks = torch.arange(len(images)).split(batch_size)
        return torch.cat([function(to_unit_range(images[chunk].to(self.device))).cpu() for chunk in chunks])


def _at_least_float32(values: Tensor) -> Tensor:
    """What a teacher in half precision says, in single; what autocast computes stays as it is outside of it."""
    return values.float() if values.dtype in HALF and not torch.is_autocast_enabled(values.device.type) else values
