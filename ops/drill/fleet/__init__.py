"""Gateways that share generations, while their fleet is affected by faults: `python -m ops.drill.fleet`.

`stage` has the processes, `hosts` their network, `faults` what is done to them, `readers` the clients, `verdict`
how an answer is judged, `figures` what a fleet without faults costs."""
