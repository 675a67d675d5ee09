"""What the methods on feature maps share: which maps they read, and a convolution that fits one map to another."""

from collections.abc import Callable
from typing import ClassVar

from torch import Tensor, nn

from gankd.methods.setup import Outputs, Setup
from gankd.methods.terms import FeatureTermConfig, Term

Shape = tuple[int, ...]  # of a feature without the batch dimension: (C, H, W) or (D,)


def stages(taps: list[str]) -> list[str]:
    """Of [f0, f1, ..., fL, pooled] the stages f1 .. fL; of a network with a single map, that map."""
    return taps[1:-1] or taps[:-1]


class MapTerm(Term):
    """A term on pairs of maps. `shapes` are the student's and the teacher's, (C, H, W) each.
    Raises ValueError: a tap that gives no map, maps that are too small; as `Setup.taps`."""

    choose: ClassVar[Callable[[list[str]], list[str]]] = staticmethod(stages)
    """Which of [f0, f1, ..., fL, pooled] it reads where the user names none."""
    preact: ClassVar[bool] = False
    """Whether it reads stages before their ReLU."""
    smallest: ClassVar[int] = 1
    """Pixels that one pair of maps must have at least, once both are of the smaller one's size."""

    def __init__(self, config: FeatureTermConfig, setup: Setup):
        super().__init__(config, setup)
        self.student_taps, self.teacher_taps = setup.taps(config, self.choose, preact=self.preact)
        self.shapes = setup.shapes(self.student_taps, self.teacher_taps)
        for key, shapes in zip(("student_taps", "teacher_taps"), self.shapes, strict=True):
            for path, shape in zip(getattr(self, key), shapes, strict=True):
                if len(shape) != 3:
                    raise ValueError(
                        f"{config.name} compares maps [C, H, W], but '{path}' of {key} gives features of shape "
                        f"{list(shape)}; name a module before the pooling."
                    )
        if all(min(s[1], t[1]) * min(s[2], t[2]) < self.smallest for s, t in zip(*self.shapes, strict=True)):
            raise ValueError(
                f"{config.name} compares how a map differs from position to position, and its maps "
                f"'{self.student_taps[-1]}' and '{self.teacher_taps[-1]}' share fewer than {self.smallest} of them for "
                f"images of {' x '.join(map(str, setup.data.image_shape[1:]))}: take larger images, or name earlier layers "
                "in student_taps and teacher_taps."
            )


class RelationTerm(Term):
    """The sum over tapped pairs of a loss on relations between the samples of all processes.
    Raises ValueError: features of one number, whose cosines are signs and whose angles are all alike; as `Setup.taps`."""

    place: ClassVar[slice] = slice(-1, None)
    """Which of [f0, f1, ..., fL, pooled] it reads where the user names none: the pooled features."""

    def __init__(self, config: FeatureTermConfig, setup: Setup):
        super().__init__(config, setup)
        self.student_taps, self.teacher_taps = setup.taps(config, lambda taps: taps[self.place])
        self.shapes = setup.shapes(self.student_taps, self.teacher_taps)
        for path, shape in zip(
            (*self.student_taps, *self.teacher_taps), (*self.shapes[0], *self.shapes[1]), strict=True
        ):
            if shape in ((), (1,)):
                raise ValueError(
                    f"{config.name} needs features of at least 2 dimensions, but '{path}' gives one number; name another "
                    "module in student_taps and teacher_taps."
                )

    def forward(self, outputs: Outputs) -> Tensor:
        pairs = zip(*self.gathered_features(outputs), strict=True)
        return sum(self.compare(student, teacher) for student, teacher in pairs)

    def compare(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The loss of one pair of features, [N, ...] each."""
        raise NotImplementedError


class ConvRegressor(nn.Module):
    """One convolution from a student's map to the shape of a teacher's, batch norm, ReLU: [N, C_s, H_s, W_s] to
    [N, C_t, H_t, W_t].

    An axis twice the teacher's is halved with stride 2 and any other longer one is shrunk by a kernel without padding, as
    FitNets do (Romero et al., ICLR 2015, arXiv 1412.6550); a shorter one grows by a transposed convolution (half the
    teacher's: kernel 4, stride 2).
    Raises ValueError: a map that is taller than the teacher's and narrower, or the other way round.
    """

    def __init__(self, student_shape: Shape, teacher_shape: Shape, *, relu: bool = True):
        super().__init__()
        (in_channels, *sizes), (out_channels, *targets) = student_shape, teacher_shape
        pairs = list(zip(sizes, targets, strict=True))
        if all(size >= target for size, target in pairs):
            kind, axes = nn.Conv2d, [_shrink(*pair) for pair in pairs]
        elif all(size <= target for size, target in pairs):
            kind, axes = nn.ConvTranspose2d, [_grow(*pair) for pair in pairs]
        else:
            raise ValueError(
                f"no single convolution takes a student's map of {sizes[0]}x{sizes[1]} to a teacher's of "
                f"{targets[0]}x{targets[1]}; name student_taps and teacher_taps of like proportions."
            )
        kernel, stride, padding = zip(*axes, strict=True)
        self.convolution = kind(in_channels, out_channels, kernel, stride=stride, padding=padding, bias=False)
        self.norm = nn.BatchNorm2d(out_channels)
        self.activation = nn.ReLU() if relu else nn.Identity()

    def forward(self, feature: Tensor) -> Tensor:
        return self.activation(self.norm(self.convolution(feature)))


def _shrink(size: int, target: int) -> tuple[int, int, int]:
    """(kernel, stride, padding) of a convolution."""
    return (3, 2, 1) if size == 2 * target else (1 + size - target, 1, 0)


def _grow(size: int, target: int) -> tuple[int, int, int]:
    """(kernel, stride, padding) of a transposed convolution, its kernel never shorter than its stride."""
    stride = target // size
    padding = stride // 2
    return target - (size - 1) * stride + 2 * padding, stride, padding
