"""The messages of AMCT's text files, and the modules generated from them."""
