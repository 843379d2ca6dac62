"""Drawing labels: a page on this machine, and the folder that it writes."""
