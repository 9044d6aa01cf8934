"""Envoy configuration as pure functions: a frozen spec in, plain JSON out.

`spec` says what a sidecar is, `bootstrap` turns that into the file that Envoy starts with, and each other module builds
one part of it. Modes and protocols are treated as in Istio: filter chains by transport protocol and ALPN, TLS contexts
with certificates and roots by SDS. `envoy --mode validate` accepts what these functions make.
"""
