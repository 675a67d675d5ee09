"""The conditional generator: trained on the real images, or the user's."""

from collections.abc import Callable
from typing import Any

from gankd.experiment.experiment import num_parameters
from gankd.fingerprints import file_hash
from gankd.pipeline.stage import Stage
from gankd.synthesis.stage import check_generator_fits
from generators.interface import ConditionalGenerator
from generators.networks import build_networks
from generators.pretrained import load_generator
from generators.settings import fingerprint_settings
from generators.training import train


class GeneratorStage(Stage):
    """Training on the samples that `generator.train_on` names."""

    name = kind = "generator"

    @property
    def reads(self) -> list[Stage]:
        config = self.run.config.generator  # which generator is kept depends on whose features score it
        return [self.run.teacher] if config.score_every and config.score_extractor is None else []

    def inputs(self) -> dict[str, Any]:
        run, config = self.run, self.run.config.generator
        inputs = {
            "config": fingerprint_settings(config, {"score_extractor"}),
            "seed": run.config.seed,
            "train": run.content(run.part(config.train_on)),
            "labels": [run.num_classes, run.label_range],
        }
        if config.score_every:
            inputs |= {"score": file_hash(config.score_extractor), "validation": run.content(run.data.validation)}
            inputs |= {"features": run.config.teacher.features if config.score_extractor is None else None}
        return inputs

    def plan(self) -> str:
        run, config = self.run, self.run.config.generator
        networks = build_networks(config, run.image_shape, run.num_classes, run.label_range)
        sizes = [f"{num_parameters(network):,} parameters" for network in networks if network is not None]
        duration = f"{config.minutes:g} minutes of batches" if config.minutes else f"{config.steps} steps"
        return f"{config.network}, {', discriminator '.join(sizes)}; {duration} of {config.batch_size}"

    def make(self) -> dict[str, Any]:
        run, config = self.run, self.run.config.generator
        data = run.part(config.train_on)
        generator = train(
            data.images,
            data.labels,
            num_classes=run.num_classes,
            label_range=run.label_range,
            class_names=data.class_names,
            config=config,
            directory=self.path,
            seed=run.config.seed,
            accelerator=run.accelerator,
            score=self.score() if config.score_every else None,
            log=run.log,
        )
        return {"steps": generator.trained_steps}

    def score(self) -> Callable[[ConditionalGenerator], float]:
        """What the generator is watched by while it trains: its Frechet distance to the validation images."""
        from gankd.fidelity.extractors import inception_extractor, teacher_extractor
        from gankd.fidelity.scores import frechet_scorer

        run, config = self.run, self.run.config.generator
        if config.score_extractor is not None:
            extractor = inception_extractor(config.score_extractor, device=run.accelerator.device)
        else:
            extractor = teacher_extractor(run.teacher.result)
        return frechet_scorer(extractor, run.data.validation, num_samples=config.score_samples, seed=run.config.seed)

    def load(self) -> ConditionalGenerator:
        return load_generator(self.path, device=self.run.accelerator.device)


class LoadedGeneratorStage(GeneratorStage):
    """The user's, from `generator.checkpoint`: nothing to make."""

    reads = []
    results: dict[str, Any] = {}

    @property
    def path(self):
        return self.run.config.generator.checkpoint

    @property
    def content(self) -> str:
        return file_hash(self.path) or "nothing"

    def plan(self) -> str:
        return f"loaded from {self.path}"

    def refusal(self) -> str | None:
        return None

    def state(self) -> str:
        return "there"

    def load(self) -> ConditionalGenerator:
        generator = super().load()
        check_generator_fits(generator, self.run.task, self.run.data.train)
        return generator
