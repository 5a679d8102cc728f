"""weight."""
