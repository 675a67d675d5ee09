"""Score a conditional generator against real images: do they look alike, do they vary, do they show their labels?

    python scripts/evaluate_generator.py --run runs/digits
    python scripts/evaluate_generator.py --run runs/digits --split validation --inception weights-inception-2015-12-05.pth
    python scripts/evaluate_generator.py --generator FOLDER --config configs/digits.yaml --num-samples 50000

Features are those of the run's teacher, or of Inception where its weights are given. The reference is the training split, as
is usual for FID. That rewards a generator that repeats its training images, and a teacher that was trained on the same
images embeds them unlike any others: `--split validation` avoids both. Beside the generator stand real images of another
split, and as many generated ones; `--judge` adds what those find that had no part in its training (`generator.judge`), and
makes them where they are missing. All goes to generator_metrics.json, in the directory of the run or the generator.
"""

import argparse
import json
import sys
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--run", type=Path, help="directory of a run: its generator, teacher and data")
    what.add_argument("--generator", type=Path, help="a generator by itself; --config says on which data it is judged")
    parser.add_argument("--config", type=Path, help="experiment with the data; its run directory holds the teacher")
    parser.add_argument("--split", choices=("train", "validation", "test"), default="train", help="the real images")
    parser.add_argument("--num-samples", type=int, default=10_000, help="images to draw (default: 10000)")
    parser.add_argument("--inception", type=Path, help="Inception weights: its features in place of the teacher's")
    parser.add_argument("--classifier", type=Path, help="for scalar labels: folder of a classifier, for the diversity")
    parser.add_argument("--judge", action="store_true", help="add the honest judge of generator.judge")
    parser.add_argument("--accuracy-score", action="store_true", help="train the experiment's student on the images")
    args = parser.parse_args()
    try:
        return evaluate(args)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def evaluate(args: argparse.Namespace) -> int:
    if (args.generator is None) != (args.config is None):
        raise ValueError("give --run alone, or --generator together with --config.")
    from gankd.experiment.config import load_config

    config = load_config(args.config or args.run / "config.yaml")
    from accelerate import Accelerator

    from gankd.experiment import provenance
    from gankd.experiment.lock import locked
    from gankd.fidelity import extractors, scores
    from gankd.fidelity.judge import judgement
    from gankd.fingerprints import fingerprint
    from gankd.models.store import load_model
    from gankd.models.teacher import Teacher
    from gankd.pipeline import Run
    from gankd.pipeline.judge import accuracy_scores, judge_of
    from gankd.report.tables import print_judged, print_scores
    from gankd.synthesis.stage import check_generator_fits
    from generators.checkpoints import replace_whole
    from generators.pretrained import load_generator

    experiment, run = Run(config, Accelerator()), args.run or config.directory
    device, data, task = experiment.accelerator.device, experiment.data, experiment.task
    generator = load_generator(args.generator or config.generator.checkpoint or run / "generator", device=device)
    check_generator_fits(generator, task, data.train)
    teacher = extractor = None
    if (run / "teacher" / "model.json").exists():
        settings = {"feature_path": config.teacher.features, "task": experiment.teacher_task}
        teacher = Teacher(*load_model(run / "teacher"), device=device, **settings).for_task(task)
        extractor = extractors.teacher_extractor(teacher)
    if args.inception:
        extractor = extractors.inception_extractor(args.inception, device=device)
    if extractor is None:
        raise ValueError(f"{run} holds no teacher: run scripts/train_teacher.py, or give --inception WEIGHTS.")
    classifier = Teacher(*load_model(args.classifier), device=device) if args.classifier else None

    real, other = getattr(data, args.split), data.train if args.split == "validation" else data.validation
    print(f"{args.num_samples:,} images, {len(real):,} of {args.split}; features {extractor.get_name()}, {device}")
    folder = run if args.run else args.generator if args.generator.is_dir() else args.generator.parent
    settings = {"task": task, "extractor": extractor, "teacher": teacher, "classifier": classifier}
    settings |= {"seed": config.seed, "cache": folder / "reference_features"}
    columns = scores.compare_with_real(generator, real, other, num_samples=args.num_samples, **settings)
    if args.split == "train" and not args.inception:
        columns["generated"]["warnings"].append("a teacher that was trained on this reference tells it from all else.")
    print_scores(columns, task)
    if args.judge:
        with locked(experiment.directory, experiment.accelerator):
            helpers = {"teacher": teacher.for_task(task.plain())} if teacher else {}
            columns["judged"] = judgement(judge_of(experiment), generator, helpers)
        print_judged(config.name, columns["judged"])
    if args.accuracy_score:
        fakes = scores.draw_fakes(generator, real, num_samples=args.num_samples, seed=config.seed)
        test = data.test if args.split == "test" else data.validation
        columns["accuracy_score"] = accuracy_scores(experiment, fakes, test)
        print("the student, trained on these alone, on real images:", columns["accuracy_score"])
    with replace_whole(folder / "generator_metrics.json") as temporary:
        source = {"split": args.split, "generator": fingerprint(generator), "provenance": provenance.versions()}
        temporary.write_text(json.dumps({**source, **columns}, indent=2))
    print(f"numbers: {folder / 'generator_metrics.json'}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
