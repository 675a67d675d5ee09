"""The conditional generator: trained on the real images, or the user's."""

import functools
import time
from typing import Any

from gankd.experiment.experiment import num_parameters
from gankd.fingerprints import file_hash
from gankd.pipeline.helpers import help_inputs, help_of, helping_stages
from gankd.pipeline.judge import Stopwatch, scorer_of, student_inputs
from gankd.pipeline.stage import Stage
from gankd.synthesis.stage import check_generator_fits
from generators.interface import ConditionalGenerator
from generators.networks import build_networks
from generators.pretrained import load_generator
from generators.progress import clock
from generators.settings import fingerprint_settings
from generators.training import train


class GeneratorStage(Stage):
    """Training on the samples that `generator.train_on` names."""

    name = kind = "generator"

    @property
    def helpers(self) -> dict[str, Stage]:
        """The stages whose networks take part in the training, by the keys that ask for them: none of them may judge it."""
        return helping_stages(self.run)

    @property
    def scored_by(self) -> str | None:
        """Who scores it while it trains."""
        config = self.run.config.generator
        return config.judge.by if config.score_every and config.checkpoint is None else None

    @property
    def judges(self) -> list[Stage]:
        """The stages that score it: which generator is kept depends on them."""
        known = {"teacher": self.run.teacher, "backbone": self.run.judge}
        return [known[self.scored_by]] if self.scored_by in known else []

    @property
    def reads(self) -> list[Stage]:
        return list(dict.fromkeys([*self.helpers.values(), *self.judges]))

    def inputs(self) -> dict[str, Any]:
        run, config = self.run, self.run.config.generator
        inputs = {
            "config": fingerprint_settings(config, {"judge"}),
            "seed": run.config.seed,
            "train": run.content(run.part(config.train_on)),
            "labels": [run.num_classes, run.label_range],
            **help_inputs(run),
        }
        if by := self.scored_by:
            scores = {"student": student_inputs(run), "backbone": by, "inception": file_hash(config.judge.inception)}
            inputs |= {"score": scores.get(by), "validation": run.content(run.data.validation)}
            inputs |= {"features": run.config.teacher.features if by == "teacher" else None}
        return inputs

    def plan(self) -> str:
        run, config = self.run, self.run.config.generator
        networks = build_networks(config, run.image_shape, run.num_classes, run.label_range)
        sizes = [f"{num_parameters(network):,} parameters" for network in networks if network is not None]
        duration = f"{config.minutes:g} minutes of batches" if config.minutes else f"{config.steps} steps"
        return f"{config.network}, {', discriminator '.join(sizes)}; {duration} of {config.batch_size}"

    @property
    def minutes(self) -> float | None:
        return self.run.config.generator.minutes

    def make(self) -> dict[str, Any]:
        run, config = self.run, self.run.config.generator
        data, judging, started, by = run.part(config.train_on), Stopwatch(), time.perf_counter(), self.scored_by
        score = functools.partial(judging.timed, judging.timed(scorer_of, run)) if by else None
        generator = train(
            data.images,
            data.labels,
            num_classes=run.num_classes,
            label_range=run.label_range,
            class_names=data.class_names,
            config=config.replace(collapse_ratio=None) if by == "student" else config,  # a student's error may be 0
            directory=self.path,
            seed=run.config.seed,
            accelerator=run.accelerator,
            score=score,
            **help_of(run),
            log=run.log,
        )
        results = {"steps": generator.trained_steps}
        if score is None:
            return results
        share = judging.seconds / (time.perf_counter() - started)
        run.say(f"  judging by {by} took {clock(judging.seconds)}, {share:.0%} of this training")
        return {**results, "judged_by": by, "seconds_judging": judging.seconds}

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
