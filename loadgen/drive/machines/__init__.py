"""One run shared by several machines: machine 0 leads. It compares the clocks, gives the common start, and
receives the others' records after the run."""
