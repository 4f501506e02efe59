"""`python -m dalr_stream`, and `torchrun -m dalr_stream`: the command line."""

from dalr_stream.cli.app import main

main()
