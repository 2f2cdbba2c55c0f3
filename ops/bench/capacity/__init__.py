"""How much one worker carries, in the form in which other gateways publish it: `streams` (1 to 1,024 streams
without a stall), `hits` (stored answers a second), `memory` (of each stream and of each queued request). `table`
formats the results."""
