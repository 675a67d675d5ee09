"""What a distillation method is: a module that owns everything one run trains, and the step that trains it.

A class with a `Config` is a method from the moment it is defined, in this package or in a user's own file: configurations
find it by the `name` of its settings.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import BeforeValidator, SerializeAsAny
from torch import Tensor, nn

from gankd.data.augment import SELF_SUPERVISED, AugmentationConfig
from gankd.data.loader import Batch, BatchSource
from gankd.methods.setup import Setup
from gankd.models import ModelConfig
from gankd.tasks import CLASSIFICATION, HEADS, REGRESSION
from generators.registry import Registry
from generators.settings import Settings, paths_in

if TYPE_CHECKING:
    from gankd.training.config import TrainingConfig

EVERY_TASK = frozenset({CLASSIFICATION, REGRESSION})
METHODS: Registry["type[Method]"] = Registry("method")
"""By name, ours and those of users' own files."""


class MethodConfig(Settings):
    """The base of the methods' settings: a `name: Literal[...]` and the paper's defaults."""

    method: ClassVar[Any]
    """The `Method` that these are the settings of."""

    if TYPE_CHECKING:
        name: str = ""

    @property
    def parts(self) -> tuple["MethodConfig", ...]:
        """The methods that these settings name: this one, or the terms that are combined."""
        return (self,)

    @property
    def networks(self) -> tuple[ModelConfig, ...]:
        """Networks that the method brings itself, besides student and teacher."""
        return ()

    @property
    def files(self) -> tuple[Path, ...]:
        """Files that it reads, or makes where they are not there: all that its settings name."""
        return tuple(paths_in(self))

    def check_networks(self, num_outputs: int, in_channels: int) -> None:
        """Raise a ValueError when one of `networks` cannot be built, or its checkpoint not be loaded."""
        for model in self.networks:
            model.build(num_outputs, in_channels)

    def check_task(self, task_kind: str, head: str = "scalar") -> None:
        """Raise a ValueError when these settings are not defined for a task or head that the method itself does."""

    @property
    def sampling(self) -> str:
        """How batches of classes are drawn: uniform, or `class_pairs`, `distinct_pairs` or `class_fours`, where every
        sample has others of its class beside it (see `BatchSource`)."""
        return "uniform"

    @property
    def deploys_student(self) -> bool:
        """Whether what is trained is a network of the student's kind, which a run's folder can hold."""
        return True

    @property
    def uses_teacher(self) -> bool:
        """Whether a teacher, where there is one, is asked anything."""
        return self.method.needs_teacher


class Method:
    """What every method declares, whether it is a whole `Distiller` or a `Term` beside the task's loss."""

    Config: ClassVar[type[MethodConfig]]
    tasks: ClassVar[frozenset[str]]
    heads: ClassVar[frozenset[str]] = frozenset(HEADS)
    """For regression: the kinds of output that it is defined for."""
    hint: ClassVar[str] = ""
    """A sentence for the user of a task or head that it is not defined for: what to do instead."""
    needs_teacher: ClassVar[bool] = True
    needs_generator_features: ClassVar[bool] = False
    """Whether it learns from synthetic images with their generator's features of them."""
    needs_equal_widths: ClassVar[bool] = False
    """Whether the student's stages must be as wide as its teacher's."""
    fewest_classes: ClassVar[int] = 2
    """The number of classes from which on it says anything."""
    fewest_samples: ClassVar[int] = 2
    """The smallest batch that it can compare."""
    repeats_views: ClassVar[bool] = False
    """Whether the augmented views that it learns from may repeat (`views` of the training)."""
    backbone_augmentation: ClassVar[AugmentationConfig] = SELF_SUPERVISED
    """The random changes of images with which it trains a backbone without labels, where the settings say none."""
    compared_views: ClassVar[str | None] = None
    """Which images' two views it compares with each other: those of `all`, of the `real` ones, or of none."""

    def __init_subclass__(cls, *, register: bool = True, **keywords: Any):
        super().__init_subclass__(**keywords)
        if "Config" in cls.__dict__:
            cls.Config.method = cls
            if register:
                METHODS.register(cls.Config.model_fields["name"].default)(cls)

    @classmethod
    def check(cls, task_kind: str, has_teacher: bool, head: str = "scalar") -> None:
        """Raise a ValueError when the method cannot do what it is asked; called at configuration time too."""
        name = cls.Config.model_fields["name"].default
        sentence = None
        if task_kind not in cls.tasks:
            sentence = f"method {name} is not defined for {task_kind}; it does {' and '.join(sorted(cls.tasks))}."
        elif task_kind == REGRESSION and head not in cls.heads:
            sentence = f"method {name} is not defined for task.head: {head}; it takes {' or '.join(sorted(cls.heads))}."
        if sentence:
            raise ValueError(f"{sentence} {cls.hint}".strip())
        if cls.needs_teacher and not has_teacher:
            raise ValueError(f"method {name} needs a teacher; give one, or use method supervised.")


class Distiller(Method, nn.Module):
    """Base of the methods. `forward(batch)` returns named loss terms, `"loss"` being the total.

    Built by `build_distiller`, which checks that the method is defined for what it is asked.
    """

    is_spread: bool = False
    """Whether every process runs networks of its own, on the whole batch."""

    def __init__(self, config: MethodConfig, setup: Setup):
        super().__init__()
        self.student, self.teacher, self.task, self.config = setup.student, setup.teacher, setup.task, config
        self.augment, self.normalize = setup.augment, setup.normalize

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        raise NotImplementedError

    def deployable(self) -> nn.Module:
        """The student alone, without anything that only training needs."""
        return self.student

    @property
    def _ddp_params_and_buffers_to_ignore(self) -> list[str]:
        """Buffers that `DistributedDataParallel` need not send before each step, of modules with `buffers_stay_equal`."""
        modules = {path: part for path, part in self.named_modules() if getattr(part, "buffers_stay_equal", False)}
        own = [(path, name) for path, part in modules.items() for name, _ in part.named_buffers(recurse=False)]
        return [f"{path}.{name}".lstrip(".") for path, name in own]

    # --- hooks: the loop calls them, most methods leave them as they are ----------------------------------------------

    def first_stage(self, training: "TrainingConfig") -> "tuple[Distiller, TrainingConfig] | None":
        """What is trained before this, and how: it leaves its result in modules that both share."""
        return None

    def prepare(self, data: BatchSource) -> None:
        """Once before the first step of a fresh run (error ranges, thresholds); keep results in buffers."""

    def parameter_groups(self) -> list[dict]:
        """Parameters that are not trained as the student is: {"params", "rate": a factor on the learning rate, "constant":
        whether the rate stays at its peak, "weight_decay": in place of the training's}, all but the first optional."""
        return []

    def start_step(self, step: int, num_steps: int, steps_per_epoch: int) -> None:
        """Before every step: schedules and curricula, as functions of the step, so that a resumed run goes on."""

    def finish(self) -> None:
        """Once after the last step: write what the run leaves besides its student."""


def configured(method: Any) -> MethodConfig:
    """A method's settings from its name, from a dictionary with `name`, or from settings.
    Raises ValueError: an unknown method, a setting that it does not have or cannot take."""
    if isinstance(method, MethodConfig):
        return method
    values = {"name": method} if isinstance(method, str) else method
    if not isinstance(values, dict) or not isinstance(values.get("name"), str):
        raise ValueError(f"a method is a name or its settings with `name`, got {method!r}")
    return METHODS.find(values["name"]).Config.of(values)


def _validated(method: Any) -> MethodConfig:
    """As `configured`, within the validation of a configuration, whose errors know the keys' whole path."""
    if isinstance(method, dict) and method.get("name") in METHODS:
        return METHODS[method["name"]].Config.model_validate(method)
    return configured(method)


class _MethodSchema:
    """Describes a method's settings to editors: one of those that are registered when the schema is asked for."""

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema, handler):
        configs = [method.Config.__pydantic_core_schema__ for method in METHODS.values()]
        return {"oneOf": [handler(config) for config in configs]}


MethodSetting = Annotated[SerializeAsAny[MethodConfig], BeforeValidator(_validated)]
"""The settings of any method, as a field of a configuration; in a schema only its name."""
AnyMethodConfig = Annotated[MethodSetting, _MethodSchema]
"""The same, with all of its settings in the schema."""
