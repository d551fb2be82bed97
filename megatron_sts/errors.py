"""The errors a user can meet. Each message names the field or file, the value found and what to do."""


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
