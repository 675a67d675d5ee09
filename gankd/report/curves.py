"""How a run was trained: curves of the log."""

from gankd.report import plots
from gankd.report.html import as_charts, as_figure, as_section

SCORES = {
    "student": ("error on real validation images of a little student that learnt from its images alone", "error"),
    "others": ("Frechet distance to the validation images in the features of the judge ({by})", "Frechet distance"),
}


def curve(log: list[dict], stage: str, name: str) -> tuple[list[int], list[float]]:
    """The steps of a stage and the values of one of its numbers there."""
    lines = [line for line in log if line["stage"] == stage and name in line]
    return [line["step"] for line in lines], [line[name] for line in lines]


def mean_curve(curves: list[tuple[list[int], list[float]]]) -> tuple[list[int], list[float]]:
    """The mean over curves, at the steps that all of them have."""
    values = [dict(zip(*each, strict=True)) for each in curves]
    steps = sorted(set.intersection(*(set(each) for each in values)))
    return steps, [sum(each[step] for each in values) / len(values) for step in steps]


def training_section(metrics: dict, log: list[dict]) -> str:
    stages, charts = {line["stage"] for line in log}, []

    def add(caption: str, lines: list[plots.Line], axis: str, **settings) -> None:
        figure = plots.plot_curves(lines, axis=axis, **settings)
        charts.append(as_figure(plots.figure_to_svg(figure, caption), caption))

    def pair(stage: str, first: tuple[str, str], second: tuple[str, str]) -> list[plots.Line]:
        names = ((*first, plots.DARK), (*second, plots.BLUE))
        return [plots.Line(title, *curve(log, stage, name), colour) for name, title, colour in names]

    if "generator" in stages:
        steps, losses = curve(log, "generator", "loss")  # of one that has a loss of its own
        if steps:
            add("Generator: training loss.", [plots.Line("", steps, losses)], "loss", logarithmic=True)
        else:
            lines = pair("generator", ("discriminator_loss", "discriminator"), ("generator_loss", "generator"))
            add("Generator: losses of the two players.", lines, "loss")
            lines = pair("generator", ("real_accuracy", "real"), ("fake_accuracy", "generated"))
            add("Generator: share of images that the discriminator tells right.", lines, "told right", percent=True)
        steps, scores = curve(log, "generator", "score")
        if steps:
            by = (metrics["generator"] or {}).get("judged_by", "teacher")
            what, axis = SCORES["student" if by == "student" else "others"]
            caption = f"Generator: {what.format(by=by)}, while it was trained; the best was kept."
            add(caption, [plots.Line("", steps, scores)], axis, logarithmic=by != "student")
    if "extractor" in stages:
        add("Feature extractor of the density ratio: loss.", [plots.Line("", *curve(log, "extractor", "loss"))], "loss")
    if "density_ratio" in stages:
        add("Density ratio: loss.", [plots.Line("", *curve(log, "density_ratio", "loss"))], "softplus divergence")
        lines = pair("density_ratio", ("real_ratio", "real"), ("fake_ratio", "generated"))
        add("Density ratio: batch means; its penalty pulls that of generated images to 1.", lines, "mean density ratio")
    if "teacher" in stages:
        lines = [plots.Line("", *curve(log, "teacher", "loss"), plots.DARK)]
        add("Teacher: training loss.", lines, "loss", logarithmic=True)
    backbones, curves = backbone_arms(metrics), arm_curves(backbone_arms(metrics), "backbone", log)
    for method in dict.fromkeys(arm["method"]["name"] for arm in backbones.values()):  # each has a loss of its own
        lines = [line for name, line in curves.items() if backbones[name]["method"]["name"] == method]
        if lines:
            add(f"Backbones by {method}: training loss, mean over the seeds.", lines, "loss", logarithmic=True)
    lines = list(arm_curves(metrics["arms"], "student", log).values())
    if lines:
        caption = "Students: training loss, mean over the seeds. Different methods minimise different losses."
        add(caption, lines, "loss", logarithmic=True)
    return as_section("Training", as_charts(charts))


def backbone_arms(metrics: dict) -> dict[str, dict]:
    return metrics["representation"]["arms"] if metrics["representation"] else {}


def arm_curves(arms: dict[str, dict], role: str, log: list[dict]) -> dict[str, plots.Line]:
    """The loss of the networks that the log calls "ROLE ARM seed N", by arm: the mean over its seeds."""
    styles, lines = plots.arm_styles([arm["synthetic"] != 0 for arm in arms.values()]), {}
    for (name, arm), style in zip(arms.items(), styles, strict=True):
        steps, values = mean_curve([curve(log, f"{role} {name} seed {seed}", "loss") for seed in arm["seeds"]])
        if steps:
            lines[name] = plots.Line(arm["title"], steps, values, *style)
    return lines
