"""The proof that a network gives the same block by block as it does whole, bit for bit, on one batch.

    whole           what it gives, and a digest of what each call gives that a later block starts from
    block by block  each block from what was kept before it, after another batch went through that block: what a module
                    leaves behind for later batches shows

It is compared where blocks begin and at the end, so that the error names the block. Cost: two forward passes of the
batch, and one of the other batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from dalr_stream.errors import DalrStreamError, UnsupportedLayerError
from dalr_stream.network.blocks.passes import BlockPasses
from dalr_stream.network.blocks.pieces import Pieces
from dalr_stream.network.capture import batches
from dalr_stream.network.capture.batches import call, inputs_copied, samples_in
from dalr_stream.network.capture.proofs.disturbed import with_sample_replaced
from dalr_stream.network.capture.reading import without_gradients
from dalr_stream.network.capture.resuming.calls import Call, calls_through, is_in
from dalr_stream.network.capture.resuming.given import Form, Spent, UsedError, mapped, tensors_in
from dalr_stream.network.capture.resuming.onward import ForwardRun
from dalr_stream.network.capture.resuming.overwriting import overwriting, spoiling
from dalr_stream.network.layers.identity import tensor_digest

_FAILS = "blocks: the network does not run block by block"
_OTHERWISE = "run it whole"
Given = Mapping[Call, Any]
Outputs = Sequence[str]


@dataclass(frozen=True, slots=True)
class Generations:
    """What a batch keeps between passes."""

    samples: int
    kept_bytes: tuple[int, ...]
    """By place between two passes: what is new there."""
    crossing_bytes: tuple[int, ...]
    """By place: what gradients may cross it through, those of one draw. Not what comes before the blocks."""

    @classmethod
    def of(cls, batch: Any, passes: BlockPasses, values: Iterable[tuple[Call, Any]]) -> Generations:
        """Look at what each call gave for a batch."""
        new, crossing = [0] * len(passes.places), [0] * len(passes.places)
        for way, value in values:
            tensors = list(tensors_in((value,)))
            size = sum(tensor.nbytes for tensor in tensors)
            real = sum(tensor.nbytes for tensor in tensors if tensor.is_floating_point())
            for number, place in enumerate(passes.places):
                run_in = place.get(way)
                new[number] += size if run_in == number else 0
                crossed = run_in is not None and (run_in > 0 or is_in(way[-1][0], passes.blocks[0]))
                crossing[number] += real if crossed else 0
        return cls(max(samples_in(batch), 1), tuple(new), tuple(crossing))

    @property
    def sample_bytes(self) -> int:
        """Of a sample, the most that is on disk at once: what is made before the blocks, and two generations."""
        pairs = [sum(self.kept_bytes[max(place - 1, 0) : place + 1]) for place in range(len(self.kept_bytes))]
        return -(-(max(pairs, default=0) + sum(self.kept_bytes[:1])) // self.samples)

    def sample_bytes_back(self, turn: int, draws: int) -> int:
        """Return it with the way back to pass `turn`: all that blocks from there on give, and gradients of two places.

        What a block gave has gone by the time that it is run on the way back.
        """
        first = max(turn - 1, 0)
        early = self.kept_bytes[0] if first and self.kept_bytes else 0
        held = [early + sum(self.kept_bytes[first:number]) for number in range(len(self.kept_bytes) + 1)]
        back = [
            held[number] + draws * sum(self.crossing_bytes[max(number - 1, 0) : number + 1])
            for number in range(turn, len(held))
        ]
        return max(self.sample_bytes, -(-max(back) // self.samples))


def prove_blocks(model: nn.Module, batch: Any, passes: BlockPasses, pieces: Pieces) -> Generations:
    """Return what is kept of a batch; raises UnsupportedLayerError where it gives something else than whole."""
    other = with_sample_replaced(batch, samples_in(batch))
    proof = _Proof(model, passes, pieces)
    with _explained(), without_gradients():
        with overwriting(model, proof.skipped) as found:
            expected, outputs = proof.whole(batch)
        proof.require_unused(found, batch, outputs)
        return proof.by_blocks([batch] if other is None else [other.batch, batch], expected, outputs)


def generations_of(model: nn.Module, batch: Any, passes: BlockPasses) -> Generations:
    """Return what a batch keeps between passes, and prove nothing; cost: a forward pass."""
    values: list[tuple[Call, Any]] = []
    wanted = {way for place in passes.places for way in place}

    def through(way: Call, forward: Any) -> Any:
        value = forward()
        if way in wanted:
            values.append((way, mapped(value, _without_numbers)))
        return value

    with without_gradients(), calls_through(model, through):
        call(model, inputs_copied(batch))
    return Generations.of(batch, passes, values)


@dataclass(frozen=True, slots=True)
class _Proof:
    model: nn.Module
    passes: BlockPasses
    pieces: Pieces

    @property
    def skipped(self) -> list[str]:
        """The modules that a later pass does not run again."""
        return list(dict.fromkeys(way[-1][0] for place in self.passes.places for way in place))

    def require_unused(self, overwriters: Mapping[str, None], batch: Any, outputs: Outputs) -> None:
        """Raise UnsupportedLayerError where what one of these overwrites in place is used by others; cost: a pass."""
        if not overwriters:
            return
        with spoiling(self.model, overwriters):
            _, found = self.whole(batch)
        if found != outputs:
            first, *others = overwriters
            more = f" (and {len(others)} more)" if others else ""
            raise UnsupportedLayerError(
                f"{_FAILS}: '{first}'{more} overwrites in place what it is given, and others use that after it: let it "
                f"give a tensor of its own, or {_OTHERWISE}"
            )

    def whole(self, batch: Any) -> tuple[dict[Call, str], Outputs]:
        """Return the digests of what later passes start from, and of what the network gives."""
        wanted = {way for place in self.passes.places for way, run_in in place.items() if run_in is not None}
        digests: dict[Call, str] = {}

        def through(way: Call, forward: Any) -> Any:
            value = forward()
            if way in wanted:
                digests[way] = _digest(value)
            return value

        with calls_through(self.model, through):
            outputs = call(self.model, inputs_copied(batch))
        return digests, _digests_of_outputs(outputs)

    def by_blocks(self, several: Sequence[Any], expected: Mapping[Call, str], outputs: Outputs) -> Generations:
        """Send batches through each block in turn, and compare the last of them."""
        states: list[Given] = [{} for _ in several]
        values: list[tuple[Call, Any]] = []
        for number in range(len(self.passes)):
            with self.pieces.present(self.passes.pieces[number]):
                runs = [self._run(number, batch, given) for batch, given in zip(several, states, strict=True)]
            states = [kept for kept, _ in runs]
            if number == len(self.passes) - 1:
                found = _digests_of_outputs(runs[-1][1])
                if len(found) != len(outputs) or any(a not in ("", b) for a, b in zip(found, outputs, strict=True)):
                    raise self._differs(number, "what the network gives")
                break
            new = {way: kept for way, kept in states[-1].items() if self.passes.places[number][way] == number}
            for way, kept in new.items():
                if _digest(kept) != expected[way]:
                    raise self._differs(number, f"what '{way[-1][0]}' gives")
            values += [(way, mapped(kept, _without_numbers)) for way, kept in new.items()]
        return Generations.of(several[-1], self.passes, values)

    def _run(self, number: int, batch: Any, given: Given) -> tuple[Given, Any]:
        last = number == len(self.passes) - 1
        run = ForwardRun(given, {} if last else self.passes.done[number], until_kept=True)
        outputs = run(self.model, batch)
        if not run.is_complete:
            raise self._differs(number, "which modules are called for another batch")
        return run.kept, outputs

    def _differs(self, number: int, what: str) -> UnsupportedLayerError:
        return UnsupportedLayerError(
            f"{_FAILS}: {what} is not the same in block '{self.passes.blocks[number][0]}' as in the whole network: "
            "something is random there, depends on earlier batches, passes the blocks by, or is overwritten in place "
            f"by one of them; {_OTHERWISE}"
        )


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except UsedError:
        raise UnsupportedLayerError(
            f"{_FAILS}: it asks for numbers that nothing was seen to use; {_OTHERWISE}"
        ) from None
    except DalrStreamError:
        raise
    except Exception as error:
        raise UnsupportedLayerError(f"{_FAILS}: {type(error).__name__}: {error}; {_OTHERWISE}") from error


def _without_numbers(tensor: torch.Tensor | Form) -> torch.Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")


def _digest(value: Any) -> str:
    return hashlib.sha256("".join(map(tensor_digest, tensors_in((value,)))).encode()).hexdigest()


def _digests_of_outputs(outputs: Any) -> Outputs:
    """Return a digest of each tensor that a network gives; nothing of one that an earlier pass gave, and is spent."""
    plain = dict(outputs) if hasattr(outputs, "items") else outputs
    return ["" if isinstance(tensor, Spent) else tensor_digest(tensor) for tensor in batches.tensors_in(plain)]
