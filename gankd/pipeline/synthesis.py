"""Synthetic data: samples of the generator that look real and that the teacher agrees with, in a store (cGAN-KD)."""

from typing import Any

from gankd.data.sets import ImageSet
from gankd.experiment.config import ArmConfig
from gankd.pipeline.stage import Stage, normalize_inputs, task_inputs
from gankd.pipeline.students import train_student
from gankd.synthesis.stage import Synthesis
from gankd.synthesis.store import load_store
from generators.settings import fingerprint_settings


class SyntheticStage(Stage):
    """Draw, select, relabel and store."""

    name, kind = "synthetic", "synthesis"

    @property
    def reads(self) -> list[Stage]:
        return [self.run.generator, self.run.teacher]

    @property
    def real(self) -> ImageSet:
        """What M1 compares with: the images that the generator saw, as far as that is known."""
        config = self.run.config.generator
        return self.run.data.train if config.checkpoint else self.run.part(config.train_on)

    def inputs(self) -> dict[str, Any]:
        run, config = self.run, self.run.config.synthesis
        inputs = {
            "config": fingerprint_settings(config),
            "seed": run.config.seed,
            "train": run.content(self.real),
            "task": task_inputs(run.task),
            "features": run.config.teacher.features if config.subsample.features == "teacher" else None,
        }
        if config.rho == "validation":
            inputs |= {"student": fingerprint_settings(run.config.student, {"seeds"})}
            inputs |= {"first_seed": run.config.student.seeds[0], "validation": run.content(run.data.validation)}
            inputs |= {"normalize": normalize_inputs(run.normalize)}
        return inputs

    def plan(self) -> str:
        config = self.run.config.synthesis
        subsampling = "on" if config.subsample.enabled else "off"
        return f"{config.num_samples} samples, subsampling {subsampling}, rho {config.rho}"

    def make(self) -> dict[str, Any]:
        run = self.run
        Synthesis(
            run.generator.result,
            run.teacher.result,
            run.task,
            self.real,
            run.config.synthesis,
            directory=self.path,
            seed=run.config.seed,
            accelerator=run.accelerator,
            provenance={"inputs": self.directory.inputs},
            validation_error=self.validation_error,
            log=run.log,
        ).run()
        return {}

    def load(self) -> ImageSet:
        return load_store(self.path)

    def validation_error(self, synthetic: ImageSet) -> float:
        """Validation error of a plain student on real + `synthetic`, for choosing rho."""
        run, config = self.run, self.run.config.student
        shares = [arm.synthetic for arm in config.arms.values() if arm.synthetic]
        arm = ArmConfig(synthetic=shares[0] if shares else "union")
        model = run.build(config.model, config.seeds[0])
        model = train_student(run, model, arm, config.seeds[0], "student for rho", synthetic=synthetic)
        value = run.validate(model, run.normalize, run.task)[run.task.metric]
        return -value if run.task.higher_is_better else value
