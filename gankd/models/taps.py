"""Features of any network, read by module path; the network's own forward stays as it is.

    taps = Taps(model, ["layer2", "layer3", "fc:input"])
    logits, (middle, last, pooled) = taps(images)

A path names a module's output, and with `:input` behind it what goes into the module first.
"""

import contextlib
import difflib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from gankd.models.outputs import outputs_of
from gankd.models.state import in_evaluation_mode

INPUT = ":input"
Size = tuple[int, int]  # height, width of a map [N, C, H, W]


class Taps:
    """A network that also returns what passes through some of its modules.

    The hooks sit on the modules, and only during a call: calls do not know of each other, wrappers around the network
    do not matter, and copies, state dicts and pickles of the network carry nothing. Not an `nn.Module`, so that whoever
    holds it does not own the network twice. Of a module that runs several times in one forward, the last run counts.

    model: the network.
    paths: modules as in `model.named_modules()`, with `:input` for what goes in instead of what comes out.
    Raises ValueError: a path that the network does not have.
    """

    def __init__(self, model: nn.Module, paths: Sequence[str]):
        self.model, self.paths = model, list(paths)
        if self.paths:
            _check_readable(model)
        for path in self.paths:
            _module(model, path)

    @torch.compiler.disable  # compiled code would not notice the hooks
    def __call__(self, *inputs) -> tuple[Tensor, list[Tensor]]:
        """The network's outputs for `inputs`, and the features in the order of the paths, in the autograd graph.

        Inside of a compiled step the network that is read runs eagerly.
        Raises ValueError: a path whose module takes no part in the forward, or does not pass one tensor.
        """
        caught: dict[str, Tensor] = {}

        def keep(path: str, value) -> None:
            if not isinstance(value, Tensor):
                raise ValueError(f"'{path}' of {type(self.model).__name__} is a {type(value).__name__}, not a tensor.")
            caught[path] = value.clone()  # the network may go on in place: ReLU(inplace=True), out += identity

        with contextlib.ExitStack() as hooks:
            for path in self.paths:
                hooks.callback(_attach(_module(self.model, path), path, keep).remove)
            outputs = outputs_of(self.model(*inputs))
        for path in self.paths:
            if path not in caught:
                raise ValueError(
                    f"'{path}' takes no part in the forward pass of {type(self.model).__name__}; name another module, "
                    "or read the network itself if this is a compiled one."
                )
        return outputs, [caught[path] for path in self.paths]


def _attach(module: nn.Module, path: str, keep):
    if path.endswith(INPUT):
        return module.register_forward_pre_hook(
            lambda _, inputs, named: keep(path, next(iter([*inputs, *named.values()]), None)), with_kwargs=True
        )
    return module.register_forward_hook(lambda _, __, output: keep(path, output))


def _check_readable(model: nn.Module) -> None:
    if isinstance(model, torch.jit.ScriptModule):
        raise ValueError(
            "a scripted network does not let its features be read: give the nn.Module that it was scripted from, or use a "
            "method that reads outputs alone."
        )


def _module(model: nn.Module, path: str) -> nn.Module:
    name = path.removesuffix(INPUT)
    try:
        return model.get_submodule(name)
    except AttributeError:
        names = [known for known, _ in model.named_modules() if known]
        close = difflib.get_close_matches(name, names, n=5, cutoff=0.3) or names[:8]
        raise ValueError(f"{type(model).__name__} has no module '{name}'; nearest: {', '.join(close)}.") from None


def forward_with_features(model: nn.Module, x: Tensor, preact: bool = False) -> tuple[Tensor, list[Tensor]]:
    """(outputs, [f0, ..., pooled]): `model(x)` and its features at `default_taps`; for a step, keep a `Taps` instead."""
    return Taps(model, default_taps(model, preact=preact, image_shape=tuple(x.shape[1:])))(x)


def default_taps(
    model: nn.Module, *, preact: bool = False, image_shape: tuple[int, int, int] | None = None
) -> list[str]:
    """Paths of the features that distillation methods compare: stem, every stage, and the pooled vector as the last.

    A network of this package knows its own (its method `feature_taps(preact)`): those of the published comparisons on
    CIFAR-100 (Tian et al., ICLR 2020, arXiv 1910.10699). Of any other network: the last module at each spatial size
    that is larger than 1x1, and the last linear layer's input.

    preact: stage outputs before their ReLU (Heo et al., ICCV 2019, arXiv 1904.01866), read where the forward computes
        them anyway, so that no batch norm sees its input twice. Stem and pooled vector stay.
    image_shape: (C, H, W) of the images, to watch a foreign network at work; 224 pixels by default.
    Raises ValueError: `preact` of a foreign network; one that does not take such images or has no linear layer.
    """
    _check_readable(model)
    if hasattr(model, "feature_taps"):
        return model.feature_taps(preact)
    if preact:
        raise ValueError(
            f"where the pre-activations of {type(model).__name__} are is not known; name the paths of their modules."
        )
    if image_shape is None:
        convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
        image_shape = (convolutions[0].in_channels if convolutions else 3, 224, 224)
    return _watched_taps(model, image_shape)


def batch_norms_before_relu(model: nn.Module) -> list[nn.BatchNorm2d]:
    """The last batch norm of each stage, whose statistics give the margins of Heo et al., ICCV 2019, arXiv 1904.01866.
    Raises ValueError: a network of which they are not known, or that has none, like a shuffled network."""
    if not hasattr(model, "norms_before_relu"):
        raise ValueError(
            f"which batch norms end the stages of {type(model).__name__} is not defined; take margins from a resnet, "
            "ResNet50, wrn, vgg, MobileNetV2 or small_resnet."
        )
    return [model.get_submodule(path) for path in model.norms_before_relu()]


def feature_shapes(model: nn.Module, image_shape: tuple[int, int, int], paths: Sequence[str]) -> list[tuple[int, ...]]:
    """Shapes without the batch dimension, (C, H, W) of a map and (D,) of a vector, to build heads by.

    One forward of an empty image in evaluation mode. The network's modes, weights and statistics and the random number
    generators are afterwards as they were.
    Raises ValueError: as `Taps`; a network that does not take such images.
    """
    _, features = _dry_forward(Taps(model, paths), model, image_shape)
    return [tuple(feature.shape[1:]) for feature in features]


def _dry_forward(call, model: nn.Module, image_shape: tuple[int, int, int]):
    weight = next((weight for weight in model.parameters() if weight.is_floating_point()), torch.empty(0))
    try:
        rng = torch.random.fork_rng([weight.device] if weight.is_cuda else [])  # random numbers that do not count
        with rng, torch.no_grad(), in_evaluation_mode(model):
            return call(torch.zeros(1, *image_shape, dtype=weight.dtype, device=weight.device))
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"{type(model).__name__} does not take images of shape {list(image_shape)}; give their shape "
            f"(image_shape). It says: {str(error)[:200]}"
        ) from error


def _watched_taps(model: nn.Module, image_shape: tuple[int, int, int]) -> list[str]:
    names = {module: path for path, module in model.named_modules()}
    ran: dict[str, tuple[Size | None, Size | None]] = {}  # of the first input and the output, in order of completion

    def watch(module: nn.Module, inputs: tuple, output) -> None:
        ran.pop(names[module], None)
        ran[names[module]] = (_size(inputs[0] if inputs else None), _size(output))

    with contextlib.ExitStack() as hooks:
        for module in names:
            hooks.callback(module.register_forward_hook(watch).remove)
        _dry_forward(model, model, image_shape)

    linears = [path for path in ran if isinstance(model.get_submodule(path), nn.Linear)]
    if not linears:
        raise ValueError(
            f"no linear layer takes part in the forward pass of {type(model).__name__}, whose input would be its "
            "pooled feature; name the paths of its modules."
        )
    stages = set(_stages(model, "", ran))
    height, width = image_shape[1:]
    last_at: dict[Size, str] = {}
    for path, (_, size) in ran.items():
        if path in stages and size is not None and 1 < size[0] <= height and 1 < size[1] <= width:
            last_at[size] = path
            height, width = size  # what grows again, as in a decoder, is no stage
    return [*last_at.values(), f"{linears[-1]}{INPUT}"]


def _stages(parent: nn.Module, prefix: str, ran: dict[str, tuple[Size | None, Size | None]]) -> Iterator[str]:
    """Paths of the largest modules that take a map to a map and halve it at most once."""
    for name, child in parent.named_children():
        path = f"{prefix}{name}"
        before, after = ran.get(path, (None, None))
        # Below 3, not 2: without padding a halving takes a little more than half, e.g. 299 to 149.
        if before and after and (before[0] < 3 * after[0] or not list(child.children())):
            yield path
        else:
            yield from _stages(child, f"{path}.", ran)


def _size(value) -> Size | None:
    return tuple(value.shape[2:]) if isinstance(value, Tensor) and value.ndim == 4 else None
