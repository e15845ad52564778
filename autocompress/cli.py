"""The command line. Every command imports what it needs when it runs, so that help is instant."""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
from pathlib import Path
from time import monotonic
from typing import Annotated, Any, Literal, NoReturn

import typer
from rich.console import Console
from rich.markup import escape

from autocompress.errors import AutocompressError, UserError

app = typer.Typer(
    help="Search for compressed models on the measured accuracy–latency front of a device.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
console = Console()
errors = Console(stderr=True)

INTERRUPTED, FAILED, WRONG_INPUT = 130, 1, 2
USAGE_ERROR: Any = typer.BadParameter.__mro__[1]
"""What an unknown command or option and a value of the wrong type have in common; Typer does not export it."""

RunArgument = Annotated[Path, typer.Argument(help="The run folder.", metavar="RUN")]
TaskArgument = Annotated[str | None, typer.Argument(help="PATH.py or PATH.py:NAME with an autocompress.Task.", metavar="TASK")]
OutOption = Annotated[str | None, typer.Option("--out", help="The run folder.")]
ConfigOption = Annotated[Path | None, typer.Option("--config", help="A YAML file with the same settings; options win over it.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
ResumeOption = Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")]
EpochsOption = Annotated[str | None, typer.Option(metavar="N", help="Fine-tuning epochs per candidate, instead of the task's.")]
ThreadsOption = Annotated[str | None, typer.Option(metavar="N", help="Inference threads of the target.")]
DeviceOption = Annotated[str | None, typer.Option(help="OpenVINO's name for the device; CPU by default.")]
StreamsOption = Annotated[str | None, typer.Option(metavar="N", help="Requests side by side; else the hint decides.")]
HintOption = Annotated[
    Literal["latency", "throughput"] | None,
    typer.Option(case_sensitive=False, help="One request at a time, or all streams busy."),
]
BatchOption = Annotated[str | None, typer.Option(metavar="N", help="Samples of a request.")]
PrecisionOption = Annotated[str | None, typer.Option(help="Of float operations: f32, bf16 or f16; else the device's own.")]
ShapeOption = Annotated[
    list[str] | None, typer.Option(help="Of dynamic inputs: 1,3,224,224 in their order, or NAME=1,3,224,224.")
]
SeedOption = Annotated[str | None, typer.Option(metavar="N", help="Of shuffling and sampling.")]


@app.command()
def search(
    task: TaskArgument = None,
    budget: Annotated[str | None, typer.Option(help="Latency budget: 0.25ms, 50%, 0.5x, or '70% of int8'.")] = None,
    trials: Annotated[
        str | None, typer.Option(metavar="N", help="Candidates to score; over-budget ones are not counted.")
    ] = None,
    time: Annotated[str | None, typer.Option(help="When to stop: 90s, 8m, 1.5h.")] = None,
    out: OutOption = None,
    space: Annotated[
        str | None, typer.Option(help="A preset (int8, int8-prune, mixed-precision, sparse, full) or a YAML file.")
    ] = None,
    strategy: Annotated[
        str | None,
        typer.Option(
            help="search, or workflow: INT8, INT8 fine-tuned, pruned and fine-tuned, each only if the last is not enough."
        ),
    ] = None,
    objectives: Annotated[
        str | None, typer.Option(help="accuracy, then latency or throughput, then size or compressed_size, with commas.")
    ] = None,
    max_accuracy_drop: Annotated[str | None, typer.Option(help="For the best model: 0.01 (absolute) or 1% (relative).")] = None,
    max_size: Annotated[str | None, typer.Option(help="For the best model: 80kB, 1.5MB.")] = None,
    sampler: Annotated[
        str | None, typer.Option(help="Who proposes candidates: autocompress, mutation, tpe, nsga2 or random.")
    ] = None,
    epochs: EpochsOption = None,
    fine_tuning: Annotated[
        str | None, typer.Option(help="auto, shared (one training for all candidates) or each (one by one).")
    ] = None,
    threads: ThreadsOption = None,
    seed: SeedOption = None,
    keep_inert: Annotated[
        bool, typer.Option("--keep-inert", help="Search also what buys nothing on this device, and round channels to 8.")
    ] = False,
    keep: Annotated[str | None, typer.Option(help="Which models stay on disk: front or all.")] = None,
    config: ConfigOption = None,
    resume: ResumeOption = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be searched and how long it takes.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Search for models that keep the budget; plots, tables and the best model lie in the run folder."""
    overrides = {
        "task": task,
        "budget": budget,
        "max_trials": trials,
        "max_time": time,
        "out": out,
        "space": space,
        "strategy": strategy,
        "objectives": [word.strip() for word in objectives.split(",")] if objectives else None,
        "max_accuracy_drop": max_accuracy_drop,
        "max_size": max_size,
        "sampler": sampler,
        "fine_tuning.epochs": epochs,
        "fine_tuning.mode": fine_tuning,
        "target.threads": threads,
        "seed": seed,
        "keep_inert": keep_inert or None,
        "keep": keep,
    }
    _search(overrides, config, resume=resume, dry_run=dry_run, as_json=as_json)


def _search(overrides: dict[str, Any], config: Path | None, *, resume: bool, dry_run: bool, as_json: bool) -> None:
    started = monotonic()
    from autocompress.config import load_config
    from autocompress.task import absolute_reference, load_task

    settings = load_config(config or _own_config(overrides["out"], resume), overrides)
    if resume and (overrides["max_trials"] or overrides["max_time"]):  # a new limit replaces the old ones, of either kind
        dropped = "max_trials" if overrides["max_trials"] is None else "max_time" if overrides["max_time"] is None else None
        settings = settings.model_copy(update={dropped: None}) if dropped else settings
    if settings.task is None:
        raise _missing_task()
    settings = settings.model_copy(update={"task": absolute_reference(settings.task)})
    task = load_task(str(settings.task))
    if dry_run:
        from autocompress.dry_run import dry_run as look

        console.print(look(task, settings), highlight=False, markup=False, soft_wrap=True)
        return
    from autocompress.console import ConsoleWatcher, front_table
    from autocompress.outer_loop import run_search

    watcher = ConsoleWatcher(errors if as_json else console)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a scheduler's stop is as clean as Ctrl-C
    try:
        with watcher.live():
            result = run_search(task, settings, resume=resume, watcher=watcher, started=started)
    except KeyboardInterrupt:
        errors.print(
            f"\nInterrupted. What is in {settings.out} is complete. Go on with:\n"
            f"  autocompress search {shlex.quote(_shown(settings.task))} --resume --out {shlex.quote(settings.out)}",
            highlight=False,
            soft_wrap=True,
        )
        raise typer.Exit(INTERRUPTED) from None
    if as_json:
        print(json.dumps({"out": settings.out, "budget_ms": result.budget_ms, "front": _rows(result.front)}, indent=1))
        return
    console.print(front_table(result.front, result.metric.name, result.run["has_test"]))
    best = f"{settings.out}/best" if result.folder.file("best").exists() else "none within the budget and the allowed drop"
    console.print(f"Tables, picture and report: {settings.out}   Best model: {best}", highlight=False, soft_wrap=True)


@app.command()
def compress(
    task: Annotated[str, typer.Argument(help="PATH.py or PATH.py:NAME with an autocompress.Task.", metavar="TASK")],
    policy: Annotated[str | None, typer.Option(help="A YAML or JSON file, or a template (qat-int8, mixed, prune-qat).")] = None,
    macs: Annotated[
        str | None, typer.Option(help="Instead: prune to this share of the multiply-accumulates, 50% or 0.5x.")
    ] = None,
    latency: Annotated[
        str | None, typer.Option(help="Instead: prune to this latency, 0.25ms, 50%, 0.5x, or '70% of int8'.")
    ] = None,
    leave_float: Annotated[bool, typer.Option("--float", help="With --macs or --latency: prune only, without INT8.")] = False,
    out: OutOption = None,
    epochs: EpochsOption = None,
    threads: ThreadsOption = None,
    seed: SeedOption = None,
    config: ConfigOption = None,
    resume: ResumeOption = False,
    as_json: JsonOption = False,
) -> None:
    """Apply one policy, given or found for a target, without a search, through the same inner loop."""
    from autocompress.config import load_config
    from autocompress.console import ConsoleWatcher
    from autocompress.single import compress as apply

    chosen: dict[str, Any] = {"policy": policy, "macs": macs, "latency": latency, "int8": not leave_float}
    settings = load_config(config, {"out": out, "fine_tuning.epochs": epochs, "target.threads": threads, "seed": seed})
    options = {"out": "runs/compress"} | settings.model_dump(exclude={"task", "space", "recorded"}, exclude_unset=True)
    watcher = ConsoleWatcher(errors if as_json else console)
    with watcher.live():
        choice = apply(task, **chosen, resume=resume, watcher=watcher, **options)
    record = choice.record
    if as_json:
        print(record.model_dump_json(indent=1))
        return
    for note in record.notes:
        console.print(note, highlight=False, markup=False, soft_wrap=True)
    console.print(f"IR: {choice.folder.trial(record.number) / 'model.xml'}", highlight=False, soft_wrap=True)


@app.command()
def analyze(
    task: Annotated[str, typer.Argument(help="PATH.py or PATH.py:NAME with an autocompress.Task.", metavar="TASK")],
    space: Annotated[
        str | None, typer.Option(help="A preset (int8, int8-prune, mixed-precision, sparse, full) or a YAML file.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Write the heat map of layers × choices: .png or .svg.")] = None,
    threads: ThreadsOption = None,
    keep_inert: Annotated[bool, typer.Option("--keep-inert", help="Look also at what buys nothing on this device.")] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what each choice alone costs in accuracy, beside the latency that it buys."""
    from autocompress.analysis import analyze as look
    from autocompress.config import load_config
    from autocompress.console import ConsoleWatcher
    from autocompress.report.terminal import analysis_table
    from autocompress.task import load_task

    settings = load_config(config, {"space": space, "target.threads": threads, "keep_inert": keep_inert or None})
    watcher = ConsoleWatcher(errors)
    with watcher.live():
        found = look(load_task(task), settings, watcher)
    if as_json:
        print(json.dumps(found.to_dict(), indent=1))
    else:
        console.print(analysis_table(found), highlight=False)
    if out is not None:
        found.plot(out)
        (errors if as_json else console).print(str(out), highlight=False, soft_wrap=True)


@app.command()
def plot(
    run: RunArgument,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Where to write it; by default pareto.png and pareto.svg in the run folder."),
    ] = None,
    show: Annotated[bool, typer.Option("--show", help="Open a window.")] = False,
) -> None:
    """Draw the front: intervals, budget, baselines, dominated trials."""
    from autocompress.result import Result

    result = Result(run)
    paths = [out] if out else [run / "pareto.png", run / "pareto.svg"]
    for path in paths:
        result.plot(path)
        console.print(str(path), highlight=False, soft_wrap=True)
    if show:
        from autocompress.report.plots import show_front

        show_front(result)


@app.command()
def export(
    run: RunArgument,
    out: Annotated[Path, typer.Option("--out", help="A new or empty folder for the bundle.")],
    best: Annotated[bool, typer.Option("--best", help="The most accurate within the budget (the default).")] = False,
    fastest: Annotated[bool, typer.Option("--fastest", help="The fastest within the budget and --max-accuracy-drop.")] = False,
    trial: Annotated[int | None, typer.Option(help="This trial.")] = None,
    max_accuracy_drop: Annotated[str | None, typer.Option(help="0.01 (absolute) or 1% (relative).")] = None,
    as_json: JsonOption = False,
) -> None:
    """Write one model as a bundle: IR, policy, promise, checksums, infer.py."""
    from autocompress.errors import ConfigError
    from autocompress.result import Result

    if best + fastest + (trial is not None) > 1:
        raise ConfigError("One of --best, --fastest and --trial chooses the model", "more than one")
    result = Result(run)
    choice = result.trial(trial) if trial is not None else result.best(max_accuracy_drop, "latency" if fastest else "accuracy")
    choice.export(out)
    if as_json:
        print((out / "promise.json").read_text())
        return
    record = choice.record
    latency = f", {record.latency.ms:.4g} ms" if record.latency else ""
    console.print(
        f"Trial {record.number}: {result.metric.name} {record.accuracy_valid:.4f}{latency} → {out}",
        highlight=False,
        soft_wrap=True,
    )


@app.command()
def verify(
    bundle: Annotated[Path, typer.Argument(help="An exported bundle.", metavar="BUNDLE")],
    task: Annotated[str | None, typer.Option(help="With the task, accuracies are computed again.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure a bundle again, here, against its promise. Exit code 1 if it is broken."""
    from dataclasses import asdict

    from autocompress.task import load_task
    from autocompress.verification import verify as check

    checks = check(bundle, load_task(task) if task else None)
    if as_json:
        print(json.dumps([asdict(one) for one in checks], indent=1))
    else:
        for one in checks:
            mark = "[green]kept[/]  " if one.kept else "[red]broken[/]"
            console.print(f"{mark}  {one.name}: promised {one.promised}; found {one.found}", highlight=False, soft_wrap=True)
    if not all(one.kept for one in checks):
        raise typer.Exit(FAILED)


@app.command()
def report(run: RunArgument) -> None:
    """Write report.html, one self-contained page, into the run folder."""
    from autocompress.report.page import write_report
    from autocompress.result import Result

    console.print(str(write_report(Result(run))), highlight=False, soft_wrap=True)


@app.command()
def probe(
    device: DeviceOption = None,
    threads: ThreadsOption = None,
    streams: StreamsOption = None,
    hint: HintOption = None,
    precision: PrecisionOption = None,
    refresh: Annotated[bool, typer.Option("--refresh", help="Probe again, even if this target is known.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Find out which choices are real on this device: kernels, channel steps, zeros, binary layers."""
    from autocompress.console import probing
    from autocompress.hardware import probe as look
    from autocompress.report.terminal import capabilities_view

    target = _target(device=device, threads=threads, streams=streams, performance_hint=hint and hint.upper(), precision=precision)
    with probing(errors) as progress:
        can = look(target, refresh=refresh, progress=progress)
    if as_json:
        print(can.model_dump_json(indent=1))
    else:
        console.print(capabilities_view(can), highlight=False)


@app.command()
def bench(
    models: Annotated[
        list[Path], typer.Argument(help="IR or ONNX files or bundles; the first is the reference.", metavar="A B …")
    ],
    device: DeviceOption = None,
    threads: ThreadsOption = None,
    streams: StreamsOption = None,
    hint: HintOption = None,
    batch: BatchOption = None,
    precision: PrecisionOption = None,
    shape: ShapeOption = None,
    dynamic: Annotated[
        bool, typer.Option("--dynamic", help="Leave dynamic inputs dynamic; --shape is that of the requests.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Compare any models side by side: ratios with intervals, ties said to be ties."""
    from autocompress.hardware import bench as compare
    from autocompress.report.terminal import comparison_table

    options = {
        "device": device,
        "threads": threads,
        "streams": streams,
        "performance_hint": hint and hint.upper(),
        "batch": batch,
    }
    target = _target(**options, precision=precision, shapes=_shapes(shape), dynamic=dynamic)
    compared = compare(models, target)
    if as_json:
        print(json.dumps([one.to_dict() for one in compared], indent=1))
    else:
        console.print(comparison_table(compared, throughput=target.is_for_throughput), highlight=False)


@app.command()
def explain(
    model: Annotated[Path, typer.Argument(help="An IR, an ONNX file, or the folder of a bundle.", metavar="MODEL")],
    device: DeviceOption = None,
    threads: ThreadsOption = None,
    batch: BatchOption = None,
    precision: PrecisionOption = None,
    shape: ShapeOption = None,
    plot: Annotated[Path | None, typer.Option(help="Where to draw where the time goes (.png, .svg).")] = None,
    every: Annotated[bool, typer.Option("--all", help="Show every layer, not only the most expensive ones.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Say what ran in which precision, where the time goes, and why the model is not faster."""
    from autocompress.console import probing
    from autocompress.hardware import explain as look
    from autocompress.report.explanation import explanation_table, plot_explanation

    target = _target(device=device, threads=threads, batch=batch, precision=precision, shapes=_shapes(shape))
    with probing(errors) as progress:
        explanation = look(model, target, progress=progress)
    if plot:
        plot_explanation(explanation, plot, model.stem)
    if as_json:
        print(json.dumps(explanation.to_dict(), indent=1))
        return
    console.print(explanation_table(explanation, every), highlight=False)
    if plot:
        console.print(str(plot), highlight=False, soft_wrap=True)


def _target(**options: Any) -> Any:
    """The target of options, of which those that are not given keep their defaults."""
    from autocompress.config import validated
    from autocompress.device import Target

    return validated(Target, {name: value for name, value in options.items() if value is not None})


def _shapes(texts: list[str] | None) -> dict[str, tuple[int, ...]]:
    """Shapes by input name, or by index where none is given."""
    from autocompress.errors import ConfigError

    shapes = {}
    for index, text in enumerate(texts or []):
        name, _, numbers = text.rpartition("=")
        if not all(number.strip().isdecimal() for number in numbers.split(",")):
            raise ConfigError("--shape takes numbers with commas between them", repr(text), "For example 1,3,224,224.")
        shapes[name or str(index)] = tuple(int(number) for number in numbers.split(","))
    return shapes


def main() -> None:
    """Run the command line; what the user can put right is one line and exit code 2."""
    try:
        code = app(["--help"] if len(sys.argv) == 1 else None, standalone_mode=False)
    except typer.Abort:
        sys.exit(INTERRUPTED)
    except UserError as error:
        _fail(str(error), WRONG_INPUT)
    except AutocompressError as error:
        _fail(str(error), FAILED)
    except USAGE_ERROR as error:
        _fail(error.format_message(), WRONG_INPUT)
    sys.exit(code if isinstance(code, int) else 0)


def _fail(line: str, code: int) -> NoReturn:
    errors.print(f"[red]error:[/] {escape(line)}", highlight=False, soft_wrap=True)
    sys.exit(code)


def _own_config(out: str | None, resume: bool) -> Path | None:
    """On resume, what the run was started with."""
    path = Path(out or "runs/search") / "config.yaml"
    return path if resume and path.is_file() else None


def _missing_task() -> UserError:
    from autocompress.errors import TaskError

    return TaskError("A search needs a task", None, "autocompress search PATH.py, or task: PATH.py in the configuration.")


def _shown(reference: str | None) -> str:
    """A task's reference as short as it can be written here."""
    return os.path.relpath(str(reference)) if str(reference).startswith(os.getcwd()) else str(reference)


def _rows(table: Any) -> list[dict[str, Any]]:
    return list(json.loads(table.to_json(orient="records")))
