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
    """Root of every failure raised on purpose: catch it to catch them all.

    The message says what to do; a bug in the package, or in your own code, raises something else.
    """


class InvalidInputError(DalrStreamError, ValueError):
    """An argument breaks a stated rule; the message names the rule, the value received and the remedy.

    Examples
    --------
    >>> import dalr_stream as ds
    >>> ds.HoldoutRule(share=1.5)
    Traceback (most recent call last):
    dalr_stream.errors.InvalidInputError: heldout_share must lie in [0, 1), got 1.5
    """


class LayerNotFoundError(InvalidInputError, KeyError):
    """A pattern matches no layer of the network, or there is no layer of that name.

    The message gives the nearest names: correct the pattern.
    """

    __str__ = Exception.__str__  # a KeyError shows its message in quotes


class UnsupportedLayerError(InvalidInputError):
    """The layer exists, but cannot be compressed, or watched, as asked.

    The message gives the reason. Leave the layer out of the patterns, or take a method of the other family.
    """


class RankError(InvalidInputError):
    """A rank, or a number of kept nodes, lies outside its range, which the message gives."""


class NonFiniteError(InvalidInputError):
    """Activations, weights or a loss hold NaN or Inf; nothing of the batch in question was committed.

    Look for bad inputs or for overflow in half precision; the message says where the first one is.
    """


class ConfigError(InvalidInputError):
    """The run file cannot be read, or one of its keys breaks a rule.

    The message names the key, the rule and the value: correct the file, or pass `--set section.key=value`.
    """


class DatasetError(InvalidInputError):
    """Files of a data set are missing, or not what they should be. For loaders to raise."""


class StoreError(DalrStreamError):
    """Something on disk is not what it should be."""


class StoreNotFoundError(StoreError):
    """There is no such store, domain, layer or record.

    The message lists what there is: correct the name, or do the step that makes it.
    """


class StoreDamagedError(StoreError):
    """Bytes on disk do not match their digest, or a file is incomplete.

    `dalr-stream verify` lists everything that is damaged; make that again, from what is whole.
    """


class StoreLockedError(StoreError):
    """Another process is writing to the store: wait for it, or write to another store."""


class FingerprintMismatchError(StoreError):
    """The store was made from other weights, data or settings than those given now.

    Go back to those, or make the store anew: in another folder, or with `--fresh` in a run.
    """


class ResourceError(DalrStreamError):
    """The run does not fit this machine or the given limit, or what it needs cannot be reached."""


class MemoryLimitError(ResourceError):
    """The projected peak lies above the memory limit.

    The message gives the alternatives with what each needs: outputs only, fewer layers, or a higher limit.
    """


class DiskSpaceError(ResourceError):
    """There is not enough free disk for what would be written: free some, or keep no activations."""


class DalrStreamWarning(UserWarning):
    """Root of every warning."""


class ParameterIncreaseWarning(DalrStreamWarning):
    """The compressed layer has more parameters than the layer it replaces: choose a rank up to break-even."""


class OutlierFeaturesWarning(DalrStreamWarning):
    """A few features have a scale far above all others', which a relative ridge does not follow."""


class FewSamplesWarning(DalrStreamWarning):
    """Fewer samples than features: the moments are rank-deficient by construction.

    Take more samples, or solve by an anchored method.
    """
