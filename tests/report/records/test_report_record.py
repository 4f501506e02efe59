"""The record survives JSON, exactly."""

import dataclasses
import json

import pytest
import synthetic_results as synthetic

from dalr_stream.report.records.results import Results

WHOLE = synthetic.results()
STABLE = synthetic.results(
    *(
        dataclasses.replace(
            layer,
            stability=synthetic.stability(8, 12, enough=number == 0, selected=number == 0),
            finetuned_curves=layer.score_curves[:2],
        )
        for number, layer in enumerate(WHOLE.layers)
    )
)
BARE = synthetic.results(synthetic.layer("only", 48, 64, None, 0, heldout=False), decisions=(), caveats=(), sizes=())


@pytest.mark.parametrize("results", [WHOLE, BARE, STABLE], ids=["whole", "bare", "stable"])
def test_reading_gives_back_what_was_written(results, tmp_path):
    results.write(tmp_path / "results.json")
    assert Results.read(tmp_path / "results.json") == results


def test_the_file_is_plain_json_with_every_number(tmp_path):
    WHOLE.write(tmp_path / "results.json")
    plain = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert plain["layers"][0]["error_curves"][0]["heldout"] == list(WHOLE.layers[0].error_curves[0].heldout)
    assert plain["layers"][1]["score_curves"][3]["points"][2]["score"] == (
        WHOLE.layers[1].score_curves[3].points[2].score
    )
