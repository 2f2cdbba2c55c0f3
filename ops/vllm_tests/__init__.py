"""vLLM's own API tests with their server fixture pointed at the gateway. `sources` gets the tests, `plugin`
redirects the fixture, `stand` starts the servers that it demands (`demand`), `run` runs modules, `outcome` judges
and reports."""
