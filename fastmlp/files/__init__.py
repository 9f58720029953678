"""Files of models: what they hold, and a container of arrays with a header."""
