"""Finding out which layers suffer, and what helps them."""
