"""One handler for a group of endpoints. A handler takes a `RequestContext`, writes a response through the
`Responder` and returns what was sent; it raises GatewayError for what the client is to see."""
