"""Studies: what is run, how values were chosen on val, and the page that comes of it."""
