"""One run in one process or in several: the job as a message, its share, the exact merge."""
