"""The errors a user can meet. Each message names the field or file, the value found and what to do."""

import reprlib

_SHOWN_CHARACTERS = 80
# A file name cannot be longer on the usual file systems; a path that is cut cannot be looked for.
_SHOWN_PATH_CHARACTERS = 255


class MegatronStsError(Exception):
    """Base of every error that is the user's to mend, not ours.

    met_by_all: rank 0 met it and all ranks raise it, so that one of them need speak.
    """

    met_by_all = False


class ConfigError(MegatronStsError):
    """The recipe, an override or the layout asked for cannot work."""


class DataError(MegatronStsError):
    """A data file, a record or an image cannot be used."""


class CheckpointError(MegatronStsError):
    """A checkpoint is missing, incomplete or does not fit the recipe."""


class ConversionError(MegatronStsError):
    """A model cannot be converted from or to the Hugging Face format."""


class TrainingError(MegatronStsError):
    """Training cannot go on: too many bad steps in a row, or a rank that was lost."""


class LostRankError(MegatronStsError):
    """The other ranks could not be reached when the process group was made."""


def shown(value: object) -> str:
    """A value found in a user's file, for a message: as Python writes it, in at most 80 characters.

    Bounded in time and depth as well, whatever the file holds.
    """
    bounded = reprlib.Repr()
    bounded.maxstring = bounded.maxother = bounded.maxlong = _SHOWN_CHARACTERS
    text = bounded.repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[: _SHOWN_CHARACTERS - 3]}..."


def shown_path(path: object) -> str:
    """A path, for a message: whole up to 255 characters, its two ends beyond; control characters escaped."""
    text = str(path)
    text = text if text.isprintable() else repr(text)[1:-1]
    half = (_SHOWN_PATH_CHARACTERS - 3) // 2
    return text if len(text) <= _SHOWN_PATH_CHARACTERS else f"{text[:half]}...{text[-half:]}"
