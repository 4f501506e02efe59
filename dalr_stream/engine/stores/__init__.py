"""What a store on disk can be asked: opened, merged, compared and verified."""
