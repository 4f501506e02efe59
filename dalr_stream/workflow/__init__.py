"""The run file: what it says (`runfile`), the steps that it asks for (`steps`), and what they have to show (`results`).

    train -> capture -> accumulate -> solve -> compress -> finetune -> evaluate -> report

`order` has the one list of steps, `run.Run` goes through it.
"""
