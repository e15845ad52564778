"""Compare search strategies at equal fine-tuning seconds, probing and seeds included.

    python benchmarks/compare_search.py synthetic [--seeds 20] [--trials 40] [--out FOLDER]
    python benchmarks/compare_search.py experiments/search_benchmark/table.csv
    python benchmarks/compare_search.py limits

The first two replay every strategy for many seeds, on made-up networks of 26 decisions or on a table of policies that were really
fine-tuned and measured. They print the median and the 10th percentile of the share of the best hypervolume and the p of a paired
Wilcoxon test against autocompress, write NAME.csv (one row for each strategy, seed and trial, appended: what is in the file is
not run again) and draw NAME.png. The last one holds the sampler against its bounds: 0.3 s for a proposal in 10^17 policies, 1 s
after 10,000 trials, and no worse with shuffled sensitivities than without any; it ends with exit code 1 if one is broken.
"""

from __future__ import annotations

import argparse
import csv
import platform
import sys
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import optuna
from optuna.distributions import IntDistribution
from optuna.trial import create_trial
from scipy.stats import wilcoxon
from synthetic_search import BUDGET, Problem

from autocompress.strategy.mutation import silence_optuna

sys.path.append(str(Path(__file__).resolve().parents[1] / "experiments" / "search_benchmark"))
from recorded import Recorded
from replay import STRATEGIES, Curve, replay
from replay import Problem as AnyProblem

OURS = "autocompress"
MARKS = (10, 20, 40)
"""Trials' worth of seconds at which strategies are compared."""
COLUMNS = ("strategy", "seed", "trial", "seconds", "share")
MOST_SECONDS, MOST_SECONDS_LATE = 0.3, 1.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", help="synthetic, limits, or the path of a table")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--out", type=Path, default=Path("experiments/search_benchmark/results"))
    options = parser.parse_args()
    silence_optuna()
    if options.what == "limits":
        sys.exit(0 if check_limits(options.seeds) else 1)
    name = "synthetic" if options.what == "synthetic" else Path(options.what).stem
    problems: list[AnyProblem] = (
        [Problem(seed) for seed in range(options.seeds)]
        if name == "synthetic"
        else [Recorded.read(Path(options.what))] * options.seeds
    )
    options.out.mkdir(parents=True, exist_ok=True)
    curves = run(problems, options.trials, options.out / f"{name}.csv")
    unit = float(np.mean([problems[0].seconds(np.zeros(len(problems[0].decisions), dtype=np.int64))]))
    report(curves, unit)
    draw(curves, options.out / f"{name}.png")
    print(f"{platform.processor() or platform.machine()}, Optuna {optuna.__version__}; {options.out / name}.csv and .png")


def run(problems: list[AnyProblem], trials: int, path: Path) -> list[Curve]:
    """Every strategy on every seed, read from the file where it is already there."""
    known = read(path)
    with path.open("a", newline="") as file:
        writer = csv.writer(file)
        if not known:
            writer.writerow(COLUMNS)
        for seed, problem in enumerate(problems):
            for strategy in STRATEGIES:
                if (strategy, seed) in known:
                    continue
                curve = replay(problem, strategy, seed, trials)
                known[strategy, seed] = curve
                rows = enumerate(zip(curve.seconds, curve.shares, strict=True), 1)
                writer.writerows([strategy, seed, i, f"{at:.1f}", f"{share:.5f}"] for i, (at, share) in rows)
                file.flush()
    order = list(STRATEGIES)
    return sorted(known.values(), key=lambda curve: (order.index(curve.strategy), curve.seed))


def read(path: Path) -> dict[tuple[str, int], Curve]:
    """The curves of a file; those of a replay that was cut off while it was written are whole or absent."""
    if not path.is_file():
        return {}
    found: dict[tuple[str, int], list[tuple[float, float]]] = defaultdict(list)
    with path.open() as file:
        for row in csv.DictReader(file):
            found[row["strategy"], int(row["seed"])].append((float(row["seconds"]), float(row["share"])))
    return {key: Curve(*key, *map(tuple, zip(*steps, strict=True))) for key, steps in found.items()}


def share_at(curve: Curve, seconds: float) -> float:
    """The share that was reached when so many seconds were over."""
    return max((share for at, share in zip(curve.seconds, curve.shares, strict=True) if at <= seconds), default=0.0)


def report(curves: list[Curve], unit: float) -> None:
    """Median, 10th percentile and p against ours, at several times."""
    names = list(dict.fromkeys(curve.strategy for curve in curves))
    by_name = {name: sorted((c for c in curves if c.strategy == name), key=lambda c: c.seed) for name in names}
    print("median (10th percentile) share of the best hypervolume; p of autocompress being no better\n")
    print(f"{'after the seconds of':30s}" + "".join(f"{mark:>5d} trials         " for mark in MARKS))
    for name in names:
        cells = []
        for mark in MARKS:
            shares = np.array([share_at(curve, mark * unit) for curve in by_name[name]])
            cell = f"{np.median(shares):.3f} ({np.quantile(shares, 0.1):.3f})"
            own = np.array([share_at(curve, mark * unit) for curve in by_name[OURS]])
            if name != OURS and len(own) == len(shares) and (own != shares).any():
                cell += f" {wilcoxon(own, shares, alternative='greater').pvalue:.0e}"
            cells.append(f"{cell:<20s}")
        print(f"{name:30s}" + "".join(cells))


def draw(curves: list[Curve], path: Path) -> None:
    """Anytime curves: medians with the range from the 10th to the 90th percentile."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), dpi=130, layout="constrained")
    axes = figure.add_subplot()
    times = np.linspace(0, max(max(c.seconds) for c in curves if c.strategy == OURS), 200)
    for name in dict.fromkeys(curve.strategy for curve in curves):
        shares = np.array([[share_at(curve, at) for at in times] for curve in curves if curve.strategy == name])
        (line,) = axes.plot(times, np.median(shares, axis=0), label=name, lw=2.2 if name == OURS else 1.2)
        axes.fill_between(times, *np.quantile(shares, [0.1, 0.9], axis=0), color=line.get_color(), alpha=0.1, lw=0)
    axes.set_xlabel("seconds of fine-tuning, probing included")
    axes.set_ylabel("share of the best front's hypervolume")
    axes.set_ylim(0, 1)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path)


def check_limits(seeds: int) -> bool:
    """Hold the sampler against its bounds; CPU seconds."""
    late = proposal_seconds(10_000)
    usual = max(proposal_seconds(count) for count in (10, 60, 200))
    print(f"a proposal takes {usual:.2f} s (bound {MOST_SECONDS}), after 10,000 trials {late:.2f} s (bound {MOST_SECONDS_LATE})")
    shares = {"shuffled": [], "none": []}
    for seed in range(seeds):
        problem = Problem(seed)
        shares["none"].append(replay(problem, "autocompress, not probed", seed, 40).shares[-1])
        problem.sensitivities = shuffled(problem, seed)
        shares["shuffled"].append(replay(problem, OURS, seed, 40).shares[-1])
    medians = {name: float(np.median(found)) for name, found in shares.items()}
    worse = wilcoxon(shares["none"], shares["shuffled"], alternative="greater").pvalue
    print(f"40 trials: {medians}; p of shuffled sensitivities being worse than none {worse:.2f}")
    return usual <= MOST_SECONDS and late <= MOST_SECONDS_LATE and worse > 0.05


def shuffled(problem: Problem, seed: int) -> dict[str, list[float]]:
    """The same sensitivities, each given to any choice of any decision."""
    values = [value for d in problem.decisions for value in problem.sensitivities[d.name][1 : len(d.choices)]]
    left = iter(np.random.default_rng(seed).permutation(values).tolist())
    return {d.name: [0.0, *(next(left) for _ in d.choices[1:])] for d in problem.decisions}


def proposal_seconds(trials: int) -> float:
    """CPU seconds of a proposal after so many random trials within the budget or not."""
    from replay import ours

    problem, draw = Problem(0), np.random.default_rng(0)
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=ours(problem, 0))
    points = draw.integers(0, [len(d.choices) for d in problem.decisions], (trials, len(problem.decisions)))
    space = {d.name: IntDistribution(0, len(d.choices) - 1) for d in problem.decisions}
    latencies, accuracies = problem.truth(points)
    for point, latency, accuracy in zip(points.tolist(), latencies.tolist(), accuracies.tolist(), strict=True):
        params = dict(zip(space, point, strict=True))
        over = {"constraints": {"latency": latency / BUDGET - 1}}
        study.add_trial(create_trial(params=params, distributions=space, values=[accuracy, latency], **over))
    seconds = []
    for _ in range(3):
        start = time.process_time()
        study.ask().suggest_int(problem.decisions[0].name, 0, len(problem.decisions[0].choices) - 1)
        seconds.append(time.process_time() - start)
    return sorted(seconds)[1]


if __name__ == "__main__":
    main()
