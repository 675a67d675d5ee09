"""Backbones without labels: the generator's samples with its features, and every arm once a seed."""

from typing import Any

from gankd import api
from gankd.data.live import live_set
from gankd.data.sets import ImageSet
from gankd.experiment.artifacts import PENDING
from gankd.experiment.experiment import num_parameters
from gankd.fingerprints import digest, file_hash
from gankd.models.store import save_model
from gankd.pipeline.stage import Stage, file_inputs, normalize_inputs, task_inputs
from gankd.synthesis.feature_store import write_feature_store
from gankd.synthesis.store import load_store
from generators.settings import fingerprint_settings


class FeatureSetStage(Stage):
    """Samples of the generator with its features of them, written once."""

    name, kind = "generated", "representation"

    title = name

    @property
    def reads(self) -> list[Stage]:
        return [self.run.generator]

    def inputs(self) -> dict[str, Any]:
        return {"num_generated": self.run.config.representation.num_generated, "seed": self.run.config.seed}

    def plan(self) -> str:
        return f"{self.run.config.representation.num_generated} samples with the generator's features"

    def live(self) -> ImageSet:
        config = self.run.config
        return live_set(self.run.generator.result, config.representation.num_generated, seed=config.seed)

    def make(self) -> dict[str, Any]:
        provenance = {"inputs": self.directory.inputs}
        write_feature_store(self.live().images, self.path, accelerator=self.run.accelerator, provenance=provenance)
        return {}

    def load(self) -> ImageSet:
        return load_store(self.path)


class LiveFeatureSetStage(FeatureSetStage):
    """The same, drawn while a backbone trains: nothing is written."""

    results: dict[str, Any] = {}

    @property
    def content(self) -> str:
        content = self.run.generator.content
        return digest(f"{content} {self.inputs()}".encode()) if content != PENDING else content

    def refusal(self) -> str | None:
        return None

    def state(self) -> str:
        return "drawn live"

    def load(self) -> ImageSet:
        return self.live()


class BackboneStage(Stage):
    """One arm of `representation` with one seed; what probes find on the validation split is kept with it."""

    kind = "representation"

    def __init__(self, run, arm: str, seed: int):
        super().__init__(run)
        self.arm, self.seed = run.config.representation.arms[arm], seed
        self.config = run.config.representation.of_arm(self.arm)
        self.name, self.label = f"representation/{arm}/seed-{seed}", f"backbone {arm} seed {seed}"

    @property
    def reads(self) -> list[Stage]:
        read = [self.run.teacher] if self.arm.method.uses_teacher else []
        return [*read, self.run.generated] if self.arm.synthetic else read

    def inputs(self) -> dict[str, Any]:
        run, config = self.run, self.config
        without = {"arms", "seeds", "probe_on", "unlabelled", "live", "num_generated"}
        return {
            "config": fingerprint_settings(config, without),
            "model": fingerprint_settings(run.backbone),
            "weights": file_hash(run.backbone.checkpoint),
            "arm": fingerprint_settings(self.arm),
            "files": file_inputs(self.arm.method.files),
            "features": run.config.teacher.features if run.teacher in self.reads else None,
            "seed": self.seed,
            "train": run.content(run.unlabelled) if self.arm.synthetic < 1 else None,
            "labels": task_inputs(run.task),  # what its probes are fitted to, and how many outputs it has
            "probe": [run.content(run.part(config.probe_on)), run.content(run.data.validation), run.config.seed],
            "normalize": normalize_inputs(run.normalize),  # by the labelled images
        }

    def plan(self) -> str:
        run, config = self.run, self.config
        size = f"{run.backbone.name}, {num_parameters(run.network(run.backbone)):,} parameters"
        steps, real = config.steps_on(len(run.unlabelled)), f"{len(run.unlabelled)} real images"
        work = f"{len(config.arms)} arms x {len(config.seeds)} seeds, {steps} steps of {config.batch_size} each"
        return f"{size}; {work}; {real}"

    @property
    def training(self):
        return self.run.backbone, self.run.task, self.config.resolved(len(self.run.unlabelled))

    def make(self) -> dict[str, Any]:
        run, config, share = self.run, self.config, self.arm.synthetic
        model = api.pretrain(
            run.build(run.backbone, self.seed),
            run.teacher.result if run.teacher in self.reads else None,
            real=run.unlabelled if share < 1 else None,
            synthetic=run.generated.result if share else None,
            method=self.arm.method,
            synthetic_fraction=share if 0 < share < 1 else None,
            online_probe=config.online_probe and share < 1,
            training=config.resolved(len(run.unlabelled)),
            normalize=run.normalize,
            seed=self.seed,
            directory=self.path,
            name=self.label,
            **run.training_place,
        )
        if run.accelerator.is_main_process:
            outputs = run.task.num_outputs
            save_model(self.path, model, run.backbone, run.normalize, num_outputs=outputs, image_shape=run.image_shape)
        found = run.probe(model, run.data.validation) if len(run.data.validation) else None
        return {"validation": found and {key: result.value for key, result in found.items()}}
