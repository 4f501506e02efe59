"""Published tables on the page and as CSV: printed rows, ours under them, dashes for what was not tried."""

import csv
import dataclasses

import synthetic_results as synthetic

from dalr_stream.report.cells import BLANK, RowKind
from dalr_stream.report.records.published import PublishedColumn, PublishedRow, PublishedTable
from dalr_stream.report.records.results import Results
from dalr_stream.report.tables.published import published_tables
from dalr_stream.report.write import write_report

ACCURACY = PublishedTable(
    "Paper, Table 3: <birds>",
    "dim kept",
    (PublishedColumn("32"), PublishedColumn("64")),
    (
        PublishedRow("SVD", (0.1683, 0.3647), (0.25, None)),
        PublishedRow("SVD, fine-tuned", (0.5, 0.6), None),
        PublishedRow("uncompressed", (0.5573, 0.5573), (0.6, 0.6)),
    ),
)
NETWORKS = PublishedTable(
    "Paper, Table 10",
    "network",
    (PublishedColumn("parameters", share=False), PublishedColumn("accuracy, %")),
    (PublishedRow("theirs", (21.1e6, 0.5597), None), PublishedRow("fc6 DALR, 64", None, (1234567.0, 0.5))),
)
RESULTS = dataclasses.replace(synthetic.results(), published=(ACCURACY, NETWORKS))


def test_ours_stands_under_the_printed_row():
    first, second = published_tables(RESULTS)
    assert [row.label for row in first.rows] == [
        "SVD",
        "this run",
        "SVD, fine-tuned",
        "uncompressed",
        "this run",
    ]
    assert [cell.text for cell in first.rows[0].cells] == ["16.83", "36.47"]
    assert [cell.text for cell in first.rows[1].cells] == ["25.00", BLANK]
    assert [row.kind for row in first.rows[:2]] == [RowKind.REFERENCE, RowKind.BODY]
    assert [row.label for row in second.rows] == ["theirs", "this run: fc6 DALR, 64"]
    assert [cell.text for cell in second.rows[1].cells] == ["1,234,567", "50.00"]


def test_the_page_the_csv_files_and_the_record_hold_them(tmp_path):
    page = write_report(RESULTS, tmp_path).read_text()
    assert "Beside the published numbers" in page
    assert "Paper, Table 3: &lt;birds&gt;" in page
    with (tmp_path / "tables" / "published-1.csv").open() as file:
        lines = list(csv.reader(file))
    assert lines[:3] == [["dim_kept", "32", "64"], ["SVD", "0.1683", "0.3647"], ["this run: SVD", "0.25", ""]]
    assert Results.read(tmp_path / "results.json") == RESULTS


def test_a_run_without_published_numbers_says_nothing_of_them(tmp_path):
    assert "#published" not in write_report(synthetic.results(), tmp_path).read_text()
    assert not list(tmp_path.glob("tables/published*"))
