"""The command `armscale`. Commands import what they need when they run, so that --help starts in a moment."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import typer

from scaling.errors import UserError
from scaling.files import UNWRITABLE

PACKAGES = ("scaling", "models", "data", "slurm", "analysis")

app = typer.Typer(
    name="armscale",
    help="Scaling studies of vision pretraining: pack images, launch a sweep, collect the runs, fit laws, report.",
    epilog="Example: armscale study launch quickstart --cluster local",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def check_packages() -> None:
    """Our five packages have everyday names; a folder of the user's that shadows one is named before it does harm."""
    home = Path(__file__).resolve().parents[2]
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        locations = list(spec.submodule_search_locations or []) if spec else []
        if not locations or Path(locations[0]).resolve().parent != home:
            found = locations[0] if locations else (spec.origin if spec else "nothing")
            raise UserError(
                "python path",
                str(found),
                f"the package {package!r} of armscale, in {home}",
                why="another file or folder of that name comes first; rename it, or set PYTHONSAFEPATH=1",
            )


def main() -> None:
    """Runs the command line: 0 done, 2 the input is wrong or a disk refuses, 85 asked to stop and saved, 1 else."""
    try:
        check_packages()
        from scaling.cli import commands

        commands.register(app)
        app()
    except UserError as error:
        _refuse(error)
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        valid = "one that may be read and written, on a disk with room"
        _refuse(UserError("file", error.filename, valid, why=error.strerror or ""))


def _refuse(error: UserError) -> None:
    print(f"armscale: {error}", file=sys.stderr)
    sys.exit(2)
