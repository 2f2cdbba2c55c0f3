"""Mutation testing of the gateway: `mutants` and `operators` make the mutants, `reach` knows which tests run which
lines, `trial` runs them in a copy of the tree (`tree`), `session` keeps the verdicts."""
