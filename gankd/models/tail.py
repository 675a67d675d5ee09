"""A network from one of its stages on, as a module of its own: the branches of methods that share the early stages.

tail = NetworkTail(model, "layer2", image_shape=(3, 32, 32))
logits, (trunk,) = Taps(model, ["layer2"])(images)
logits_again = tail(trunk, images)
"""

import contextlib
import copy

import torch
from torch import Tensor, nn

from gankd.models.outputs import outputs_of
from gankd.models.state import in_evaluation_mode
from gankd.models.taps import INPUT, Taps, default_taps, feature_shapes


class NetworkTail(nn.Module):
    """A copy of what `model` computes after the module at `path`; [N, ...] at `path` and the images -> outputs [N, K].

    The copy runs the network's own forward with the modules before `path` replaced by ones that do nothing, so that
    functions between the modules (pooling, flattening) stay where they are; `network` has the modules that are left,
    under their paths, and its state dict is a part of the model's.

    path: a module whose output everything behind it depends on alone.
    image_shape: (C, H, W).
    Raises ValueError: a path that the network does not have; a network that cannot be cut there.
    """

    def __init__(self, model: nn.Module, path: str, image_shape: tuple[int, int, int]):
        super().__init__()
        self.path = path
        with torch.no_grad():
            whole = copy.deepcopy(model).eval()
            weight = next(whole.parameters())
            image = torch.linspace(-1, 1, image_shape[0] * image_shape[1] * image_shape[2]).view(1, *image_shape)
            image = image.to(weight)
            outputs, (feature,), before = _watch(whole, path, image)
            replaced = {id(model.get_submodule(name)): _Skipped() for name in before}
            replaced[id(model.get_submodule(path))] = _Source()
            self.network = copy.deepcopy(model, replaced)
            try:
                with in_evaluation_mode(self.network):
                    same = torch.allclose(self(feature, image), outputs, rtol=1e-3, atol=1e-5)
            except (RuntimeError, TypeError, ValueError, IndexError):
                same = False
        if not same:
            raise ValueError(
                f"{type(model).__name__} cannot be cut behind '{path}': what follows does not depend on that module's "
                "output alone. Train whole networks (share: nothing), or name another stage."
            )

    @torch.compiler.disable  # what is handed over goes past the compiled graph
    def forward(self, feature: Tensor, images: Tensor) -> Tensor:
        source = self.network.get_submodule(self.path)
        source.value = feature
        try:
            return outputs_of(self.network(images))
        finally:
            source.value = None


def reinitialize(module: nn.Module) -> None:
    """Give a freshly initialised module another initialisation of the same kind, drawn from torch's default generator.

    Whatever scheme a network was initialised by, its entries were drawn independently within each tensor: their random
    permutation is as good as a new draw. Frozen parameters stay; running statistics begin anew.
    """
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                order = torch.randperm(parameter.numel(), device="cpu").to(parameter.device)
                parameter.copy_(parameter.flatten()[order].view_as(parameter))
    for part in module.modules():
        if hasattr(part, "reset_running_stats"):
            part.reset_running_stats()


class _Skipped(nn.Module):
    """Passes its first input on."""

    def forward(self, x, *others, **named):
        return x


class _Source(nn.Module):
    """Returns what it was given instead of what comes in."""

    def __init__(self):
        super().__init__()
        self.value: Tensor | None = None

    def forward(self, *inputs, **named) -> Tensor:
        return self.value.clone()  # the network may go on in place, and other branches read the same map


def _watch(model: nn.Module, path: str, image: Tensor) -> tuple[Tensor, list[Tensor], list[str]]:
    """(outputs, [feature at path], the largest modules that have run for the last time when `path` is done)."""
    done: list[str] = []
    taps = Taps(model, [path])
    with contextlib.ExitStack() as hooks:
        for name, module in model.named_modules():
            hooks.callback(module.register_forward_hook(lambda *_, name=name: done.append(name)).remove)
        outputs, features = taps(image)
    last = {name: index for index, name in enumerate(done)}
    before = [name for name in last if last[name] < last[path] and not name.startswith(f"{path}.")]
    inside = tuple(f"{name}." for name in before)
    return outputs, features, [name for name in before if not name.startswith(inside)]


def extra_stage(model: nn.Module, image_shape: tuple[int, int, int]) -> nn.Module:
    """One more last stage, freshly initialised: from the last stage's output to a map of the same shape.

    A network of this package knows its own (its method `extra_stage`). Of any other convolutional network: the last block of
    the last stage that keeps its input's shape, as often as the stage has blocks; where there is none, a 3x3 convolution,
    batch norm and ReLU.

    image_shape: (C, H, W) of the images, to watch a foreign network at work.
    Raises ValueError: a network that does not take such images, or whose last stage gives no map.
    """
    if hasattr(model, "extra_stage"):
        return model.extra_stage()
    paths = default_taps(model, image_shape=image_shape)
    (shape,) = feature_shapes(model, image_shape, paths[-2:-1]) or [()]
    if len(shape) != 3:
        raise ValueError(f"{type(model).__name__} has no stage whose output is a map; use another method or network.")
    stage = model.get_submodule(paths[-2].removesuffix(INPUT))
    blocks = [name for name, block in stage.named_children() if any(p.ndim == 4 for p in block.parameters())]
    ends = [f"{paths[-2]}.{name}{end}" for name in blocks for end in (INPUT, "")]
    try:
        shapes = feature_shapes(model, image_shape, ends)
    except ValueError:  # a block that takes or gives no single map
        shapes = [()] * len(ends)
    same = [name for name, *pair in zip(blocks, shapes[::2], shapes[1::2], strict=True) if pair == [shape, shape]]
    if same:
        copies = [copy.deepcopy(stage.get_submodule(same[-1])) for _ in blocks]
    else:
        width = shape[0]
        layers = (nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        copies = [nn.Sequential(*layers)]
    extra = nn.Sequential(*copies).requires_grad_(True).train()
    for module in extra.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    return extra
