"""The command line: commands, their flags, what is shown while they run, and how a measurement ends.

The nouns:

- command: `run ab sweep calibrate` measure, `report compare` read runs that are over. `main.py` has the list; a
  command's module is imported only when it is asked for, so that `--help` starts fast.
- parser: argparse with errors of one line, suggestions for misspelt names, and a short help.
- flags: `flags/` adds and reads the arguments that commands share, by vLLM's names where vLLM has them. Values
  that cannot be used are refused with what would be right, exit code 2.
- preflight: what is settled before the first request: the server answers, its model's name, enough descriptors.
- sizing: without --num-prompts, a probe of the server's pace, and the flags chosen by it.
- finish: the verdict on the measurement, the files, the summary on the terminal, the exit code.
- terminal: the live view, drawn by a process of its own, and output streams that never block a measurement.
- calibration server: the server of known schedule against which `calibrate` measures this program's error.

Nothing imports this room, so it re-exports nothing.
"""
