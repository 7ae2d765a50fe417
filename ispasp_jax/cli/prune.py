"""prune.py: trains or loads a network, prunes it, fine-tunes, measures and saves it."""

from collections.abc import Sequence

from ispasp_jax.cli import peers, process
from ispasp_jax.cli.config import PruneConfig
from ispasp_jax.cli.prune_config import configuration
from ispasp_jax.cli.prune_flags import parser

__all__ = ["command", "main", "parser", "prune"]


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    return process.run(command, argv)


def command(argv: Sequence[str] | None) -> None:
    """Parses the flags and prunes, or prints the plan."""
    config = configuration(argv)
    process.find_own(config.network.model)
    peers.guard(config.run)
    process.load("ispasp_jax.cli.cuts", "ispasp_jax.cli.dry_run")
    from ispasp_jax.cli import words
    from ispasp_jax.cli.dry_run import dry_run

    with words.audience(config.run):
        dry_run(config) if config.dry_run else prune(config)


def prune(config: PruneConfig) -> None:
    """The whole job: dense network, walk, fine-tuning, measurements, result."""
    import time

    from ispasp_jax import devices, export
    from ispasp_jax.cli import cuts, locks, reports, sizes, stages, tasks, tuning
    from ispasp_jax.report import say, tell

    task = tasks.open_task(config)
    with locks.locked(task.out):
        if there := tasks.check_out(task.out, config.network.model):
            say(f"{task.out} holds {there}: replaced when this run is done")
        began = time.perf_counter()
        with tasks.workspace(task) as work:
            dense = stages.dense_network(task, work)
            pruned = cuts.pruned_before(task, work)
            if pruned is None:
                baseline = stages.score_dense(task, dense)
                images = cuts.calibrate(task, dense)
                channels = sizes.choose(task, dense, images, work)
                pruned = cuts.cut(task, dense, baseline, images, channels, work)
            tuned = tuning.finetune(task, dense, pruned, work)
            final = stages.measure(task, dense, pruned, tuned, work)
            total = time.perf_counter() - began
            report = reports.assemble(task, dense, pruned, tuned, final, total)
            made = stages.deliver(task, report, work)
    tell("report", out=str(task.out), **report)
    say(f"saved in {task.out}: {', '.join(made)}")
    if config.output.push and devices.is_first():
        say(f"published: {export.push(task.out, config.output.push)}")
