"""The lanes of scripts/faults: faults of real kernels, real filesystems and real processes."""
