"""Pages, pictures and tables that show what a run found out.

`records.results.Results` is the only thing that comes in; `write.write_report` turns it into a folder, and
`terminal.print_headline` into a table at the end of a run.

    records/    what comes in: results, error bars, published numbers, the meaning of a metric
    cells       a table as a record, and how numbers are put into words
    style       colours and markers of methods
    claims      the headline in words
    tables/     what stands in which cell
    pictures/   what is drawn, which pictures a layer has, and their captions
    size_curve  a whole network at several budgets: its table, its picture, its files
    page        all of it as one HTML file

This package computes no statistics and reads no store: every number it shows is in the record. It imports neither
torch, dask nor zarr, and importing it (or `records`) does not import matplotlib.
"""
