"""Relaxation: symmetry-preserving and tight, or of many structures side by side."""
