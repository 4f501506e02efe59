"""The verbs as Python functions, over every ring below: network and streaming meet here, and no run file is known."""
