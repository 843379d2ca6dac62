"""Pictures of kernels, energies and scores on synthetic scenes, for the methods' pages."""
