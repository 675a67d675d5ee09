"""Who judges the generator: a backbone without labels, and what it and a little student find in the finished generator."""

import time
from collections.abc import Callable
from typing import Any

from gankd import api
from gankd.data.sets import ImageSet
from gankd.experiment.experiment import num_parameters
from gankd.experiment.judge import little_network
from gankd.fingerprints import file_hash
from gankd.models import ModelConfig
from gankd.models.store import load_model, save_model
from gankd.models.teacher import Teacher
from gankd.pipeline.helpers import helpers_of
from gankd.pipeline.stage import Stage, file_inputs, normalize_inputs, task_inputs
from gankd.synthesis.store import write_tensors
from gankd.training import TrainingConfig
from generators.interface import ConditionalGenerator
from generators.settings import fingerprint_settings


class JudgeStage(Stage):
    """A backbone trained on the generator's real images, without their labels."""

    name = kind = "judge"

    @property
    def model(self) -> ModelConfig:
        return self.run.config.generator.judge.backbone.model or little_network(self.run.image_shape)

    @property
    def images(self):
        """The real images that the generator sees."""
        return self.run.part(self.run.config.generator.train_on)

    def inputs(self) -> dict[str, Any]:
        run, method = self.run, self.run.config.generator.judge.backbone.method
        return {
            "config": fingerprint_settings(self.training[2]),
            "method": fingerprint_settings(method),
            "model": fingerprint_settings(self.model),
            "weights": file_hash(self.model.checkpoint),
            "files": file_inputs(method.files),
            "outputs": run.task.num_outputs,
            "seed": run.config.seed,
            "train": run.content(self.images),
            "normalize": normalize_inputs(run.normalize),
        }

    def plan(self) -> str:
        size = f"{self.model.name}, {num_parameters(self.run.network(self.model)):,} parameters"
        resolved, method = self.training[2], self.run.config.generator.judge.backbone.method
        return f"{size}; {method.name}, {resolved.steps} steps of {resolved.batch_size}"

    @property
    def training(self) -> tuple[ModelConfig, Any, TrainingConfig]:
        config = self.run.config.generator.judge.backbone
        config = config.model_copy(update={"augmentation": config.views_of})
        return self.model, self.run.task, config.resolved(len(self.images))

    def make(self) -> dict[str, Any]:
        run = self.run
        model = api.pretrain(
            run.build(self.model, run.config.seed),
            real=self.images,
            method=run.config.generator.judge.backbone.method,
            training=self.training[2],
            normalize=run.normalize,
            seed=run.config.seed,
            directory=self.path,
            name=self.name,
            **run.training_place,
        )
        if run.accelerator.is_main_process:
            outputs = run.task.num_outputs
            save_model(self.path, model, self.model, run.normalize, num_outputs=outputs, image_shape=run.image_shape)
        return {}

    def load(self) -> Teacher:
        return Teacher(*load_model(self.path), device=self.run.accelerator.device)


class JudgedStage(Stage):
    """What the judge, and the helper beside it, say of the finished generator: for the report."""

    name, kind = "judged", "report"
    title = name

    @property
    def is_asked(self) -> bool:
        """Whether the report is to judge the generator."""
        run, config = self.run, self.run.config.generator
        if config.judge.report is not None:
            return config.judge.report
        judged = config.score_every is not None or any(helpers_of(run))
        return judged and config.checkpoint is None and len(run.data.validation) > 0

    @property
    def judges(self) -> list[Stage]:
        """The backbone, where it has not helped and Inception does not look in its place."""
        run = self.run
        helps = run.judge in run.generator.helpers.values()
        return [run.judge] if run.config.generator.judge.inception is None and not helps else []

    @property
    def reads(self) -> list[Stage]:
        run = self.run
        helpers = [*run.generator.helpers.values(), *([run.teacher] if run.teacher in run.read_by_arms else [])]
        return list(dict.fromkeys([run.generator, *self.judges, *helpers]))

    def inputs(self) -> dict[str, Any]:
        run, config = self.run, self.run.config.generator
        return {
            "student": student_inputs(run),
            "inception": file_hash(config.judge.inception),
            "num_samples": config.score_samples,
            "validation": run.content(run.data.validation),
            "outputs": task_inputs(run.teacher_task) if run.teacher in self.reads else None,
        }

    def plan(self) -> str:
        config = self.run.config.generator
        return f"{config.score_samples} images by the judge; a student on {config.judge.student.num_samples}"

    @property
    def training(self) -> tuple[ModelConfig, Any, TrainingConfig]:
        student = self.run.config.generator.judge.student
        return student_network(self.run), self.run.task.plain(), student.resolved(student.num_samples)

    def make(self) -> dict[str, Any]:
        from gankd.fidelity.judge import judgement

        run, judge = self.run, judge_of(self.run)
        fakes = judge.draw(run.generator.result)
        helpers = {"teacher": run.teacher.result.for_task(judge.task)} if run.teacher in self.reads else {}
        judged = judgement(judge, fakes, helpers)
        if judge.extractor is not None and run.accelerator.is_main_process:
            shown, nearest = judge.neighbours(fakes)
            tensors = {"images": shown.images, "labels": shown.labels, "nearest": nearest.cpu()}
            write_tensors(self.path / "neighbours.safetensors", tensors)
        run.log({"stage": self.name, "warnings": judged["warnings"]})
        for sentence in judged["warnings"]:
            run.console.print(f"  warning: {sentence}", markup=False, style="yellow", soft_wrap=True)
        return judged


def judge_of(run, *, with_features: bool = True):
    """The `Judge` of a run; of its features whatever is not made yet is made."""
    from gankd.fidelity.extractors import inception_extractor, teacher_extractor
    from gankd.fidelity.judge import Judge

    config, extractor = run.config.generator, None
    if with_features and config.judge.inception is not None:
        extractor = inception_extractor(config.judge.inception, device=run.accelerator.device)
    elif with_features and run.judged.judges:
        extractor = teacher_extractor(run.judge.result)
    return Judge(
        run.part(config.train_on),
        run.data.validation,
        run.task.plain(),
        run.normalize,
        config.judge.student,
        extractor,
        num_samples=config.score_samples,
        seed=run.config.seed,
        accelerator=run.accelerator,
    )


def accuracy_scores(run, fakes: ImageSet, test: ImageSet) -> dict[str, dict[str, float]]:
    """The metrics on `test` of the experiment's own student, trained on generated images alone and on the real ones."""
    from gankd.fidelity.scores import classification_accuracy_score

    config, data = run.config.student, run.data
    network = {"build_model": lambda: run.network(config.model), "normalize": run.normalize}
    training = {"task": run.task, "training": config.resolved(len(data.train)), "accelerator": run.accelerator}
    return {
        name: classification_accuracy_score(images, test, **network, **training)
        for name, images in (("generated", fakes), ("real", data.train))
    }


def student_network(run) -> ModelConfig:
    return run.config.generator.judge.student.model or little_network(run.image_shape)


def student_inputs(run) -> dict[str, Any]:
    """All that a score by the little student depends on, but the images, as JSON."""
    network = student_network(run)
    return {
        "config": fingerprint_settings(run.config.generator.judge.student),
        "model": fingerprint_settings(network),
        "weights": file_hash(network.checkpoint),
        "task": task_inputs(run.task.plain()),
        "seed": run.config.seed,
        "train": run.content(run.part(run.config.generator.train_on)),
        "normalize": normalize_inputs(run.normalize),
    }


def scorer_of(run) -> Callable[[ConditionalGenerator], float]:
    """What a generator is scored by while it trains, lower is better; see `JudgeConfig.by`."""
    from gankd.fidelity.extractors import inception_extractor, teacher_extractor
    from gankd.fidelity.scores import frechet_scorer

    config = run.config.generator
    if config.judge.by == "student":
        return judge_of(run, with_features=False).error_of
    if config.judge.by == "inception":
        extractor = inception_extractor(config.judge.inception, device=run.accelerator.device)
    else:
        extractor = teacher_extractor((run.teacher if config.judge.by == "teacher" else run.judge).result)
    return frechet_scorer(extractor, run.data.validation, num_samples=config.score_samples, seed=run.config.seed)


class Stopwatch:
    """Adds up the seconds that calls take."""

    seconds = 0.0

    def timed(self, function: Callable, *arguments: Any) -> Any:
        """What the function returns."""
        started = time.perf_counter()
        result = function(*arguments)
        self.seconds += time.perf_counter() - started
        return result
