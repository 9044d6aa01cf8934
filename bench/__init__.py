"""One script for each figure; each compares with a reference in the same run and prints the ratio."""
