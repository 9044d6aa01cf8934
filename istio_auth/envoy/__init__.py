"""Envoy configuration as pure functions: a frozen spec in, plain JSON out.

`spec` says what a sidecar is, `bootstrap` turns that into the file Envoy starts with; each other module builds one part
of it. The treatment of modes and protocols is Istio's: filter chains by transport protocol and ALPN, TLS contexts with
certificates and roots by SDS. The result of every function here is accepted by `envoy --mode validate`.
"""
