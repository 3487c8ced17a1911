"""Internationalised names that look like other names (UTS 39), in what they can deceive the reader of a rule with.

Python knows no character's script. The first word of its Unicode name is a fair stand-in (``CYRILLIC SMALL LETTER A``):
it is wrong about a few rare scripts of two words, whose letters no one takes for others.
"""

from __future__ import annotations

import unicodedata
from typing import Final

import idna

_CYRILLIC: Final = {
    **dict(zip("асԁеһіјӏорԛѕԝхуѵпгьѡүҽ", "acdehijlopqswxyvnrbwye", strict=True)),
    "ы": "bl",
    "ю": "io",
}
_GREEK: Final = dict(zip("αικνρυωηοτχγ", "aikvpuwnotxy", strict=True))
#: Latin letters of phonetic alphabets. No word is spelt with them.
_PHONETIC: Final = dict(zip("ɑɡɩɪʀʏʟɴɢʙʜᴀᴄᴅᴇᴊᴋᴍᴏᴘᴛᴜᴠᴡᴢ", "agiirylngbhacdejkmoptuvwz", strict=True))
#: These look like Latin letters beside Latin letters alone.
_NEARLY: Final = {"к": "k", "м": "m", "т": "t", "н": "h", "в": "b", "ε": "e", "β": "b"}

_LIKE_LATIN: Final = {"Cyrillic": _CYRILLIC, "Greek": _GREEK, "Latin": _PHONETIC}
#: Country domains in which a word of that script is at home.
_AT_HOME: Final = {
    "Cyrillic": frozenset(("bg", "by", "kz", "mk", "mn", "rs", "ru", "su", "ua", "uz")),
    "Greek": frozenset(("cy", "gr")),
}
_EVERY_LIKENESS: Final = {**_NEARLY, **_CYRILLIC, **_GREEK, **_PHONETIC}

# UTS 39 §5.2, "highly restrictive": one script, or Latin with those that Chinese, Japanese and Korean are written in.
_MAY_MIX: Final = (
    frozenset(("Latin", "Han", "Hiragana", "Katakana")),
    frozenset(("Latin", "Han", "Bopomofo")),
    frozenset(("Latin", "Han", "Hangul")),
)
#: First words of the names of characters that belong to no script, or to several.
_COMMON: Final = frozenset(
    ("COMBINING", "DIGIT", "HYPHEN-MINUS", "KATAKANA-HIRAGANA", "LOW", "MIDDLE", "MODIFIER", "ZERO")
)
_HAN: Final = frozenset(("CJK", "IDEOGRAPHIC"))


def is_valid(label: str) -> bool:
    """Whether ``xn--…`` is the A-label of something (IDNA 2008)."""
    return _decoded(label) is not None


def likeness(name: str) -> str | None:
    """How a canonical name deceives: by which scripts, and what it looks like in ASCII where that can be said."""
    *labels, top_level = name.split(".")
    for label in labels:
        text = _decoded(label)
        doubt = None if text is None else _doubt(text, top_level)
        if doubt is not None:
            seen = ".".join((*map(_in_ascii, labels), top_level))
            return f"{doubt} and looks like `{seen}`" if seen.isascii() else doubt
    return None


def _doubt(text: str, top_level: str) -> str | None:
    scripts = _scripts(text)
    if len(scripts) > 1:
        if any(scripts <= allowed for allowed in _MAY_MIX):
            return None
        return f"mixes {_listed(sorted(scripts))} letters"
    script = next(iter(scripts), "")
    table = _LIKE_LATIN.get(script, {})
    if not all(character.isascii() or character in table for character in text):
        return None
    # A word of that script, where such words are at home.
    if top_level in _AT_HOME.get(script, ()) or script in _scripts(_decoded(top_level) or ""):
        return None
    return f"is written in {'phonetic' if script == 'Latin' else script} letters"


def _listed(words: list[str]) -> str:
    return f"{', '.join(words[:-1])} and {words[-1]}"


def _in_ascii(label: str) -> str:
    """The label as a reader may take it; what resembles nothing stays what it is."""
    text = _decoded(label) or label
    plain = "".join(_EVERY_LIKENESS.get(character, character) for character in text)
    # Accents and the like: `é` is `e` with something above it.
    return "".join(
        character
        for character in unicodedata.normalize("NFD", plain)
        if not unicodedata.category(character).startswith("M")
    )


def _decoded(label: str) -> str | None:
    """What an A-label says; None for all other labels."""
    if not label.startswith("xn--"):
        return None
    try:
        return idna.ulabel(label)
    except UnicodeError:
        return None


def _scripts(text: str) -> frozenset[str]:
    first_words = (unicodedata.name(character, "UNNAMED").partition(" ")[0] for character in text)
    return frozenset(
        "Han" if word in _HAN else word.capitalize() for word in first_words if word not in _COMMON
    )
