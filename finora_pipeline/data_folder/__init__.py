"""The files of the data folder: their modes and locks, and what errors of its disk mean."""
