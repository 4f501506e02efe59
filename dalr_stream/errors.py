"""Every failure the package raises on purpose, and every warning it gives.

    DalrStreamError
    |-- InvalidInputError            an argument breaks a stated rule (also a ValueError)
    |   |-- LayerNotFoundError       a pattern that matches no layer, or a name (also a KeyError)
    |   |-- UnsupportedLayerError    a layer that cannot be compressed as asked
    |   |-- RankError                a rank or size outside its range
    |   |-- NonFiniteError           NaN or Inf among the activations
    |   |-- ConfigError              the run file, or a key of it
    |   `-- DatasetError             a data set's files are not there, or not what they should be
    |-- StoreError                   something on disk is not what it should be
    |   |-- StoreNotFoundError       there is no such store, domain, layer or record
    |   |-- StoreDamagedError        a digest does not match its bytes
    |   |-- StoreLockedError         another writer holds the store
    |   `-- FingerprintMismatchError made from other weights, data or settings
    `-- ResourceError                the run would not fit
        |-- MemoryLimitError
        `-- DiskSpaceError

    DalrStreamWarning                (a UserWarning)
    |-- OutlierFeaturesWarning       features far above the scale of all others
    |-- ParameterIncreaseWarning     a rank above break-even: the factors are larger than the layer
    `-- FewSamplesWarning            fewer samples than features

Messages follow one form: `layer 'fc6': rank must lie in 1..512, got 5000`: the layer, the rule, the value
received and, where there is one, the remedy. The command line prints the message alone, without a traceback.
"""


class DalrStreamError(Exception):
    """Root of every failure raised on purpose."""


class InvalidInputError(DalrStreamError, ValueError):
    """An argument breaks a stated rule."""


class LayerNotFoundError(InvalidInputError, KeyError):
    """A pattern matches no layer of the network, or there is none of that name."""

    __str__ = Exception.__str__  # a KeyError shows its message in quotes


class UnsupportedLayerError(InvalidInputError):
    """The layer exists, but what was asked of it cannot be done."""


class RankError(InvalidInputError):
    """A rank, or a number of kept nodes, lies outside its range."""


class NonFiniteError(InvalidInputError):
    """Activations hold NaN or Inf; nothing of their batch was committed."""


class ConfigError(InvalidInputError):
    """The run file cannot be read, or one of its keys breaks a rule."""


class DatasetError(InvalidInputError):
    """A data set's files are not there, or not what they should be; for loaders to raise."""


class StoreError(DalrStreamError):
    """Something on disk is not what it should be."""


class StoreNotFoundError(StoreError):
    """There is no such store, domain, layer or record."""


class StoreDamagedError(StoreError):
    """Bytes on disk do not match their digest."""


class StoreLockedError(StoreError):
    """Another process is writing to the store."""


class FingerprintMismatchError(StoreError):
    """The store was made from other weights, data or settings."""


class ResourceError(DalrStreamError):
    """The run would not fit this machine or the given budget."""


class MemoryLimitError(ResourceError):
    """The projected peak lies above the memory limit."""


class DiskSpaceError(ResourceError):
    """There is not enough free disk."""


class DalrStreamWarning(UserWarning):
    """Root of every warning."""


class ParameterIncreaseWarning(DalrStreamWarning):
    """The compressed layer would have more parameters than the layer it replaces."""


class OutlierFeaturesWarning(DalrStreamWarning):
    """A few features have a scale far above all others', which a relative ridge does not follow."""


class FewSamplesWarning(DalrStreamWarning):
    """Fewer samples than features: the moments are rank-deficient by construction."""
