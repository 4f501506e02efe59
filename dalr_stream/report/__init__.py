"""Pages, pictures and tables that show what a run found out.

`record.Results` is the only thing that comes in; `write.write_report` turns it into a folder, and
`terminal.print_headline` into a table at the end of a run. In between, each step is a record of its own:
`tables` says what stands in which cell, `plots` draws one figure each, `figures` decides which figures a layer has
and what their captions say, `claims` puts the headline into words, `page` sets all of it as one HTML file.

This package computes no statistics and reads no store: every number it shows is in the record. It imports neither
torch, dask nor zarr, and importing it (or `record`) does not import matplotlib.
"""
