"""What a bucket needs in place of locks, syncs and renames: a claim, tiles put once, and a sweep."""
