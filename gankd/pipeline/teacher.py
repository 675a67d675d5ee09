"""The teacher: trained on the real images, or loaded; its validation metrics are kept with it."""

import dataclasses
from typing import Any

from gankd import api
from gankd.experiment.experiment import num_parameters
from gankd.fingerprints import file_hash
from gankd.methods.alone.supervised import Supervised
from gankd.models.store import load_model, save_model
from gankd.models.teacher import Teacher
from gankd.pipeline.stage import Stage, normalize_inputs, task_inputs
from gankd.tasks import SCALAR, Regression
from gankd.training.distillation import near_chance
from generators.settings import fingerprint_settings


class TeacherStage(Stage):
    """One network for every arm that asks a teacher, and for the selection of synthetic samples."""

    name = kind = "teacher"

    def inputs(self) -> dict[str, Any]:
        run, config = self.run, self.run.config.teacher
        return {
            "config": fingerprint_settings(config, {"features"}),  # read by others, see `feature_inputs`
            "seed": run.config.seed,
            "train": run.content(run.part(config.train_on)) if config.train else None,
            "validation": run.content(run.data.validation),
            "weights": file_hash(config.model.checkpoint),
            "task": task_inputs(run.teacher_task),
            "normalize": normalize_inputs(run.teacher_normalize),
        }

    def plan(self) -> str:
        run, config = self.run, self.run.config.teacher
        size = f"{config.model.name}, {num_parameters(run.network(config.model, run.teacher_task)):,} parameters"
        if not config.train:
            return f"{size}; loaded from {config.model.checkpoint}"
        return f"{size}; {config.resolved(len(run.part(config.train_on))).steps} steps of {config.batch_size}"

    @property
    def training(self):
        run, config = self.run, self.run.config.teacher
        resolved = config.resolved(len(run.part(config.train_on))) if config.train else None
        return resolved and (config.model, run.teacher_task, resolved)

    def make(self) -> dict[str, Any]:
        run, config = self.run, self.run.config.teacher
        model, real = run.build(config.model, run.config.seed, run.teacher_task), run.part(config.train_on)
        if config.train:
            api.distill(
                model,
                real=real,
                method=Supervised,
                training=config.resolved(len(real)),
                task=run.teacher_task,
                normalize=run.teacher_normalize,
                seed=run.config.seed,
                directory=self.path,
                name="teacher",
                **run.training_place,
            )
        model = model.to(run.accelerator.device).eval()
        metrics = run.validate(model, run.teacher_normalize, run.teacher_task)
        if run.accelerator.is_main_process:
            save_model(
                self.path,
                model,
                config.model,
                run.teacher_normalize,
                num_outputs=run.teacher_task.num_outputs,
                image_shape=run.image_shape,
                task=run.teacher_task,
            )
        return {"validation": metrics}

    def load(self) -> Teacher:
        run, task = self.run, self.run.teacher_task
        if isinstance(task, Regression) and task.head == SCALAR != run.task.head:  # as widely as it errs, it teaches
            task = dataclasses.replace(task, sigma=self.results["validation"]["rmse"] / task.std or None)
        metrics = self.results["validation"]
        if metrics and (sentence := near_chance(metrics, run.teacher_task, "validation")):
            run.console.print(f"  warning: {sentence}", markup=False, style="yellow", soft_wrap=True)
        model, normalize = load_model(self.path)
        features, device = run.config.teacher.features, run.accelerator.device
        return Teacher(model, normalize, device=device, feature_path=features, task=task).for_task(run.task)
