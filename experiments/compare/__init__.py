"""`weakseg compare`: finished runs side by side, as tables, curves and pictures."""
