"""What users call: models, ensembles, fits, data, messages of errors, the command."""
