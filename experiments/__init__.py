"""Running, comparing and loading: the only package that knows methods and data modules."""
