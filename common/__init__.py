"""Parts that every method shares. Imports nothing from methods, datamodules or experiments."""
