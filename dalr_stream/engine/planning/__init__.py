"""What a run will take of time, of the links between processes, and of a bucket, before it starts."""
