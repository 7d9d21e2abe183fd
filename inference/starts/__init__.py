"""Starts of training: clusterings of points, and several starts of EM."""
