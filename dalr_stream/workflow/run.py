"""The whole way as a run file describes it, a step at a time; what has not changed is not done again.

    train -> capture -> accumulate -> solve -> compress -> finetune -> evaluate -> report

A step is run where its inputs changed (see `fingerprints`) and a later one needs it: when the activations were deleted
and their moments are there, nothing is captured again, and solving at other ridges or by other methods goes on from the
moments. A verb brings the steps after the moments up to date before it starts, so nothing is ever evaluated or reported
from another setting's solutions.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from dalr_stream.engine.capture import capture
from dalr_stream.engine.direct import accumulate_into
from dalr_stream.engine.estimate import require_disk
from dalr_stream.engine.from_store import accumulate_stored
from dalr_stream.engine.solve import solve_selection
from dalr_stream.engine.store_view import StoreView
from dalr_stream.errors import DalrStreamWarning, FingerprintMismatchError, StoreNotFoundError
from dalr_stream.network.layers.identity import fingerprint
from dalr_stream.network.saved import checkpoint
from dalr_stream.network.surgery.compress import compress, parameter_count
from dalr_stream.numerics.layer import Layer
from dalr_stream.numerics.methods import Family, Method
from dalr_stream.progress import Progress, Silent
from dalr_stream.report.write import write_report
from dalr_stream.storage.durable import explained, remove_folder
from dalr_stream.storage.lock import locked
from dalr_stream.storage.records import Solution, save_solution
from dalr_stream.storage.removal import forget_domain, forget_moments, forget_store
from dalr_stream.workflow.journal import FILE as JOURNAL
from dalr_stream.workflow.journal import Journal
from dalr_stream.workflow.kept_scores import KeptScores
from dalr_stream.workflow.results.published_file import Published
from dalr_stream.workflow.results.results import results
from dalr_stream.workflow.runfile.compress_section import Order
from dalr_stream.workflow.runfile.factories import importing_from
from dalr_stream.workflow.runfile.project import Project
from dalr_stream.workflow.runfile.sections import EvaluateSection
from dalr_stream.workflow.steps.finetune import fine_tune, options_of
from dalr_stream.workflow.steps.finetuned_scores import TunedScores
from dalr_stream.workflow.steps.named_sizes import require_choices
from dalr_stream.workflow.steps.provenance import saved_provenance
from dalr_stream.workflow.steps.scoring import Curves, Evaluation, Evaluator, Scoring, measure, score_on
from dalr_stream.workflow.steps.sequential import compress_in_sequence, forget_sequence
from dalr_stream.workflow.steps.sizing import Compression, decide
from dalr_stream.workflow.steps.solve import solve_as_asked
from dalr_stream.workflow.steps.stability import layer_stability, write_stability
from dalr_stream.workflow.steps.step import StepLog


class Run:
    """The steps of one project."""

    def __init__(self, project: Project, *, progress: Progress | None = None, fresh: bool = False) -> None:
        """`fresh` lets a store made from other weights or data be replaced."""
        self.project = project
        self._config = project.config
        self._progress: Progress = Journal(progress or Silent(), project.output / JOURNAL)
        self._fresh = fresh
        self._room_checked = False
        self._log = StepLog(project.output, project.config.plain())

    # --- the steps, in order -------------------------------------------------------------------------------------

    def all(self) -> Path:
        """Do every step whose inputs have changed; return the report."""
        self.train()
        self.accumulate()
        self.solve()
        self.compress()
        if self._config.finetune is not None:
            self.finetune()
        self.evaluate()
        return self.report()

    def train(self) -> None:
        """Train the network and keep its weights, where the run file says how."""
        train = self._config.network.train
        if train is None or self._skip("train"):
            return
        with importing_from(self.project.folder):
            model = self.project.build()
            options = self.project.train_options
            self.project.trainer(train)(model, seed=self._config.run.seed, report=self._progress.note, **options)
        checkpoint.save_weights(model.eval(), self.project.weights)
        self._done("train")

    def capture(self, domains: Sequence[str] | None = None) -> None:
        """Stream each domain's activations into the store."""
        for domain in domains or list(self._config.domains):
            step = f"capture {domain}"
            if self._skip(step):
                continue
            self._require_own_store()
            if self._fresh:
                forget_domain(self.project.store, domain)
            with importing_from(self.project.folder), _naming_fresh():
                capture(
                    self.project.network,
                    self.project.batches(domain),
                    self.project.watched,
                    self.project.store,
                    domain=domain,
                    rows=self.project.rows,
                    progress=self._progress,
                )
            self._done(step)

    def accumulate(self) -> None:
        """Turn each domain's activations into moments, capturing them first where they are wanted and not there."""
        stale = [domain for domain in self._config.domains if not self._skip(f"accumulate {domain}")]
        direct = not self._config.capture.keep_activations
        for domain in stale:
            if direct:
                self._fold_directly(domain)
                self._done(f"accumulate {domain}")
            else:
                self.capture([domain])
        if stale and not direct:
            self._fold_from_store(stale)

    def solve(self) -> None:
        """Solve every layer by every method, for every rank, from the moments in the store alone."""
        if self._skip("solve"):
            return
        store, section = StoreView.open(self.project.store), self._config.solve
        made_from, count = self.project.made_from("solve"), len(self.project.wanted(store))
        facts = {"made_from": made_from, "configuration": self._config.plain()}
        with locked(self.project.store), self._progress.track("solve", count, "solutions") as advance:
            problems = {layer: store.problem(layer, section.target, section.source) for layer in self.project.layers}
            for layer, problem in problems.items():
                with self._warnings_noted(layer):
                    for method in self.project.methods(store, layer):
                        save_solution(self.project.store, layer, self._solution(store, layer, problem, method), facts)
                        advance(1)
            self._keep_stability(store, problems)
        self._log.done("solve", made_from)

    def compress(self) -> None:
        """Save the network that the run file's [compress] section describes."""
        self._bring_up_to_date("solve")
        if not self._config.compress.wanted or self._skip("compress"):
            return
        store = StoreView.open(self.project.store)
        self._require_same_network(store)
        chosen, decided = decide(self.project, store, self._progress)
        self._progress.note(f"compress: {decided.rule}: {decided}")
        for note in decided.notes:
            self._progress.note(f"warning: {note}")
        small = compress(self.project.network, chosen, example=self.project.structure)
        if chosen and self._config.compress.order is Order.SEQUENTIAL:
            small, decided = compress_in_sequence(self.project, store, decided, small, self._progress)
        checkpoint.save(small, self.project.compressed, provenance=saved_provenance(self._config, store, decided))
        decided.write(self.project.compression)
        forget_sequence(self.project)
        before, after = parameter_count(self.project.network), parameter_count(small)
        kept = f"{before:,} -> {after:,} parameters ({after / before:.1%})"
        self._progress.note(f"compress: {kept}, in '{self.project.compressed}'")
        self._done("compress")

    def finetune(self) -> None:
        """Fine-tune the compressed network as [finetune] says, and save it; killed, it goes on after the last epoch."""
        section = self.project.finetune_section
        self._bring_up_to_date("solve", "compress")
        if self._skip("finetune"):
            return
        unfinished = self.project.unfinished / f"finetune-{self.project.made_from('finetune')[:16]}.safetensors"
        tuned, record = fine_tune(self.project, section, unfinished, self._progress)
        store, decided = StoreView.open(self.project.store), Compression.read(self.project.compression)
        facts = {"fine-tuning": record.plain, **saved_provenance(self._config, store, decided)}
        checkpoint.save(tuned, self.project.finetuned, provenance=facts)
        record.write(self.project.finetuning)
        self._progress.note(f"finetune: {record}, in '{self.project.finetuned}'")
        self._done("finetune")
        remove_folder(self.project.unfinished)

    def evaluate(self) -> Evaluation:
        """Score every method at every size, and the saved networks, on the test split."""
        section = self.project.evaluate_section
        self._bring_up_to_date("solve", "compress", "finetune")
        if self._skip("evaluate"):
            return Evaluation.read(self.project.evaluation)
        store = StoreView.open(self.project.store)
        self._require_same_network(store)
        networks = {"uncompressed": self.project.network}
        for label, folder in {"compressed": self.project.compressed, "fine-tuned": self.project.finetuned}.items():
            if folder in self.project.saved:
                decided = Compression.read(self.project.compression)
                networks[f"{label}: {decided}"] = checkpoint.load(folder, self.project.placed)
        score = score_on(self.project, "evaluate", section)
        with importing_from(self.project.folder):
            sizes = tuple(measure(label, model, score) for label, model in networks.items())
            curves, tuned = self._curves(store, section, score)
        baseline = float(sizes[0].accuracy or 0.0)
        found = Evaluation(section.metric, baseline, curves, sizes, self.project.unsupported_layers, tuned)
        found.write(self.project.evaluation)
        self._done("evaluate")
        remove_folder(self.project.unfinished)
        return found

    def report(self) -> Path:
        """Write the report and return its page."""
        self._bring_up_to_date("solve", "compress", "finetune", "evaluate")
        if not self._skip("report"):
            found = results(self.project)
            with explained(self.project.report_folder):
                write_report(found, self.project.report_folder)
            self._done("report")
        return self.project.report_folder / "report.html"

    def _curves(self, store: StoreView, section: EvaluateSection, score: Scoring) -> tuple[Curves, Curves]:
        """Score every network, and once more fine-tuned where that is asked for; killed, it goes on after the last."""
        kept = KeptScores(self.project.unfinished / f"evaluate-{self.project.made_from('evaluate')[:16]}.json")
        if kept:
            self._progress.note(f"evaluate: going on after {len(kept)} networks")
        methods = {layer: self.project.methods(store, layer) if section.ranks else () for layer in self.project.layers}
        evaluator = Evaluator.of(self.project, section, score, self._progress)
        plain = evaluator.curves(store, methods, kept)
        if not section.finetune:
            return plain, {}
        training = self.project.finetune_section
        batches = self.project.loader("finetune", training)
        tuned = TunedScores(evaluator, batches, options_of(self.project, training))
        return plain, evaluator.curves(store, methods, kept, tuned=tuned.from_layer)

    def _solution(self, store: StoreView, layer: str, problem: Layer, method: Method) -> Solution:
        if method.family is Family.LOW_RANK:
            return solve_as_asked(store, self._config.solve, layer, problem, method)
        return solve_selection(problem, method, self._config.solve.strength)

    def _keep_stability(self, store: StoreView, problems: Mapping[str, Layer]) -> None:
        """Solve again without each shard, where shards are kept, and say whether the samples are enough."""
        found = {
            layer: layer_stability(
                store, self._config.solve, layer, problem, store.solutions(layer, self.project.methods(store, layer))
            )
            for layer, problem in problems.items()
        }
        for layer, stability in found.items():
            if stability is not None:
                self._progress.note(f"layer '{layer}': {stability.answer}")
        write_stability(self.project.stability, found)

    # --- parts of steps ------------------------------------------------------------------------------------------

    def _fold_from_store(self, domains: Sequence[str]) -> None:
        with self.project.cluster() as cluster:
            if cluster is not None and cluster.dashboard:
                self._progress.note(f"dashboard: {cluster.dashboard}")
            for domain in domains:
                folding = self.project.folding(domain, cluster)
                accumulate_stored(self.project.store, domain=domain, folding=folding, progress=self._progress)
                self._done(f"accumulate {domain}")

    def _fold_directly(self, domain: str) -> None:
        self._require_own_store()
        if self._fresh:
            forget_moments(self.project.store, domain)
        with importing_from(self.project.folder), _naming_fresh():
            accumulate_into(
                self.project.store,
                self.project.network,
                self.project.batches(domain),
                self.project.watched,
                domain=domain,
                rows=self.project.rows,
                folding=self.project.folding(domain),
                progress=self._progress,
            )

    @contextmanager
    def _warnings_noted(self, layer: str) -> Iterator[None]:
        """Turn the package's warnings of a layer into notes, the first of each kind: other methods warn of the same."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", DalrStreamWarning)
            yield
        for warning in {warning.category: warning for warning in reversed(caught)}.values():
            self._progress.note(f"warning: layer '{layer}': {warning.message}")

    def _require_own_store(self) -> None:
        """Check the cost, and that the store belongs to this network, before anything is written."""
        self._require_room()
        try:
            self._require_same_network(StoreView.open(self.project.store))
        except StoreNotFoundError:
            return
        except FingerprintMismatchError as error:
            if not self._fresh:
                raise FingerprintMismatchError(
                    f"{error}: pass --fresh to replace the store, or choose another run.output"
                ) from None
            self._progress.note(f"replacing '{self.project.store}', which was made from another network")
            forget_store(self.project.store)

    def _require_same_network(self, store: StoreView) -> None:
        """Raise FingerprintMismatchError where the store was made from another network than this one."""
        made_from, here = store.manifest.network.fingerprint, fingerprint(self.project.network)
        if made_from != here:
            raise FingerprintMismatchError(
                f"'{store.root}' was made from the network with fingerprint {made_from[:12]}, this one has {here[:12]}"
            )

    def _require_room(self) -> None:
        """Say once what the run will cost, and refuse it where it would not fit."""
        if self._room_checked:
            return
        self._require_end()
        needed = self.project.estimate()
        needed.require()
        require_disk(needed, self.project.output)
        for said in self.project.unsupported_layers:
            self._progress.note(said)
        self._progress.note(
            f"cost: at most {needed.disk_bytes / 2**20:,.0f} MiB of disk, folding peaks at "
            f"{needed.peak_bytes / 2**20:,.0f} MiB"
        )
        self._room_checked = True

    def _require_end(self) -> None:
        """Refuse what only the last steps would find: choices, functions and files that do not fit."""
        require_choices(self.project, self.project.prospect(self.project.network))
        if self._config.report.published is not None:
            Published.read(self.project.folder / self._config.report.published)
        if self._config.evaluate is not None and self._config.evaluate.metric != "accuracy":
            self.project.metric("evaluate", self._config.evaluate)
        if self._config.finetune is not None:
            options_of(self.project, self._config.finetune)

    # --- what is fresh -------------------------------------------------------------------------------------------

    def _done(self, step: str) -> None:
        self._log.done(step, self.project.made_from(step))

    def _is_fresh(self, step: str) -> bool:
        return self._log.fresh(step, self.project.made_from(step), self.project.artefacts(step))

    def _skip(self, step: str) -> bool:
        fresh = self._is_fresh(step)
        if fresh:
            self._progress.note(f"{step}: nothing has changed, skipped")
        return fresh

    def _bring_up_to_date(self, *steps: str) -> None:
        """Do the steps before this one that are stale: nothing is ever made from another setting's solutions."""
        doing: dict[str, Callable[[], object]] = {"solve": self.solve, "evaluate": self.evaluate}
        if self._config.compress.wanted:
            doing["compress"] = self.compress
        if self._config.finetune is not None:
            doing["finetune"] = self.finetune
        for step in steps:
            if step in doing and not self._is_fresh(step):
                doing[step]()


@contextmanager
def _naming_fresh() -> Iterator[None]:
    """Add the command line's remedy to a mismatch."""
    try:
        yield
    except FingerprintMismatchError as error:
        raise FingerprintMismatchError(f"{error}; --fresh replaces what was captured") from None
