"""Clients against an engine, direct and through the gateway. `programs` has one program for each client, `clients`
the list of them, `install` their place, `stand` the engines and the gateway, `run` runs programs, `table` judges
and writes."""
