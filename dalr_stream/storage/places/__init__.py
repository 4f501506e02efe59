"""Where something of a store lies, on disk or in a bucket, and what is done to either."""
