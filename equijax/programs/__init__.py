"""The programs: each parses its options, calls the library and prints. Nowhere else is either done."""
