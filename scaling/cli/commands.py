"""Which module holds which command. The modules import the heavy parts inside the commands."""

from __future__ import annotations

import typer


def register(app: typer.Typer) -> None:
    """Adds every command to `app`."""
    from scaling.cli import analysis, bench, data, study
    from scaling.cli.convert import convert
    from scaling.cli.doctor import doctor
    from scaling.cli.evaluate import evaluate
    from scaling.cli.run import run

    app.add_typer(data.app, name="data")
    app.command()(run)
    app.add_typer(study.app, name="study")
    app.command()(analysis.collect)
    app.command()(analysis.fit)
    app.command()(analysis.report)
    app.command("plan-next")(analysis.plan_next)
    app.add_typer(bench.app, name="bench")
    app.command()(convert)
    app.command()(evaluate)
    app.command()(doctor)
