from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class SignRequest(_message.Message):
    __slots__ = ("entries",)
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    entries: _containers.RepeatedCompositeFieldContainer[SignEntry]
    def __init__(self, entries: _Optional[_Iterable[_Union[SignEntry, _Mapping]]] = ...) -> None: ...

class SignEntry(_message.Message):
    __slots__ = ("spiffe_id", "csr", "ttl_seconds", "workload_token")
    SPIFFE_ID_FIELD_NUMBER: _ClassVar[int]
    CSR_FIELD_NUMBER: _ClassVar[int]
    TTL_SECONDS_FIELD_NUMBER: _ClassVar[int]
    WORKLOAD_TOKEN_FIELD_NUMBER: _ClassVar[int]
    spiffe_id: str
    csr: bytes
    ttl_seconds: int
    workload_token: str
    def __init__(self, spiffe_id: _Optional[str] = ..., csr: _Optional[bytes] = ..., ttl_seconds: _Optional[int] = ..., workload_token: _Optional[str] = ...) -> None: ...

class SignResponse(_message.Message):
    __slots__ = ("results",)
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[SignResult]
    def __init__(self, results: _Optional[_Iterable[_Union[SignResult, _Mapping]]] = ...) -> None: ...

class SignResult(_message.Message):
    __slots__ = ("issued", "refusal")
    ISSUED_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    issued: Issued
    refusal: Refusal
    def __init__(self, issued: _Optional[_Union[Issued, _Mapping]] = ..., refusal: _Optional[_Union[Refusal, _Mapping]] = ...) -> None: ...

class Issued(_message.Message):
    __slots__ = ("chain",)
    CHAIN_FIELD_NUMBER: _ClassVar[int]
    chain: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, chain: _Optional[_Iterable[bytes]] = ...) -> None: ...

class Refusal(_message.Message):
    __slots__ = ("code", "message", "retry_after_ms")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_MS_FIELD_NUMBER: _ClassVar[int]
    code: str
    message: str
    retry_after_ms: int
    def __init__(self, code: _Optional[str] = ..., message: _Optional[str] = ..., retry_after_ms: _Optional[int] = ...) -> None: ...

class SyncRequest(_message.Message):
    __slots__ = ("epoch", "revision", "bundle_sequence", "consumers", "consumers_current", "laggards", "agent_version")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    CONSUMERS_FIELD_NUMBER: _ClassVar[int]
    CONSUMERS_CURRENT_FIELD_NUMBER: _ClassVar[int]
    LAGGARDS_FIELD_NUMBER: _ClassVar[int]
    AGENT_VERSION_FIELD_NUMBER: _ClassVar[int]
    epoch: str
    revision: int
    bundle_sequence: int
    consumers: int
    consumers_current: int
    laggards: _containers.RepeatedScalarFieldContainer[str]
    agent_version: str
    def __init__(self, epoch: _Optional[str] = ..., revision: _Optional[int] = ..., bundle_sequence: _Optional[int] = ..., consumers: _Optional[int] = ..., consumers_current: _Optional[int] = ..., laggards: _Optional[_Iterable[str]] = ..., agent_version: _Optional[str] = ...) -> None: ...

class SyncResponse(_message.Message):
    __slots__ = ("bundles", "registrations")
    BUNDLES_FIELD_NUMBER: _ClassVar[int]
    REGISTRATIONS_FIELD_NUMBER: _ClassVar[int]
    bundles: _containers.RepeatedCompositeFieldContainer[Bundle]
    registrations: RegistrationDelta
    def __init__(self, bundles: _Optional[_Iterable[_Union[Bundle, _Mapping]]] = ..., registrations: _Optional[_Union[RegistrationDelta, _Mapping]] = ...) -> None: ...

class Bundle(_message.Message):
    __slots__ = ("trust_domain", "x509_authorities", "sequence", "refresh_hint_seconds")
    TRUST_DOMAIN_FIELD_NUMBER: _ClassVar[int]
    X509_AUTHORITIES_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    REFRESH_HINT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    trust_domain: str
    x509_authorities: _containers.RepeatedScalarFieldContainer[bytes]
    sequence: int
    refresh_hint_seconds: int
    def __init__(self, trust_domain: _Optional[str] = ..., x509_authorities: _Optional[_Iterable[bytes]] = ..., sequence: _Optional[int] = ..., refresh_hint_seconds: _Optional[int] = ...) -> None: ...

class RegistrationDelta(_message.Message):
    __slots__ = ("epoch", "from_revision", "to_revision", "put", "removed")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    FROM_REVISION_FIELD_NUMBER: _ClassVar[int]
    TO_REVISION_FIELD_NUMBER: _ClassVar[int]
    PUT_FIELD_NUMBER: _ClassVar[int]
    REMOVED_FIELD_NUMBER: _ClassVar[int]
    epoch: str
    from_revision: int
    to_revision: int
    put: _containers.RepeatedCompositeFieldContainer[Registration]
    removed: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, epoch: _Optional[str] = ..., from_revision: _Optional[int] = ..., to_revision: _Optional[int] = ..., put: _Optional[_Iterable[_Union[Registration, _Mapping]]] = ..., removed: _Optional[_Iterable[str]] = ...) -> None: ...

class Registration(_message.Message):
    __slots__ = ("key", "spiffe_id", "selectors", "ttl_seconds", "dns_names", "hint")
    KEY_FIELD_NUMBER: _ClassVar[int]
    SPIFFE_ID_FIELD_NUMBER: _ClassVar[int]
    SELECTORS_FIELD_NUMBER: _ClassVar[int]
    TTL_SECONDS_FIELD_NUMBER: _ClassVar[int]
    DNS_NAMES_FIELD_NUMBER: _ClassVar[int]
    HINT_FIELD_NUMBER: _ClassVar[int]
    key: str
    spiffe_id: str
    selectors: _containers.RepeatedScalarFieldContainer[str]
    ttl_seconds: int
    dns_names: _containers.RepeatedScalarFieldContainer[str]
    hint: str
    def __init__(self, key: _Optional[str] = ..., spiffe_id: _Optional[str] = ..., selectors: _Optional[_Iterable[str]] = ..., ttl_seconds: _Optional[int] = ..., dns_names: _Optional[_Iterable[str]] = ..., hint: _Optional[str] = ...) -> None: ...

class ChallengeRequest(_message.Message):
    __slots__ = ("spiffe_id",)
    SPIFFE_ID_FIELD_NUMBER: _ClassVar[int]
    spiffe_id: str
    def __init__(self, spiffe_id: _Optional[str] = ...) -> None: ...

class ChallengeResponse(_message.Message):
    __slots__ = ("nonce",)
    NONCE_FIELD_NUMBER: _ClassVar[int]
    nonce: bytes
    def __init__(self, nonce: _Optional[bytes] = ...) -> None: ...

class RecoverRequest(_message.Message):
    __slots__ = ("spiffe_id", "nonce", "node_key", "signature", "csr")
    SPIFFE_ID_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    NODE_KEY_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    CSR_FIELD_NUMBER: _ClassVar[int]
    spiffe_id: str
    nonce: bytes
    node_key: bytes
    signature: bytes
    csr: bytes
    def __init__(self, spiffe_id: _Optional[str] = ..., nonce: _Optional[bytes] = ..., node_key: _Optional[bytes] = ..., signature: _Optional[bytes] = ..., csr: _Optional[bytes] = ...) -> None: ...

class RecoverResponse(_message.Message):
    __slots__ = ("issued",)
    ISSUED_FIELD_NUMBER: _ClassVar[int]
    issued: Issued
    def __init__(self, issued: _Optional[_Union[Issued, _Mapping]] = ...) -> None: ...
