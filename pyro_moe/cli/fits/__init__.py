"""Parts of the command ``fit``: fits by formula, and what is done with a fit."""
