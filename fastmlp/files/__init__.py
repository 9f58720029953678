"""Files of models: a container of arrays with a header, and writing that a crash cannot tear."""
