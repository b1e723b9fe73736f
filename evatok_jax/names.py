"""Hints for names that nobody knows."""

import difflib


def nearest(word: str, known) -> str:
    """A hint that names the known word nearest to a wrong one, and all of them."""
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}Known: {', '.join(known)}"
