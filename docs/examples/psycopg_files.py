"""psycopg over mutual TLS: libpq takes files instead of a context, and reads them anew for each connection.

Where somebody keeps the files already (`/etc/certs`), their names are all that is needed. An SVID from elsewhere is
kept in a folder with `write_svid`: best one in memory, such as a tmpfs that no other user may enter.

libpq checks chain and host name of the server, not its SPIFFE ID: with `verify-full` the server needs an SVID with its
DNS name, and whoever else gets an SVID with this name is the server, too. PostgreSQL in turn checks the client's chain
(`clientcert=verify-ca` in pg_hba.conf), and does not read SPIFFE IDs.
"""

import threading
from pathlib import Path

import psycopg

from istio_auth import Source, SVIDFiles, SVIDLayout, write_svid


def keep_written(source: Source, folder: str | Path) -> SVIDFiles:
    """Write the SVID now and after each rotation; the connections that are made then use the new one."""
    lock = threading.Lock()  # so that what is written last is the latest

    def write() -> SVIDFiles:
        with lock:
            return write_svid(folder, source.x509_context())

    source.subscribe(write)
    return write()


def connect(files: SVIDFiles, server: str) -> psycopg.Connection:
    """A connection by the SVID of now; `AsyncConnection.connect` and pools take the same parameters."""
    return psycopg.connect(
        server,
        sslmode="verify-full",
        sslcert=str(files.chain),
        sslkey=str(files.key),
        sslrootcert=str(files.roots),
    )


if __name__ == "__main__":
    with connect(SVIDFiles.in_folder(Path("/etc/certs"), SVIDLayout.ISTIO), "host=localhost port=5432") as connection:
        print(connection.execute("SELECT version()").fetchone())
