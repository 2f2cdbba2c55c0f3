"""Hostile input, measured: `blocking` sends the most expensive requests (`requests`) one at a time and reports how
long each blocks the event loop; `pressure` runs attacks (`attacks`) and reports memory and the service of other
clients."""
