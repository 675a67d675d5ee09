"""The library way: distil, synthesise and evaluate with the user's own modules and data sets.

    synthetic = gankd.synthesize(generator, teacher, real=train, num_samples=20_000)
    student = gankd.distill(student, teacher, real=train, synthetic=synthetic, method="kd", steps=2000)
    print(gankd.evaluate(student, test))

The stages of `pipeline` call these same functions.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import Dataset

from gankd import evaluation
from gankd.data import readers
from gankd.data.augment import SELF_SUPERVISED, Augment
from gankd.data.config import DataConfig
from gankd.data.inputs import as_image_set, as_unlabelled
from gankd.data.live import live_set
from gankd.data.loader import BatchSource
from gankd.data.sets import ImageSet
from gankd.data.splits import Splits
from gankd.data.views import Views
from gankd.experiment.artifacts import Stage, fingerprint
from gankd.methods import (
    Distiller,
    MethodConfig,
    build_distiller,
    check_method,
    check_two_views,
    check_views,
    method_config,
    sampling_of,
)
from gankd.models.teacher import Normalize, Teacher, borrowed
from gankd.synthesis.config import SynthesisConfig
from gankd.synthesis.generated import write_generated
from gankd.synthesis.stage import Synthesis, check_generator
from gankd.synthesis.store import load_store
from gankd.tasks import Representation, Task, task_of
from gankd.training import TrainingConfig, fit
from generators.images import to_unit_range
from generators.interface import ConditionalGenerator

Log = Callable[[dict], None]


def load_data(name: str, *, kind: str = "classification", seed: int = 0, **settings) -> Splits:
    """The splits of a data source by name: load_data("digits", image_size=16, labelled=100). Settings: see `DataConfig`."""
    return readers.load_data(DataConfig.of({"name": name, **settings}), kind=kind, seed=seed)


def ignore(values: dict) -> None:
    """The log of a caller who wants none."""


def distill(
    student: nn.Module,
    teacher: nn.Module | Teacher | None = None,
    *,
    real: Dataset | None = None,
    synthetic: Dataset | None = None,
    method: str | dict[str, Any] | MethodConfig = "kd",
    synthetic_fraction: float | None = None,
    training: TrainingConfig | None = None,
    task: Task | None = None,
    normalize: Normalize | None = None,
    seed: int = 0,
    directory: str | Path | None = None,
    accelerator: Accelerator | None = None,
    memory_budget: int = 2 << 30,
    workers: int = 2,
    name: str = "student",
    log: Log = ignore,
    **settings,
) -> nn.Module:
    """Train `student` (in place) on real data, synthetic data or both, and return it in eval mode.

    Args:
        student: any module from normalised images [N, C, H, W] to logits [N, K] or a scalar [N] or [N, 1].
        teacher: a module of the same kind (inputs normalised like the student's, unless it was trained by gankd and knows
            its own), or a `Teacher`; None for methods without one.
        real, synthetic: map-style data sets of (image, label), `ImageSet`s among them. Images: see `as_image_set`.
        method: a name, or a dictionary of a method's settings with `name`: {"name": "kd", "temperature": 2}.
        synthetic_fraction: share of synthetic samples in every batch; None mixes the union of both sets uniformly.
        training, **settings: the training's settings, and single ones that replace them (steps=2000, learning_rate=...).
        task: None takes what the labels say: class ids or a scalar.
        normalize: of the student's input; None computes mean and standard deviation per channel of the real images.
        directory: where checkpoints go; a run cut off there is resumed.

    The returned student carries `input_normalization` (means, standard deviations per channel of inputs in [0, 1]) and
    `output_task` (what its outputs mean), which `evaluate` and a later `distill` with it as the teacher use.

    Raises:
        ValueError: neither data set, labels out of range, a method that does not fit the task, a diverged loss.
    """
    accelerator = accelerator or Accelerator()
    real = as_image_set(real, "real") if real is not None else None
    synthetic = as_image_set(synthetic, "synthetic") if synthetic is not None else None
    reference = real if real is not None else synthetic
    if reference is None:
        raise ValueError("distill needs data: give real, synthetic or both.")
    task = task or task_of(reference)
    for dataset in (real, synthetic):
        if dataset is not None:
            task.check(dataset.labels, dataset.name)
    training = (training or TrainingConfig()).replace(**settings)
    normalize = (normalize or Normalize.of(reference.images)).to(accelerator.device)
    config = method_config(method)
    check_views(config, training.views)
    check_outputs(student, task, normalize, reference)
    with borrowed(teacher) if isinstance(teacher, nn.Module) else contextlib.nullcontext():
        distiller = _train(
            student,
            as_teacher(teacher, normalize, accelerator.device, task),
            real,
            synthetic,
            synthetic_fraction,
            task=task,
            config=config,
            training=training,
            normalize=normalize,
            seed=seed,
            directory=directory,
            accelerator=accelerator,
            memory_budget=memory_budget,
            workers=workers,
            name=name,
            log=log,
        )
    trained = distiller.deployable()
    trained.input_normalization = (normalize.mean.flatten().tolist(), normalize.std.flatten().tolist())
    trained.output_task = task
    return trained.eval()


def _train(
    student: nn.Module,
    teacher: Teacher | list[Teacher] | None,
    real: ImageSet | None,
    synthetic: ImageSet | None,
    synthetic_fraction: float | None,
    *,
    task: Task,
    config: MethodConfig,
    training: TrainingConfig,
    normalize: Normalize,
    seed: int,
    directory: str | Path | None,
    accelerator: Accelerator,
    memory_budget: int,
    workers: int,
    name: str,
    log: Log,
) -> Distiller:
    """What `distill` and `pretrain` share: batches, views and a distiller are made, and it is trained."""
    source = BatchSource(
        real,
        synthetic,
        batch_size=training.batch_size,
        synthetic_fraction=synthetic_fraction,
        seed=seed,
        device=accelerator.device,
        memory_budget=memory_budget,
        workers=workers,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        sampling=sampling_of(config, task.kind),
    )
    augment = Augment(training.augmentation)
    if training.views:
        augment = Views(augment, training.views, source, teacher=teacher, seed=seed)
    distiller = build_distiller(
        student, teacher, task, config, augment=augment, normalize=normalize, data=source, seed=seed
    )
    fit(
        distiller,
        source,
        training,
        accelerator=accelerator,
        seed=seed,
        name=name,
        directory=Path(directory) if directory else None,
        log=log,
    )
    return distiller


@torch.no_grad()
def check_outputs(student: nn.Module, task: Task, normalize: Normalize, dataset: ImageSet) -> None:
    """Raise a ValueError unless the student answers an image with as many numbers as the task has outputs."""
    image = to_unit_range(dataset.images[torch.arange(1)]).to(normalize.mean.device)
    training = student.training
    outputs = student.to(image.device).eval()(normalize(image))
    student.train(training)
    if outputs.numel() != task.num_outputs:
        raise ValueError(
            f"the student has {outputs.numel()} outputs an image, the task needs {task.num_outputs}: change its last layer."
        )


def normalization_of(model: nn.Module) -> Normalize | None:
    """The input normalisation that a model trained by gankd carries, or None."""
    known = getattr(model, "input_normalization", None)
    return Normalize(*map(torch.tensor, known)) if known else None


def pretrain(
    student: nn.Module,
    teacher: nn.Module | Teacher | list[nn.Module | Teacher] | None = None,
    *,
    real: Tensor | Dataset | None = None,
    synthetic: Tensor | Dataset | None = None,
    method: str | dict[str, Any] | MethodConfig = "squeeze_and_span",
    synthetic_fraction: float | None = None,
    online_probe: bool = False,
    training: TrainingConfig | None = None,
    normalize: Normalize | None = None,
    seed: int = 0,
    directory: str | Path | None = None,
    accelerator: Accelerator | None = None,
    memory_budget: int = 2 << 30,
    workers: int = 2,
    name: str = "backbone",
    log: Log = ignore,
    **settings,
) -> nn.Module:
    """Train the backbone of `student` (in place) without labels, and return it in eval mode; its last layer stays as it is.

    What comes back is the initial student of `distill`, or what `probe` measures.

    Args:
        teacher: of simreg: one network or several, read at the input of their last linear layer; inputs as in `distill`.
        real, synthetic: uint8 images [N, C, H, W], or map-style data sets of images or of (image, anything);
            squeeze_and_span needs the synthetic ones of `generated`. No label is read.
        online_probe: fit a linear layer to the labels of the real images on the side; the log then has `probe_metric` (top-1
            in %, or the mean absolute error), and the backbone, which gets no gradient of it, is the same.
        training, **settings: as in `distill`, with SELF_SUPERVISED as the augmentation where `training` is None; photographs
            want horizontal_flip too.
        method, synthetic_fraction, normalize, directory: as in `distill`.

    Raises:
        ValueError: neither data set, a method that learns from labels, two views that are the same, a diverged loss.
    """
    accelerator = accelerator or Accelerator()
    config = method_config(method)
    if online_probe and (real is None or isinstance(real, Tensor)):
        raise ValueError("online_probe reads the labels of real images; give real as a data set of (image, label).")
    if real is not None:
        real = as_image_set(real, "real") if online_probe else as_unlabelled(real, "real").without_labels()
    synthetic = as_unlabelled(synthetic, "synthetic") if synthetic is not None else None
    reference = real if real is not None else synthetic
    if reference is None:
        raise ValueError("pretrain needs images: give real, synthetic or both.")
    task = Representation(task_of(real) if online_probe else None)
    if synthetic is not None:
        synthetic = synthetic.without_labels(torch.int64 if real is None else real.labels.dtype)
    training = (training or TrainingConfig(augmentation=SELF_SUPERVISED)).replace(**settings)
    normalize = (normalize or Normalize.of(reference.images)).to(accelerator.device)
    check_method(config, task.kind, has_teacher=teacher is not None)
    check_views(config, training.views)
    check_two_views(config, training.augmentation, has_real=real is not None)
    teachers = teacher if isinstance(teacher, list) else [] if teacher is None else [teacher]
    with contextlib.ExitStack() as lent:
        for module in (student, *teachers):
            if isinstance(module, nn.Module):
                lent.enter_context(borrowed(module))
        _train(
            student.to(accelerator.device).train(),
            [as_teacher(each, normalize, accelerator.device, None) for each in teachers] or None,
            real,
            synthetic,
            synthetic_fraction,
            task=task,
            config=config,
            training=training,
            normalize=normalize,
            seed=seed,
            directory=directory,
            accelerator=accelerator,
            memory_budget=memory_budget,
            workers=workers,
            name=name,
            log=log,
        )
    student.input_normalization = (normalize.mean.flatten().tolist(), normalize.std.flatten().tolist())
    return student.eval()


def generated(
    generator: ConditionalGenerator,
    num_samples: int,
    *,
    seed: int = 0,
    directory: str | Path | None = None,
    accelerator: Accelerator | None = None,
) -> ImageSet:
    """A generator's samples with its own features of them, for methods that learn from these.

    Without a directory the generator draws them while a student is trained, and none is kept: `num_samples` may be as many
    as the run looks at. With one they are written to a store, whose training needs no generator; a finished store with the
    same inputs is read back, one cut off is continued. Sample i is the same both ways.

    Raises:
        ValueError: a generator without known features, or a `directory` that holds something else.
    """
    accelerator = accelerator or Accelerator()
    live = live_set(generator.to(accelerator.device), num_samples, seed=seed)
    if directory is None:
        return live
    stage = Stage(Path(directory), {"generated": fingerprint(live)})
    if not stage.open(accelerator):
        write_generated(live.images, stage.directory, accelerator=accelerator, provenance={"inputs": stage.inputs})
        stage.finish(accelerator)
    return load_store(stage.directory)


def probe(
    model: nn.Module,
    train: Dataset,
    test: Dataset,
    *,
    normalize: Normalize | None = None,
    seed: int = 0,
    accelerator: Accelerator | None = None,
) -> dict[str, evaluation.ProbeResult]:
    """How much the frozen features of `model` know of the labels of `train` and `test`: linear probe and nearest neighbours
    (classes), ridge regression and nearest neighbours (scalars); printing a result says how it was measured.

    The sets need not be those that the model was trained on (transfer). Images are taken as they are, without augmentation.

    Args:
        train: what probes are fitted to, and the neighbours' bank.
        normalize: of the model's input; None takes what a model trained by gankd carries, else that of `train`.
        seed: of the part of `train` on which the probes' regularisation is chosen.
    """
    accelerator = accelerator or Accelerator()
    train, test = as_image_set(train, "train"), as_image_set(test, "test")
    normalize = normalize or normalization_of(model) or Normalize.of(train.images)
    features = [
        evaluation.labelled_features(model, part, normalize=normalize, device=accelerator.device)
        for part in (train, test)
    ]
    return evaluation.measure(*features, seed=seed)


def as_teacher(teacher: nn.Module | Teacher | None, normalize: Normalize, device, task: Task | None) -> Teacher | None:
    """A `Teacher` that answers in the units of `task` (None: those of its own, only its features matter).

    A module is normalised as it says itself where it was trained by gankd, else by `normalize`.
    """
    if isinstance(teacher, nn.Module):
        own = getattr(teacher, "output_task", None)
        teacher = Teacher(teacher, normalization_of(teacher) or normalize, device=device, task=own)
    if teacher is None or task is None:
        return teacher
    return teacher.speak(task, device)


def synthesize(
    generator: ConditionalGenerator,
    teacher: nn.Module | Teacher,
    *,
    real: Dataset,
    num_samples: int,
    config: SynthesisConfig | None = None,
    task: Task | None = None,
    seed: int = 0,
    directory: str | Path,
    accelerator: Accelerator | None = None,
    log: Log = ignore,
    **settings,
) -> ImageSet:
    """Draw labelled images from `generator`, keep those that look real and that the teacher agrees with (cGAN-KD).

    Args:
        real: the real training data: it says what real images look like (M1) and which labels there are.
        num_samples: how many samples to return, balanced over classes.
        config, **settings: the synthesis' settings, and single ones that replace them (rho=0.7, subsample=...).
        directory: where the store is written (see `synthesis.store`); a finished one with the same inputs is read back, one
            cut off is continued.

    Raises:
        ValueError: too few samples survive, the generator's labels or images do not fit the real data, or `directory`
            holds a store made from something else.
    """
    accelerator = accelerator or Accelerator()
    real, directory = as_image_set(real, "real"), Path(directory)
    task = task or task_of(real)
    config = (config or SynthesisConfig()).replace(num_samples=num_samples, **settings)
    check_generator(generator, task, real)
    teacher = as_teacher(teacher, Normalize.of(real.images), accelerator.device, task)
    inputs = {
        "config": config.model_dump(mode="json"),
        "seed": seed,
        "real": fingerprint(real),
        "generator": fingerprint(generator),
        "teacher": fingerprint(teacher),
        "task": str(task),
    }
    stage = Stage(directory, inputs)
    if not stage.open(accelerator):
        generator = generator.to(accelerator.device).eval()
        Synthesis(
            generator,
            teacher,
            task,
            real,
            config,
            directory=directory,
            seed=seed,
            accelerator=accelerator,
            provenance={"inputs": inputs},
            log=log,
        ).run()
        stage.finish(accelerator)
    return load_store(directory)


def evaluate(
    model: nn.Module,
    dataset: Dataset,
    *,
    normalize: Normalize | None = None,
    task: Task | None = None,
    accelerator: Accelerator | None = None,
) -> dict[str, float]:
    """Top-1 (and top-5) accuracy in %, or MAE, RMSE (units of the labels) and R2, on all of `dataset`.

    Args:
        normalize: of the model's input; None takes what a model trained by gankd carries, else that of the data.
        task: what the outputs mean; None takes what a model trained by gankd carries, else what the labels say.
    """
    accelerator = accelerator or Accelerator()
    dataset = as_image_set(dataset)
    normalize = normalize or normalization_of(model) or Normalize.of(dataset.images)
    model, normalize = model.to(accelerator.device), normalize.to(accelerator.device)
    task = task or getattr(model, "output_task", None) or task_of(dataset)
    return evaluation.evaluate(model, normalize, task, dataset, accelerator=accelerator)
