"""Istio's security policies as pure functions: parsed documents in, frozen values out.

A policy that can not be enforced whole is refused, with the path of the field, what is wrong and what to do: half a
policy would protect half. `istio_auth.envoy` compiles policies to Envoy's own filters.
"""
