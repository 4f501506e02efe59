"""Absolute ridges by method: each solution is solved with its own, and a run says which."""

import numpy as np

import dalr_stream as ds
from dalr_stream.engine.stores.store_view import StoreView
from dalr_stream.workflow.run import Run
from dalr_stream.workflow.runfile.config import load_config
from dalr_stream.workflow.runfile.project import Project
from dalr_stream.workflow.steps.provenance import _ridge_in_words

TWO = 'solve.methods=["dalr_published", "dalr_anchored_affine"]'


def test_a_method_is_solved_with_its_own_ridge_and_the_others_with_that_of_the_run(run_file):
    more = ["solve.ridge=0.5", "solve.ridge_absolute={ dalr_published = 25.0 }"]
    run = Run(Project(load_config(run_file, [TWO, "compress={}", *more]), run_file.parent))
    for step in (run.train, run.accumulate, run.solve):
        step()
    store = StoreView.open(run.project.store)
    problem = store.layer("fc1", "target", "source")
    found = store.solutions("fc1", [ds.Method.DALR_PUBLISHED, ds.Method.DALR_ANCHORED_AFFINE])
    published = ds.dalr(problem, ridge=ds.Ridge.absolute(25.0), variant="published", affine=False)
    anchored = ds.dalr(problem, ridge=0.5)
    np.testing.assert_array_equal(found[ds.Method.DALR_PUBLISHED].down, published.down)
    np.testing.assert_array_equal(found[ds.Method.DALR_ANCHORED_AFFINE].down, anchored.down)
    assert _ridge_in_words(run.project.config.solve) == "0.5, relative; DALR published 25.0, absolute"
