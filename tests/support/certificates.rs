//! A certificate authority and a server certificate of its own, made by the `openssl` command.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::process::{give_to_unprivileged, run};

/// Files of one authority and one certificate for `localhost` and 127.0.0.1.
#[derive(Clone)]
pub struct Certificates {
    /// What a client trusts: `sslrootcert`.
    pub root: PathBuf,
    pub server: PathBuf,
    pub server_key: PathBuf,
}

impl Certificates {
    /// Makes them in `dir`. Two calls make two authorities, of which neither trusts the other.
    pub fn make(dir: &Path) -> Result<Certificates> {
        Certificates::make_for(dir, "DNS:localhost,IP:127.0.0.1")
    }

    /// The same for other names.
    pub fn make_for(dir: &Path, names: &str) -> Result<Certificates> {
        Certificates::make_until(dir, names, 30)
    }

    /// The same with a server certificate that ends in so many days.
    pub fn make_until(dir: &Path, names: &str, days: i32) -> Result<Certificates> {
        fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
        fs::write(dir.join("names"), format!("subjectAltName={names}\nbasicConstraints=CA:FALSE\n"))?;
        let openssl = |line: &str| run(Command::new("openssl").args(line.split(' ')).current_dir(dir));
        let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
        openssl(&format!("req -x509 {key} -keyout root.key -out root.crt -days 30 -subj /CN=tailwater-test-root"))?;
        openssl(&format!("req {key} -keyout server.key -out server.csr -subj /CN=localhost"))?;
        openssl(&format!(
            "x509 -req -in server.csr -CA root.crt -CAkey root.key -CAcreateserial -days {days} -extfile names -out server.crt"
        ))?;
        fs::set_permissions(dir.join("server.key"), fs::Permissions::from_mode(0o600))?;
        give_to_unprivileged(dir)?;
        Ok(Certificates {
            root: dir.join("root.crt"),
            server: dir.join("server.crt"),
            server_key: dir.join("server.key"),
        })
    }
}
