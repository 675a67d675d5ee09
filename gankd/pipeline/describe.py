"""What a run is about to do, in a few lines for a person."""

from __future__ import annotations

from torch import nn

from gankd.experiment import provenance
from gankd.experiment.experiment import Experiment
from generators.networks import build_networks


def header(experiment: Experiment) -> list[str]:
    """What will run, where, on what; rich markup."""
    config, data = experiment.config, experiment.data
    shape = "x".join(map(str, experiment.image_shape))
    sizes = f"{len(data.train)} train, {len(data.validation)} validation, {len(data.test)} test"
    code = f"configuration {provenance.config_hash(config)}, commit {provenance.commit()}"
    return [
        f"[bold]{config.name}[/bold]  {config.title}",
        f"  {provenance.describe_processes(experiment.accelerator, config.runtime.processes)}",
        f"  {experiment.task.kind}, images {shape}: {sizes}",
        f"  run directory {experiment.directory}, {code}",
    ]


def plan(experiment: Experiment) -> list[str]:
    """The header, and every stage with its state and amount of work. Touches nothing."""
    config = experiment.config
    if config.generator.checkpoint:
        generator_line = f"loaded from {config.generator.checkpoint}"
    else:
        generator, discriminator = build_networks(
            config.generator, experiment.image_shape, experiment.num_classes, experiment.label_range
        )
        generator_line = (
            f"{config.generator.network}, {size(generator)}, discriminator {size(discriminator)}; "
            f"{config.generator.steps} steps of {config.generator.batch_size} ({experiment.generator_stage().state()})"
        )
    if config.teacher.train:
        steps = experiment.num_steps(config.teacher, experiment.part(config.teacher.train_on))
        teacher_line = f"{steps} steps of {config.teacher.batch_size} ({experiment.teacher_stage().state()})"
    else:
        teacher_line = f"loaded from {config.teacher.model.checkpoint}"
    teacher = experiment.network(config.teacher.model, experiment.teacher_task)
    lines = [
        *header(experiment),
        f"  generator: {generator_line}",
        f"  teacher: {config.teacher.model.name}, {size(teacher)}; {teacher_line}",
    ]
    if config.representation.arms:
        lines.append(f"  representation: {representation_line(experiment)}")
    student, synthesis = config.student, config.synthesis
    if student.arms:
        subsampling = "on" if synthesis.subsample.enabled else "off"
        steps = experiment.num_steps(student, experiment.data.train)
        lines += [
            f"  synthesis: {synthesis.num_samples} samples, subsampling {subsampling}, rho {synthesis.rho}",
            f"  students: {student.model.name}, {size(experiment.network(student.model))}; {len(student.arms)} arms x "
            f"{len(student.seeds)} seeds, {steps} steps of {student.batch_size} each",
        ]
    return lines


def representation_line(experiment: Experiment) -> str:
    config, backbone, real = experiment.config.representation, experiment.backbone, experiment.unlabelled
    images = f"{len(real)} real images"
    if any(arm.synthetic for arm in config.arms.values()):
        images += f", {config.num_generated} generated ones {'drawn live' if config.live else 'stored'}"
    return (
        f"{backbone.name}, {size(experiment.network(backbone))}; {len(config.arms)} arms x {len(config.seeds)} seeds, "
        f"{experiment.num_steps(config, real)} steps of {config.batch_size} each; {images}"
    )


def num_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def size(module: nn.Module) -> str:
    return f"{num_parameters(module):,} parameters"
