"""What the tests of the load generator share: runs on its own loop, scripted servers, made-up records."""
