"""What every conditional generator can do.

    generator = SNGANGenerator.from_pretrained("runs/digits/generator")
    images = generator.sample(torch.tensor([3, 1, 4]))                        # [3, C, H, W] in [-1, 1]
    images, features = generator.sample_with_features(torch.tensor([3, 1, 4]))

A generator that can be saved is a `GeneratorModel`, see `model`; this module costs no more than torch to import.
"""

import contextlib
import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from generators.vicinity import normalize_labels


class ConditionalGenerator(nn.Module):
    """Base of the generators: labels and latents in, images in [-1, 1] out.

    A subclass has `config`, a mapping whose entries are attributes too, with `resolution`, `image_channels`, `latent_dim`
    and either `num_classes` or `label_range` (min, max of the scalar label in the user's units; the other one is None). It
    defines `forward(z, y)` (z [N, latent_dim]; y class ids int64 [N] or scalars in [0, 1] float [N] -> [N, C, H, W] in
    [-1, 1]), and may define `label_code(y)` and `feature_names` (modules whose outputs are features).
    """

    config: Any
    feature_names: tuple[str, ...] = ()
    class_names: tuple[str, ...] | None = None
    """What the class ids mean, where that is known."""

    def label_code(self, y: Tensor) -> Tensor:
        """The code [N, D] by which label y conditions the network: that of its `encoder`, else one-hot, else y itself."""
        if (encoder := getattr(self, "encoder", None)) is not None:
            return encoder(y)
        if self.is_class_conditional:
            return nn.functional.one_hot(y, self.config.num_classes).float()
        return y[:, None]

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        tensor = next(itertools.chain(self.parameters(), self.buffers()), None)
        return torch.device("cpu") if tensor is None else tensor.device

    @property
    def is_class_conditional(self) -> bool:
        return self.config.num_classes is not None

    def condition(self, labels: Tensor) -> Tensor:
        """Labels as the user writes them (class ids, or scalars in their units) to what `forward` takes.

        A generator without a label network (`label_input` is `code`) takes codes [N, label_dim] instead.
        Raises ValueError: a label outside the range that the generator knows, labels of another shape or kind.
        """
        labels = torch.as_tensor(labels)  # checked where it is, so that a label on the CPU costs no wait for the GPU
        if self.config.get("label_input") == "code":
            if labels.ndim != 2 or labels.shape[1] != self.config.label_dim:
                raise ValueError(
                    f"labels have shape {tuple(labels.shape)}; this generator was loaded without its label network and "
                    f"takes codes [N, {self.config.label_dim}]: give load_generator the label_embedding as well."
                )
            return labels.to(self.device, torch.float32)
        if labels.ndim != 1:
            raise ValueError(f"labels have shape {tuple(labels.shape)}; expected one number an image, [N].")
        if self.is_class_conditional:
            if labels.dtype.is_floating_point:
                raise ValueError(f"labels are {labels.dtype}; this generator takes class ids (int64).")
            low, high = 0, self.config.num_classes - 1
        else:
            low, high = self.config.label_range
        if len(labels) and not (low <= labels.min() and labels.max() <= high):
            raise ValueError(
                f"labels span [{labels.min().item():g}, {labels.max().item():g}]; this generator knows [{low:g}, {high:g}]."
            )
        if self.is_class_conditional:
            return labels.to(self.device, torch.int64)
        return normalize_labels(labels=labels.double(), label_min=low, label_max=high).float().to(self.device)

    def draw_latents(self, num_samples: int, *, generator: torch.Generator | None = None) -> Tensor:
        """Standard normal latents [num_samples, latent_dim], drawn on the CPU so that every device gets the same ones."""
        return torch.randn(num_samples, self.config.latent_dim, generator=generator).to(self.device)

    @torch.no_grad()
    def sample(self, labels: Tensor, latents: Tensor | None = None) -> Tensor:
        """Images [N, C, H, W] in [-1, 1] for labels [N] in the user's units; latents [N, latent_dim] or fresh ones.
        Raises ValueError: a label out of range, latents of another size."""
        y = self.condition(labels)
        if latents is None:
            latents = self.draw_latents(len(y))
        if latents.shape != (len(y), self.config.latent_dim):
            raise ValueError(f"latents are {tuple(latents.shape)}; expected {(len(y), self.config.latent_dim)}.")
        return self(latents.to(self.device), y)

    def sample_with_features(self, labels: Tensor, latents: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """As `sample`, and the outputs of the modules in `feature_names` by name, each [N, C_l, H_l, W_l]."""
        features: dict[str, Tensor] = {}
        with contextlib.ExitStack() as hooks:
            for name in self.feature_names:
                keep = lambda _, __, output, name=name: features.update({name: output})  # noqa: E731
                hooks.callback(self.get_submodule(name).register_forward_hook(keep).remove)
            return self.sample(labels, latents), features


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while; afterwards every part is in the mode in which it was, whatever happened."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training
