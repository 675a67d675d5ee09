"""The students: every arm once a seed; validation metrics are kept with each."""

from pathlib import Path
from typing import Any

from torch import nn

from gankd import api
from gankd.data.sets import ImageSet
from gankd.experiment.config import ArmConfig
from gankd.experiment.experiment import num_parameters
from gankd.fingerprints import file_hash
from gankd.models import load_checkpoint
from gankd.models.store import save_model
from gankd.pipeline.stage import Stage, file_inputs, normalize_inputs, task_inputs
from generators.settings import fingerprint_settings


class StudentStage(Stage):
    """One arm with one seed."""

    kind = "students"

    def __init__(self, run, arm: str, seed: int):
        super().__init__(run)
        self.arm, self.seed = run.config.student.arms[arm], seed
        self.name, self.label = f"students/{arm}/seed-{seed}", f"student {arm} seed {seed}"

    @property
    def reads(self) -> list[Stage]:
        run, arm = self.run, self.arm
        read = [run.teacher] if arm.method.uses_teacher else []
        read += [run.synthetic] if arm.synthetic else []
        return [*read, run.backbone_of(arm.initial, self.seed)] if arm.initial else read

    def inputs(self) -> dict[str, Any]:
        run, config = self.run, self.run.config.student
        return {
            "config": fingerprint_settings(config, {"arms", "seeds"}),
            "weights": file_hash(config.model.checkpoint),
            "arm": fingerprint_settings(self.arm),
            "files": file_inputs(self.arm.method.files),
            "seed": self.seed,
            "train": run.content(run.data.train) if self.arm.synthetic != 1 else None,
            "validation": run.content(run.data.validation),
            "task": task_inputs(run.task),
            "normalize": normalize_inputs(run.normalize),
        }

    def plan(self) -> str:
        run, config = self.run, self.run.config.student
        size = f"{config.model.name}, {num_parameters(run.network(config.model)):,} parameters"
        steps = config.resolved(len(run.data.train)).steps
        work = f"{len(config.arms)} arms x {len(config.seeds)} seeds, {steps} steps of {config.batch_size} each"
        return f"{size}; {work}"

    @property
    def training(self):
        run, config = self.run, self.run.config.student
        return config.model, run.task, config.resolved(len(run.data.train))

    def make(self) -> dict[str, Any]:
        run, config = self.run, self.run.config.student
        model = run.build(config.model, self.seed)
        if self.arm.initial:
            load_checkpoint(model, run.backbone_of(self.arm.initial, self.seed).path / "model.safetensors")
        synthetic = run.synthetic.result if self.arm.synthetic else None
        model = train_student(run, model, self.arm, self.seed, self.label, synthetic=synthetic, directory=self.path)
        metrics = run.validate(model, run.normalize, run.task)
        if run.accelerator.is_main_process:
            save_model(
                self.path,
                model,
                config.model,
                run.normalize,
                num_outputs=run.task.num_outputs,
                image_shape=run.image_shape,
                task=run.task,
            )
        return {"validation": metrics}


def train_student(
    run,
    model: nn.Module,
    arm: ArmConfig,
    seed: int,
    name: str,
    *,
    synthetic: ImageSet | None,
    directory: Path | None = None,
) -> nn.Module:
    """Train one network as an arm says, on the training split and `synthetic` samples."""
    fraction, real = None if arm.synthetic == "union" else arm.synthetic, run.data.train
    return api.distill(
        model,
        run.teacher.result if arm.method.uses_teacher else None,
        real=real if fraction != 1 else None,
        synthetic=synthetic if fraction != 0 else None,
        method=arm.method,
        synthetic_fraction=fraction if fraction not in (0, 1) else None,
        training=run.config.student.resolved(len(real)),
        task=run.task,
        normalize=run.normalize,
        seed=seed,
        directory=directory,
        name=name,
        **run.training_place,
    )
