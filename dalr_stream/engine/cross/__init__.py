"""Two networks side by side: cross moments of what one reads and the other gives, and how far outputs are apart."""
