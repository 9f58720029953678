"""The pages of documentation: their code runs, and the built site is whole."""
