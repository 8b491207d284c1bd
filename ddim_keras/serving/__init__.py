"""A model for others: over HTTP, and on a page to play with. Both are optional extras."""
