"""Force constants, dynamical matrices, phonons and what follows from them, by exact derivatives of the energy."""
