"""The demo: a data set of handwritten digits that travels with the package, and two small models."""
