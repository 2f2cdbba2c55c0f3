"""Prompt sets of our own writing, and the program that composes workloads of stated statistics from them."""
