"""A whole experiment as typed settings: read from YAML, overridden on the command line, refused with a clear sentence.

config = load_config("configs/digits.yaml", ["student.epochs=20", "synthesis.rho=0.7"])
"""

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, model_validator

from gankd.data.augment import AugmentationConfig
from gankd.data.config import DataConfig
from gankd.experiment.judge import JudgeConfig
from gankd.guidance.config import FeaturesConfig, TeachersConfig
from gankd.methods import AnyMethodConfig, MethodConfig, check_method, check_two_views, check_views
from gankd.methods.alone.supervised import SupervisedConfig
from gankd.methods.label_free.squeeze_and_span import SqueezeAndSpanConfig
from gankd.methods.teacher.kd import KDConfig
from gankd.models.config import ModelConfig
from gankd.plugins import load_plugins
from gankd.synthesis.config import SynthesisConfig
from gankd.tasks import REPRESENTATION
from gankd.training import TrainingConfig
from generators.config import GeneratorConfig
from generators.settings import Count, Positive, Settings, Share, nearest

Head = Literal["scalar", "bins", "gaussian"]
Seed = Annotated[int, Field(ge=0, lt=2**32)]


class TaskConfig(Settings):
    """What a label is."""

    kind: Literal["classification", "regression"] = "classification"
    """Class ids, or one scalar an image."""
    label_min: float | None = None
    """Scalars: lower end of the label range. Null: the smallest training label."""
    label_max: float | None = None
    """Scalars: upper end of the label range. Null: the largest training label."""
    unit: str = ""
    """Scalars: the word for the unit ("degrees")."""
    head: Head = "scalar"
    """Scalars: what networks answer with. A number; logits over bins, whose expectation is the prediction (most methods on
    classes work on them too); or a mean and a variance (gaussian)."""
    num_bins: Annotated[int, Field(ge=6)] | None = None
    """Bins: how many. Null: 64, or the number of distinct training labels if fewer than 100, but 16 at least."""
    sigma: Positive | None = None
    """Bins: width of a label's distribution over them, in the labels' unit; below the bins' spacing it is almost one-hot.
    Null: the larger of the spacing and 2 % of the label range."""

    @model_validator(mode="after")
    def _heads_are_of_scalars(self):
        if self.head != "scalar" and self.kind == "classification":
            raise ValueError(f"head: {self.head} is for kind: regression")
        if self.head != "bins" and (self.num_bins is not None or self.sigma is not None):
            raise ValueError("num_bins and sigma are for head: bins")
        return self


class TeacherConfig(TrainingConfig):
    """The large model: trained here, or loaded (model.checkpoint)."""

    model: ModelConfig = ModelConfig(options={"widths": [32, 64, 128]})
    """The network that is trained."""
    train: bool = True
    """False: use model.checkpoint as it is."""
    train_on: Literal["train", "pool"] = "train"
    """The student's training samples, or all that there are when `data.labelled` leaves the student only some."""
    mean: tuple[float, ...] | None = None
    """Input normalisation of a loaded teacher, one number a channel of images in [0, 1]. Null: what its weights or its
    network (timm) say, else the training data's, with a warning."""
    std: tuple[float, ...] | None = None
    """Deviation of each channel, as `mean`."""
    outputs: Literal["standardized", "raw", "unit"] = "standardized"
    """Scalars: what a loaded teacher answers in. Standardised by the training labels, as gankd trains (by those that its
    weights remember); the label's own units; or [0, 1] over the label range."""
    head: Head | None = None
    """Scalars: what the teacher answers with, where it is not `task.head`."""
    features: str | None = None
    """Module path of the features used by the density ratio. Null: the input of the last linear layer."""

    @model_validator(mode="after")
    def _a_loaded_teacher_has_weights(self):
        if not self.train and self.model.checkpoint is None:
            raise ValueError("train is false but model.checkpoint names no weights")
        if (self.mean is None) != (self.std is None):
            raise ValueError("give both mean and std, or neither")
        if self.outputs != "standardized" and self.head == "bins":
            raise ValueError(f"bins have no units: outputs: {self.outputs} is for the heads scalar and gaussian")
        return self


FolderName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.+-]*$", max_length=100)]


class ArmConfig(Settings):
    """One way to train the student; every arm takes the same number of steps, on the same network."""

    synthetic: Share | Literal["union"] = 0.0
    """Share of synthetic samples in every batch: 0 real only, 1 synthetic only; `union` shuffles both sets together."""
    method: AnyMethodConfig = SupervisedConfig()
    """The distillation method and its settings."""
    initial: FolderName | None = None
    """Arm of `representation` whose backbone, trained with the same seed, the student starts from. Null: from scratch."""
    title: str | None = None
    """Its name in tables. Null: the arm's key."""


class StudentConfig(TrainingConfig):
    """The small model, and the arms in which it is trained."""

    model: ModelConfig = ModelConfig(options={"widths": [8, 16]})
    """The network that is trained."""
    seeds: tuple[Seed, ...] = (0, 1, 2)
    """Every arm is trained once a seed (initial weights, order of samples, augmentation)."""
    arms: dict[FolderName, ArmConfig] = {
        "real": ArmConfig(),
        "real_kd": ArmConfig(method=KDConfig()),
        "synthetic": ArmConfig(synthetic=0.5),
        "synthetic_kd": ArmConfig(synthetic=0.5, method=KDConfig()),
    }
    """By name, in the order of the table. {}: no students, for an experiment on representations."""

    @model_validator(mode="after")
    def _seeds_are_seeds(self):
        if not self.seeds:
            raise ValueError("give at least one seed")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds {list(self.seeds)} repeat one: it would count twice")
        return self


class BackboneArmConfig(Settings):
    """One way to train a backbone without labels; every arm takes the same number of steps, on the same network."""

    method: AnyMethodConfig = SqueezeAndSpanConfig()
    """A method without labels, with its settings: squeeze_and_span, simreg, vicreg or simsiam."""
    synthetic: Share = 0.0
    """Share of generated samples in every batch: 0 real only, 1 generated only (squeeze_and_span: squeeze alone)."""
    title: str | None = None
    """Its name in tables. Null: the arm's key."""


class GeneratorStageConfig(GeneratorConfig):
    """The conditional generator: trained here as these settings say, or loaded (`checkpoint`). Where they name no network
    and shape none, what suits the number, size and kind of the images is taken (`generators.suited_config`)."""

    checkpoint: Path | None = None
    """Use this trained generator (a folder written by `save_pretrained`) instead of training one."""
    train_on: Literal["train", "pool"] = "train"
    """The student's training samples, or all that there are when `data.labelled` leaves the student only some."""
    features: FeaturesConfig | None = None
    """Discriminators on the maps of a frozen network beside the one on pixels. Null: none."""
    guidance: TeachersConfig | None = None
    """Teachers that tell the generator how well its images show their labels. Null: none."""
    score_samples: Count = 2000
    """Images drawn for a Frechet distance."""
    judge: JudgeConfig = JudgeConfig()
    """Who scores it."""


class RepresentationConfig(TrainingConfig):
    """Backbones trained without labels, measured by probes, and where students may start from."""

    augmentation: AugmentationConfig | None = None
    """Random changes of the images; photographs want horizontal_flip too. Null: those of the arm's method, without flips."""
    arms: dict[FolderName, BackboneArmConfig] = {}
    """By name, in the order of the table; none by default."""
    model: ModelConfig | None = None
    """The network that is trained. Null: the student's."""
    seeds: tuple[Seed, ...] = (0, 1, 2)
    """Every arm is trained once a seed."""
    train_on: Literal["train", "pool"] = "pool"
    """Real images: the student's training samples, or all that there are when `data.labelled` leaves the student only some.
    Their labels are not read."""
    unlabelled: Path | None = None
    """Other real images in their place: a folder of image files, searched with its subfolders."""
    num_generated: Count = 10_000
    """Samples of the generator, with its features; not selected, as nothing of them but image and features is used."""
    live: bool = False
    """Draw them while training, so that they may be many, instead of once into generated/."""
    probe_on: Literal["train", "pool"] = "train"
    """Labelled images that the probes are fitted to, and the neighbours' bank."""
    online_probe: bool = False
    """Fit a linear layer on the side to the labels of the real images, for the log; the backbone does not feel it."""

    @model_validator(mode="after")
    def _arms_are_possible(self):
        if (self.arms and not self.seeds) or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds {list(self.seeds)}: give at least one, and none twice")
        if self.online_probe and self.unlabelled is not None:
            raise ValueError("the images of unlabelled have no labels for an online_probe; set it to false.")
        for name, arm in self.arms.items():
            if arm.method.method.needs_generator_features and not arm.synthetic:
                raise ValueError(f"arms.{name}: {arm.method.name} needs generated samples; set synthetic above 0.")
            try:
                check_method(arm.method, REPRESENTATION, has_teacher=True)
                check_views(arm.method, self.views)
                check_two_views(arm.method, self.of_arm(arm).augmentation, has_real=arm.synthetic < 1)
            except ValueError as error:
                raise ValueError(f"arms.{name}: {error}") from error
        return self

    def of_arm(self, arm: BackboneArmConfig) -> "RepresentationConfig":
        """The same with the augmentation that an arm is trained with."""
        augmentation = self.augmentation or arm.method.method.backbone_augmentation
        return self.model_copy(update={"augmentation": augmentation})


class RuntimeConfig(Settings):
    """How it runs; nothing here changes what is computed, but for rounding."""

    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    """Autocast in training."""
    processes: Count | None = None
    """How many processes you meant to start: the run warns when it is another number."""
    tracker: Literal["tensorboard"] | None = None
    """Send the log to a tracker too (needs the extra `tensorboard`); metrics.jsonl is always written."""


class ExperimentConfig(Settings):
    """One experiment, from data to report."""

    name: FolderName
    """Names the run's directory."""
    title: str = ""
    """One line for the report: the question that the experiment asks."""
    notes: str = ""
    """Paragraphs for the report: what to know to read the result rightly."""
    output: Path = Path("runs")
    """Where run directories go."""
    seed: Seed = 0
    """What the splits, the generator, the teacher and the synthesis draw from."""
    plugins: tuple[str, ...] = ()
    """Your own files, imported first: modules (my_module) or paths relative to this file (path/to/file.py). What they
    register (methods, readers, networks, augmentations, optimisers, ...) can be named in this configuration."""
    data: DataConfig
    """Where the images come from."""
    task: TaskConfig = TaskConfig()
    """What their labels are."""
    teacher: TeacherConfig = TeacherConfig()
    """The large model."""
    generator: GeneratorStageConfig = GeneratorStageConfig()
    """The conditional generator."""
    representation: RepresentationConfig = RepresentationConfig()
    """Backbones trained without labels."""
    synthesis: SynthesisConfig = SynthesisConfig()
    """Selection of its samples."""
    student: StudentConfig = StudentConfig()
    """The small model."""
    runtime: RuntimeConfig = RuntimeConfig()
    """Devices and precision."""

    @model_validator(mode="after")
    def _methods_fit_the_task(self):
        for name, arm in self.student.arms.items():
            try:
                check_method(arm.method, self.task.kind, has_teacher=True, head=self.task.head)
                check_views(arm.method, self.student.views)
                if not arm.method.deploys_student:
                    raise ValueError(
                        f"method {arm.method.name} with deploy: ensemble makes a module of several networks, which a run's "
                        "folder cannot hold; set deploy: first or best, or use gankd.distill."
                    )
            except ValueError as error:
                raise ValueError(f"student.arms.{name}: {error}") from error
        if not self.student.arms and not self.representation.arms:
            raise ValueError("there is nothing to train: give student.arms or representation.arms.")
        if self.teacher.head is not None and self.task.kind == "classification":
            raise ValueError(f"teacher.head: {self.teacher.head} is for task.kind: regression")
        return self

    @model_validator(mode="after")
    def _what_is_chosen_has_images_to_choose_by(self):
        choices = {
            "synthesis.rho: validation": self.synthesis.rho == "validation",
            "generator.score_every": self.generator.score_every and self.generator.checkpoint is None,
            "generator.judge.report": self.generator.judge.report,
        }
        for choice in (choice for choice, is_made in choices.items() if is_made and not self.data.validation):
            raise ValueError(f"{choice} chooses by validation images, and data.validation: 0 leaves none")
        return self

    @model_validator(mode="after")
    def _initial_backbones_are_the_students(self):
        representation = self.representation
        for name, arm in self.student.arms.items():
            if arm.initial is None:
                continue
            if arm.initial not in representation.arms:
                known = nearest(arm.initial, representation.arms) if representation.arms else ", which has none."
                raise ValueError(f"student.arms.{name}.initial: '{arm.initial}' is no arm of representation{known}")
            if representation.model not in (None, self.student.model):
                raise ValueError(
                    f"student.arms.{name}.initial: the backbones of representation.model are not those of student.model; "
                    "leave representation.model null."
                )
            if missing := set(self.student.seeds) - set(representation.seeds):
                raise ValueError(f"student.arms.{name}.initial: representation.seeds lack {sorted(missing)}.")
        return self

    @property
    def directory(self) -> Path:
        return self.output / self.name


def load_config(path: str | Path, overrides: list[str] | None = None) -> ExperimentConfig:
    """Read an experiment from a YAML file and apply overrides "dotted.key=value" (values in YAML's notation).

    Raises ValueError: a missing file, no YAML, an unknown key (with the nearest valid one), a value of the wrong type:
    one line a problem, each with the key's dotted path.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no configuration {path}; the examples are in configs/.")
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not a text in UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8."
        ) from error
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold keys and values; see configs/digits.yaml.")
    values = _unshared(values)
    for override in overrides or []:
        apply_override(values, override)
    try:
        if isinstance(plugins := values.get("plugins"), list) and all(isinstance(name, str) for name in plugins):
            values["plugins"] = load_plugins(plugins, beside=path.parent)
        return ExperimentConfig.of(values)
    except ValueError as error:
        raise ValueError("\n".join(f"{path}: {sentence}" for sentence in str(error).split("\n"))) from None


class _Loader(yaml.SafeLoader):
    """YAML without Python objects, in which a key may stand only once in a group."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.tag != "tag:yaml.org,2002:merge" and key.value in seen:
                line = key.start_mark.line + 1
                raise yaml.YAMLError(f"the key '{key.value}' stands twice in one group, again in line {line}")
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _unshared(values: Any) -> Any:
    """A copy in which groups that a YAML anchor shares are groups of their own, so that an override changes only one."""
    if isinstance(values, dict):
        return {key: _unshared(value) for key, value in values.items()}
    return [_unshared(value) for value in values] if isinstance(values, list) else values


def apply_override(values: dict[str, Any], override: str) -> None:
    """Set values["a"]["b"] for "a.b=value" in place.
    Raises ValueError: no "=", or a path through something that is not a group of keys."""
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ValueError(f"override '{override}' is not of the form dotted.key=value.")
    *groups, last = key.split(".")
    for group in groups:
        if values.get(group) is None:
            values[group] = {}
        values = values[group]
        if not isinstance(values, dict):
            raise ValueError(f"override '{override}': '{group}' is a value, not a group of keys.")
    try:
        values[last] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"override '{override}': the value is not YAML.") from error


def dump_config(config: ExperimentConfig) -> str:
    """The resolved experiment as YAML."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, width=120)


__all__ = ["ExperimentConfig", "MethodConfig", "dump_config", "load_config"]
