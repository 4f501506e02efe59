"""The run file: what it may say, what is wrong with it in one line each, and the Python it names."""
