"""The configuration languages of other systems, each turned into a recipe or a call of the public functions."""
