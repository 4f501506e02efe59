"""What a layer is: its kind, its matrix, its groups, what identifies it, and why it cannot be compressed."""
