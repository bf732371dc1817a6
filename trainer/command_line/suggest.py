"""Did you mean: the nearest thing that exists to what was typed."""

from collections.abc import Iterable, Mapping
from difflib import SequenceMatcher, get_close_matches


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word most like ``word``, or None where none is like it."""
    found = get_close_matches(word, list(known), n=1, cutoff=0.6)
    return found[0] if found else None


def did_you_mean(text: str | None) -> str:
    """The question that ends a sentence, ready to type; a full stop where there is nothing to suggest."""
    return f": did you mean {text}?" if text else "."


def nearest_key(typed: str, names: Mapping[str, Iterable[str]]) -> str | None:
    """The config key that ``typed`` stands for: a slip of the pen, a bare last part, or what other frameworks call it.

    Args:
        typed: a dotted key that does not exist.
        names: the keys that do, each with its last part and aliases.
    """
    section, _, word = typed.replace("-", "_").rpartition(".")
    if section in names:
        return section
    by_name: dict[str, list[str]] = {}
    for key in names:
        for name in names[key]:
            by_name.setdefault(name, []).append(key)
    sections = {key.rpartition(".")[0] for key in names}
    same = by_name.get(word, [])
    inside = [key for key in same if key.startswith(f"{section}.")]
    if inside or (same and (len(same) == 1 or section not in sections)):
        return max(inside or same, key=lambda key: SequenceMatcher(None, typed, key).ratio())
    near_section = section if section in sections else nearest(section, sections)
    if section and near_section is None:
        return None
    within = {name: key for name, keys in by_name.items() for key in keys if not section or key.rpartition(".")[0] == near_section}
    near_name = nearest(word, within)
    return within[near_name] if near_name else None
