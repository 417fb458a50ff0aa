"""A stage's figures as lines for the terminal."""

from __future__ import annotations

from typing import Any


def figure_lines(figures: dict[str, Any]) -> str:
    """One line of small figures, then a line for each with words of its own."""
    plain = [f"{name}: {_words(value)}" for name, value in figures.items() if not _worded(value)]
    lines = [f"  {'; '.join(plain)}"] if plain else []
    lines += [f"  {name + ':':<30}{_words(value)}" for name, value in figures.items() if _worded(value)]
    return "\n".join(lines)


def _worded(value: Any) -> bool:
    return isinstance(value, dict) and "text" in value


def _words(value: Any) -> str:
    if not isinstance(value, dict):
        return str(value)
    if not _worded(value):
        return ", ".join(f"{inner} {name}" for name, inner in value.items())
    chance = {None: "", True: ", above chance", False: ", NOT above chance"}[value.get("above_chance")]
    return f"{value['text']}{chance}"
