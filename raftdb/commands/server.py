"""Commands of this type: being filled."""

from .table import Command

COMMANDS: list[Command] = []
