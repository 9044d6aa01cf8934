"""The wire messages: each .proto with its generated modules beside it (`make protos` makes them again)."""
