"""Every exception Flyweight raises on purpose: one tree, one clear line each.

    FlyweightError
    ├── DataError          a data file or a message is not what a reader expects (file, line, found, allowed)
    ├── ConfigError        a setting of a technique, a training or a command is out of range
    ├── CheckpointError    a base model or a saved model folder cannot be read
    ├── ArtifactError      a .fly file is damaged, of a newer version, or not a .fly file
    ├── ParityError        an exported model does not answer like its parent, or golden samples differ
    └── MissingExtraError  an optional package is needed: says which `pip install` brings it

A message says what was found, what is allowed and what to do next, in one line. The command line prints it and
exits with 1. `assert` is for our own mistakes, never for the user's input.
"""

from __future__ import annotations


class FlyweightError(Exception):
    """Base of all errors that Flyweight raises on purpose."""


class DataError(FlyweightError):
    """A data file or a message is not what a reader expects."""

    def __init__(self, found: str, *, allowed: str, path: object = None, line: int | None = None):
        """Compose `path:line: found; allowed`, leaving out the parts that are unknown.

        Line breaks and other characters of the path that do not print are escaped.
        """
        place = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(path))
        where = "" if path is None else f"{place}: " if line is None else f"{place}:{line}: "
        super().__init__(f"{where}{found}; {allowed}")
        self.found, self.allowed, self.path, self.line = found, allowed, path, line


class ConfigError(FlyweightError):
    """A setting is unknown or out of range."""


class CheckpointError(FlyweightError):
    """A base model or a saved model folder cannot be read."""


class ArtifactError(FlyweightError):
    """A .fly file is damaged, of an unknown version, or no .fly file at all."""


class ParityError(FlyweightError):
    """Two things that must give the same answer do not."""


class MissingExtraError(FlyweightError):
    """An optional package is not installed."""

    def __init__(self, package: str, extra: str, what: str):
        """`what` is the user's wish, for example "reading Rasa YAML"."""
        super().__init__(f"{what} needs the package '{package}'; install it with: pip install 'flyweight[{extra}]'")


class FlyweightWarning(UserWarning):
    """Something works, but worse than it could: what, and what to do. The command line prints it in one line."""
