"""What a run is about to do, in a few lines for a person."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from gankd import provenance
from gankd.models import ModelConfig, build_model
from generators.training import build_networks

if TYPE_CHECKING:
    from gankd.pipeline import Run


def header(run: Run) -> list[str]:
    """What will run, where, on what; rich markup."""
    config, data = run.config, run.data
    shape = "x".join(map(str, data.train.image_shape))
    sizes = f"{len(data.train)} train, {len(data.validation)} validation, {len(data.test)} test"
    code = f"configuration {provenance.config_hash(config)}, commit {provenance.commit()}"
    return [
        f"[bold]{config.name}[/bold]  {config.title}",
        f"  {provenance.describe_processes(run.accelerator, config.runtime.processes)}",
        f"  {run.task.kind}, images {shape}: {sizes}",
        f"  run directory {run.directory}, {code}",
    ]


def plan(run: Run) -> list[str]:
    """The header, and every stage with its state and amount of work. Touches nothing."""
    config = run.config
    if config.generator.checkpoint:
        generator_line = f"loaded from {config.generator.checkpoint}"
    else:
        generator, discriminator = build_networks(
            config.generator, run.data.train.image_shape, run.num_classes, run.label_range
        )
        generator_line = (
            f"{config.generator.network}, {size(generator)}, discriminator {size(discriminator)}; "
            f"{config.generator.steps} steps of {config.generator.batch_size} ({run.generator_stage().state()})"
        )
    if config.teacher.train:
        steps = run.num_steps(config.teacher, run.part(config.teacher.train_on))
        teacher_line = f"{steps} steps of {config.teacher.batch_size} ({run.teacher_stage().state()})"
    else:
        teacher_line = f"loaded from {config.teacher.model.checkpoint}"
    subsampling = "on" if config.synthesis.subsample.enabled else "off"
    student = config.student
    return [
        *header(run),
        f"  generator: {generator_line}",
        f"  teacher: {config.teacher.model.name}, {size(network(run, config.teacher.model))}; {teacher_line}",
        f"  synthesis: {config.synthesis.num_samples} samples, subsampling {subsampling}, rho {config.synthesis.rho}",
        f"  students: {student.model.name}, {size(network(run, student.model))}; {len(student.arms)} arms x "
        f"{len(student.seeds)} seeds, {run.num_steps(student, run.data.train)} steps of {student.batch_size} each",
    ]


def network(run: Run, model: ModelConfig) -> nn.Module:
    return build_model(model.name, run.task.num_outputs, run.data.train.image_shape[0], **model.options)


def size(module: nn.Module) -> str:
    return f"{sum(parameter.numel() for parameter in module.parameters()):,} parameters"
