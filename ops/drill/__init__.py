"""One fault per alert, made on purpose, to see each alert fire: `python -m ops.drill`. `faults` has them, `stage`
the processes, `rules` the alert rules with shorter windows."""
