"""grpc.aio over TLS, with a certificate of the moment. Bytes go as they are: no time is spent on protobuf."""

from __future__ import annotations

import datetime
import ipaddress
import tempfile
from pathlib import Path
from typing import Any

import grpc  # pyrefly: ignore[missing-import]
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

METHOD = "/benchmark.Echo/Echo"
MAX_MESSAGE_BYTES = 4 * 2**20
OPTIONS = [("grpc.max_receive_message_length", MAX_MESSAGE_BYTES), ("grpc.use_local_subchannel_pool", 1)]


async def serve() -> str:
    async def echo(value: bytes, context: Any) -> bytes:
        return value

    key, certificate = _make_certificate()
    server = grpc.aio.server(options=OPTIONS)
    handler = grpc.unary_unary_rpc_method_handler(echo)
    service, _, method = METHOD[1:].partition("/")
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(service, {method: handler})])
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(key, certificate)]))
    await server.start()
    _kept.append(server)
    path = Path(tempfile.mkdtemp(), "certificate.pem")
    path.write_bytes(certificate)
    return f"127.0.0.1:{port} {path}"


async def connect(place: str) -> tuple[Any, Any]:
    address, _, path = place.partition(" ")
    credentials = grpc.ssl_channel_credentials(Path(path).read_bytes())
    channel = grpc.aio.secure_channel(address, credentials, options=OPTIONS)
    return channel.unary_unary(METHOD), channel.close


_kept: list[Any] = []  # a server that nobody holds ends


def _make_certificate() -> tuple[bytes, bytes]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "benchmark")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return pem, certificate.public_bytes(serialization.Encoding.PEM)
