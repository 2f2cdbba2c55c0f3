"""The source of ops/grafana/gateway.json: `python -m ops.dashboard` writes it."""
