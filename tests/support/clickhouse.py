"""A private ClickHouse server: real HTTP and native interfaces, in a directory, until a signal ends it.

    python clickhouse.py DIRECTORY HTTP_PORT TCP_PORT [USER]

The engine is that of the `chdb-core` package, whose local mode can listen like a server. With USER, the password on the
first line of standard input is asked of every client; without, user `default` needs none. `more_users.xml` in the directory
adds users. A killed server started again on the same directory finds its data.
"""

import hashlib
import os
import pathlib
import signal
import sys
from xml.sax.saxutils import escape

from chdb import _chdb

# One idle statement keeps the process alive: the server lives inside its query.
FOREVER = (
    "SYSTEM START LISTEN HTTP; SYSTEM START LISTEN TCP; "
    "SELECT count(sleepEachRow(1)) FROM numbers(1000000000) SETTINGS max_block_size = 1, "
    "function_sleep_max_microseconds_per_block = 0, max_rows_to_read = 0, max_execution_time = 0, "
    "log_queries = 0"
)

def write_private(path, text):
    path.touch(mode=0o600)
    path.write_text(text)


def main():
    directory, http_port, tcp_port = pathlib.Path(sys.argv[1]).resolve(), int(sys.argv[2]), int(sys.argv[3])
    user, secret = "default", "<no_password/>"
    if len(sys.argv) > 4:
        user = sys.argv[4]
        password = sys.stdin.readline().rstrip("\n")
        secret = f"<password_sha256_hex>{hashlib.sha256(password.encode()).hexdigest()}</password_sha256_hex>"
    os.chdir(directory)
    # Nothing outside of the directory is read or written.
    os.environ["HOME"] = str(directory)
    write_private(
        directory / "clickhouse-local.xml",
        "<clickhouse><listen_host>127.0.0.1</listen_host>"
        f"<http_port>{http_port}</http_port><tcp_port>{tcp_port}</tcp_port>"
        "<users_config>users.xml</users_config><timezone>UTC</timezone>"
        "<mark_cache_size>16777216</mark_cache_size><keep_alive_timeout>10</keep_alive_timeout>"
        f"<tmp_path>{escape(str(directory / 'tmp'))}/</tmp_path></clickhouse>\n",
    )
    rights = "<networks><ip>127.0.0.1</ip></networks><profile>default</profile><quota>default</quota>"
    everything = f"{rights}<access_management>1</access_management>"
    users = f"<default><no_password/>{everything}</default>"
    if user != "default":
        # The idle statement still runs as `default`, who then may do nothing else.
        listen = "<grants><query>GRANT SYSTEM LISTEN ON *.*</query></grants>"
        users = f"<default><no_password/>{rights}{listen}</default><{user}>{secret}{everything}</{user}>"
    more = directory / "more_users.xml"
    users += more.read_text() if more.exists() else ""
    write_private(
        directory / "users.xml",
        f"<clickhouse><profiles><default/></profiles><quotas><default/></quotas><users>{users}</users></clickhouse>\n",
    )
    # A stop is a clean end of the process; the engine's data is durable at every moment.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _chdb.query(FOREVER, "TabSeparated", path=str(directory / "data"))


main()
