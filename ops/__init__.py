"""How the gateway is run and measured."""
