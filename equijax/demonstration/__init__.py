"""The demo: a MACE model converted, evaluated and fine-tuned, phonons before and after."""
