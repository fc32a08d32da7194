"""The `flyweight` command: its verbs, and how errors leave it (one line on stderr; 1, or 2 for wrong usage)."""

from __future__ import annotations

import os
import sys
import warnings

import typer

from flyweight import __version__
from flyweight.cli import analyse, answer, build, compress, data, measure, suggest, survival, transport
from flyweight.errors import FlyweightError, FlyweightWarning

INTERRUPTED = 130  # 128 + SIGINT, the shell's way
_PLAIN_WARNING = warnings.formatwarning

app = typer.Typer(
    name="flyweight",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("train")(build.train)
app.command("import")(build.import_model)
app.command("compress")(compress.compress)
app.command("recipes")(compress.recipes)
app.command("evaluate")(measure.evaluate)
app.command("bench")(measure.bench)
app.command("sensitivity")(analyse.sensitivity)
app.command("suggest")(suggest.suggest)
app.command("survival")(survival.survival)
app.command("parse")(answer.parse)
app.command("inspect")(answer.inspect)
app.command("verify")(answer.verify)
app.command("pack")(transport.pack)
app.command("unpack")(transport.unpack)
app.command("demo")(build.demo)
app.command("doctor")(measure.doctor)
app.add_typer(data.app, name="data")


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context, version: bool = typer.Option(False, "--version", help="Print the version and stop.")
) -> None:
    """Small, fast BERT-class NLU models on an ordinary CPU: compress, prove that the answers did not change, answer.

    [bold]Examples[/bold]

    flyweight train nlu.yml --out bot

    flyweight compress bot nlu.yml --technique int8 --out bot.fly

    flyweight parse bot.fly "wake me at seven"
    """
    if version:
        print(f"flyweight {__version__}")
    elif context.invoked_subcommand is None:
        print(context.get_help())


def main() -> None:
    """Run the command line and exit."""
    warnings.formatwarning = _warning_text
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """The exit code: 0 fine, 1 an error in one line, 2 wrong usage, 130 interrupted."""
    try:
        code = app(arguments, standalone_mode=False, prog_name="flyweight") or 0
        return _interrupted() if code == INTERRUPTED else code  # newer versions of typer swallow KeyboardInterrupt
    except FlyweightError as error:
        return _fail(str(error))
    except (BrokenPipeError, SystemExit) as error:
        # `flyweight parse ... | head` is no error; typer and rich turn it into an exit. Other exits stay what they are.
        if not isinstance(error, BrokenPipeError) and not isinstance(error.__context__, BrokenPipeError):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        return _fail(f"{error.filename or 'file'}: {error.strerror or error}")
    except (KeyboardInterrupt, typer.Abort):
        return _interrupted()
    except Exception as error:
        # Usage errors of typer's parser, whichever copy of click it carries.
        if hasattr(error, "format_message") and hasattr(error, "exit_code"):
            context = getattr(error, "ctx", None)
            name = context.command_path if context else "flyweight"
            print(f"{name}: {error.format_message()} (see {name} -h)", file=sys.stderr)
            return int(error.exit_code)
        raise


def _warning_text(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """Our own warnings in one line, without the place in the code."""
    if issubclass(category, FlyweightWarning):
        return f"flyweight: {' '.join(str(message).split())}\n"
    return _PLAIN_WARNING(message, category, filename, lineno, line)


def _interrupted() -> int:
    print("flyweight: interrupted; the same command goes on where it can", file=sys.stderr)
    return INTERRUPTED


def _fail(message: str) -> int:
    print(f"flyweight: {' '.join(message.split())}", file=sys.stderr)
    return 1
