"""Several runs: results of other load generators, runs side by side, repeats of one run."""
