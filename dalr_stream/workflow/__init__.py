"""The whole way, from a network and its data to a smaller network and a report; the only place where the rings meet.

    train -> capture -> accumulate -> solve -> compress -> finetune -> evaluate -> report

`run.Run` is the way as a run file describes it; the modules named after the steps are the same steps for use from
Python.
"""
