"""What a finished run left, opened anywhere: layers with their moments, and solutions, without network, data or torch.

    store = open_store("birds.zarr")
    store.layer("fc6", target="target", source="source")          # a Layer, for any solver
    store.solution("fc6", "dalr_anchored_affine").at_rank(64)     # what the run solved

Nothing is changed on disk, and no record is read before it is asked for.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dalr_stream.engine.cross.layer_cross import LayerCrossMoments, pairs_in
from dalr_stream.engine.layer_moments import LayerMoments
from dalr_stream.engine.statistics import Weights, layer_names, stored_weights
from dalr_stream.engine.stores.store_view import StoreView
from dalr_stream.errors import LayerNotFoundError, StoreNotFoundError
from dalr_stream.numerics.layer import Layer
from dalr_stream.numerics.methods import Method
from dalr_stream.numerics.options import parse_choice
from dalr_stream.numerics.rows.sampling import HoldoutRule
from dalr_stream.numerics.sizes.shape import LayerShape
from dalr_stream.storage.places.place import Place, place_of
from dalr_stream.storage.records.solutions import Solution
from dalr_stream.storage.store import ActivationStore, StoredRows

if TYPE_CHECKING:
    from dalr_stream.engine.stores.verify import Verification


def open_store(path: str | Place) -> Store:
    """Return the store at `path`, of any run on any machine; it needs neither network nor torch.

    Parameters
    ----------
    path
        The folder of the store, or its URL in a bucket, such as `s3://bucket/birds.zarr`.

    Returns
    -------
    Store
        Its layers, moments and solutions, each read when it is asked for.

    Raises
    ------
    StoreNotFoundError
        Where there is no store.
    StoreDamagedError
        Where what it says of itself is damaged.

    See Also
    --------
    Run.store : the store of a run file.

    Examples
    --------
    >>> import torch, dalr_stream as ds
    >>> model = torch.nn.Sequential(torch.nn.Linear(6, 12), torch.nn.ReLU(), torch.nn.Linear(12, 3)).eval()
    >>> _ = ds.accumulate(model, [torch.randn(32, 6)], ds.watch(model, ["0"]), store="birds.zarr")
    >>> store = ds.open_store("birds.zarr")
    >>> store.layers, store.domains
    (('0',), ('target',))
    >>> ds.dalr(store.layer("0")).max_rank
    6
    """
    return Store(StoreView.open(place_of(path)))


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Store:
    """A store on disk, from `open_store`: its layers and domains, their moments, and what was solved from them.

    Nothing is changed on disk, and no record is read before it is asked for.

    Attributes
    ----------
    view
        The store as the steps of a run see it.
    """

    view: StoreView

    @property
    def root(self) -> Place:
        """The folder of the store, or its place in a bucket."""
        return self.view.root

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers whose inputs or outputs were watched, a convolution of several groups once."""
        watched = self.view.manifest.network.layers
        return layer_names(list(watched), watched)

    @property
    def domains(self) -> tuple[str, ...]:
        """The domains that were captured or accumulated."""
        return tuple(self.view.manifest.domains)

    def moments(self, domain: str = "target") -> LayerMoments:
        """Return the moments of a domain by stream; `.heldout` has those of the held-out rows, `.shards` the parts.

        Raises
        ------
        StoreNotFoundError
            Where there is no such domain.
        """
        self._require("domain", domain, self.domains)
        return self.view.statistics(domain).by_stream

    def layer(self, name: str, *, target: str = "target", source: str | None = None) -> Layer:
        """Return a layer with its weights and its moments on a domain, for any solver.

        Parameters
        ----------
        name
            The layer, one of `layers`.
        target
            The domain to solve on.
        source
            Another domain, for MoMaSP: the layer then has `source_nodes` too.

        Returns
        -------
        Layer
            What `dalr`, `spectral` and `solve` take.

        Raises
        ------
        LayerNotFoundError
            Where there is no such layer.
        StoreNotFoundError
            Where there is no such domain, or it has no moments of the layer.
        """
        self._require("layer", name, self.layers, LayerNotFoundError)
        for domain in (target, *([] if source is None else [source])):
            self._require("domain", domain, self.domains)
        return self.view.layer(name, target, source)

    def shape(self, layer: str) -> LayerShape:
        """Return the layer's shape, and what pruning its nodes saves in the layers that read them.

        Raises
        ------
        LayerNotFoundError
            Where there is no such layer.
        """
        self._require("layer", layer, self.layers, LayerNotFoundError)
        return self.view.shape(layer)

    def cross(self, domain: str = "target") -> LayerCrossMoments:
        """Return the cross moments of a domain by layer, where the store is of two networks (`accumulate_cross`).

        Raises
        ------
        StoreNotFoundError
            Where there is no such domain.
        """
        self._require("domain", domain, self.domains)
        return LayerCrossMoments.of(self.view.statistics(domain).by_stream, pairs_in(self.view.manifest.network.layers))

    def weights(self, layer: str) -> Weights:
        """Return weight (m, d) and bias (m,) of a layer; of two networks, those of the one that its inputs are from."""
        return stored_weights(self.root, self.view.manifest.network.layers, layer)

    def methods(self, layer: str) -> tuple[Method, ...]:
        """Return the methods by which the layer was solved.

        Raises
        ------
        LayerNotFoundError
            Where there is no such layer.
        """
        self._require("layer", layer, self.layers, LayerNotFoundError)
        return tuple(one for one in Method if all(path.is_dir() for path in self.view.solution_paths(layer, one)))

    def solution(self, layer: str, method: Method | str) -> Solution:
        """Return every rank of the factors, or every size of the selection, that a run solved for a layer.

        Raises
        ------
        StoreNotFoundError
            Where the layer was not solved by that method; names those it was solved by.
        InvalidInputError
            Where there is no method of that name.
        """
        named = parse_choice(Method, method, "method")
        self._require(f"solution of layer '{layer}' by", named.value, [one.value for one in self.methods(layer)])
        return self.view.solutions(layer, [named])[named]

    def rows(self, layer: str, *, domain: str = "target", holdout: HoldoutRule | None = None) -> StoredRows:
        """Return the training rows of a stream, where its activations were kept, for `dalr_from_rows`.

        Rows are held out by the rule that the moments were accumulated by, or by `holdout`.

        Raises
        ------
        StoreNotFoundError
            Where there is no such domain, or it has no rows of the stream.
        """
        self._require("domain", domain, self.domains)
        opened = ActivationStore(self.root)
        opened.rows(domain, layer)  # names the streams that there are
        return StoredRows(opened, domain, layer, holdout or self.view.holdout(domain, layer))

    def verify(self) -> Verification:
        """Read everything, and return what is whole and what is damaged, stale or lost."""
        from dalr_stream.engine.stores.verify import verify_store  # adds shards up again, which reading does without

        return verify_store(self.root)

    def __repr__(self) -> str:
        return repr(ActivationStore(self.root))

    def _repr_html_(self) -> str:
        return ActivationStore(self.root)._repr_html_()

    def _require(self, what: str, name: str, known: Iterable[str], error: type[Exception] = StoreNotFoundError) -> None:
        names = list(known)
        if name not in names:
            raise error(f"'{self.root}': there is no {what} '{name}': there is {', '.join(names) or 'none yet'}")
