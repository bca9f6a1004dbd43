//! TLS towards the broker.
//!
//! The client library's own TLS depends on a rustls-webpki with open advisories, and the library takes no stream that
//! others made. It does connect to Unix sockets. So the encrypted connection is made here, and the library gets at it
//! through a bridge: an abstract Unix socket that takes one connection, and only one of this very process.

use std::fmt::Display;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpStream, UnixListener};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

/// The system's certificate authorities (Debian package ca-certificates).
const SYSTEM_CA: &str = "/etc/ssl/certs/ca-certificates.crt";

/// Largest file of certificates.
const MAX_FILE: u64 = 4 << 20;

/// Time for the connection and the handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// A file that cannot be used, and why.
#[derive(Debug, thiserror::Error)]
#[error("{}: {reason}", .path.display())]
pub struct TlsError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub reason: String,
}

/// Whom to trust and who to be.
#[derive(Clone)]
pub struct Tls(Arc<ClientConfig>);

impl Tls {
    /// Trusts the authorities in `ca`, by default the system's, and shows the certificate in the first file of
    /// `identity` with the key in the second. All files are PEM.
    ///
    /// # Errors
    ///
    /// When a file cannot be read, or holds something else, or the key does not fit the certificate.
    pub fn load(ca: Option<&Path>, identity: Option<(&Path, &Path)>) -> Result<Tls, TlsError> {
        let ca = ca.unwrap_or(Path::new(SYSTEM_CA));
        let mut roots = RootCertStore::empty();
        let (added, _) = roots.add_parsable_certificates(certificates(ca)?);
        if added == 0 {
            return Err(wrong(ca, "none of its certificates can be used; expected those of certificate authorities"));
        }
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| wrong(ca, error))?
            .with_root_certificates(roots);
        let config = match identity {
            None => config.with_no_client_auth(),
            Some((cert, key)) => {
                let secret = PrivateKeyDer::from_pem_slice(&read(key)?)
                    .map_err(|error| wrong(key, format_args!("expected a private key in PEM: {error}")))?;
                config
                    .with_client_auth_cert(certificates(cert)?, secret)
                    .map_err(|error| wrong(key, format_args!("not the key of {}: {error}", cert.display())))?
            }
        };
        Ok(Tls(Arc::new(config)))
    }

    /// An encrypted connection to `host`, whose certificate has to be for that name or address.
    pub async fn connect(&self, host: &str, port: u16) -> Result<TlsStream<TcpStream>, String> {
        let name = ServerName::try_from(host.to_owned()).map_err(|error| format!("{host}: {error}"))?;
        let connecting = async {
            let stream = TcpStream::connect((host, port)).await.map_err(|error| error.to_string())?;
            stream.set_nodelay(true).map_err(|error| error.to_string())?;
            let connector = TlsConnector::from(Arc::clone(&self.0));
            connector.connect(name, stream).await.map_err(|error| format!("TLS: {error}"))
        };
        let late = |_| format!("no TLS connection within {} s", HANDSHAKE.as_secs());
        timeout(HANDSHAKE, connecting).await.map_err(late)?
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&read(path)?).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) => Err(wrong(path, "no certificate in it; expected PEM")),
        Err(error) => Err(wrong(path, format_args!("expected certificates in PEM: {error}"))),
    }
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    let file = std::fs::metadata(path).map_err(|error| wrong(path, error))?;
    if !file.is_file() || file.len() > MAX_FILE {
        return Err(wrong(path, format_args!("expected a file of at most {MAX_FILE} bytes")));
    }
    std::fs::read(path).map_err(|error| wrong(path, error))
}

fn wrong(path: &Path, reason: impl Display) -> TlsError {
    TlsError { path: path.to_owned(), reason: reason.to_string() }
}

/// Where the client library finds its end of one encrypted connection.
pub(super) struct Bridge {
    name: String,
    /// Why the encrypted side broke, when it did.
    failure: Arc<OnceLock<String>>,
}

impl Bridge {
    /// A bridge for one connection. Names are unique in this process; others cannot guess them, and gain nothing if they
    /// do.
    pub(super) fn new(number: u64) -> Bridge {
        let (process, random) = (std::process::id(), fastrand::u64(..));
        Bridge { name: format!("\0emberd-{process}-{number}-{random:016x}"), failure: Arc::default() }
    }

    /// The abstract socket, as a path.
    pub(super) fn path(&self) -> &str {
        &self.name
    }

    /// Opens the socket and carries what its one connection says to `far` and back, until one side ends.
    pub(super) fn open(&self, mut far: TlsStream<TcpStream>) -> io::Result<()> {
        let listener = UnixListener::bind(&self.name)?;
        let failure = Arc::clone(&self.failure);
        tokio::spawn(async move {
            let own = i32::try_from(std::process::id()).ok();
            let mut near = loop {
                let Ok((near, _)) = listener.accept().await else { return };
                // Anybody may connect to an abstract socket.
                if near.peer_cred().is_ok_and(|peer| own.is_some() && peer.pid() == own) {
                    break near;
                }
            };
            drop(listener);
            if let Err(error) = copy_bidirectional(&mut near, &mut far).await {
                let _ = failure.set(error.to_string());
            }
        });
        Ok(())
    }

    /// Why the encrypted side broke, when it did. A broker that does not like the client's certificate says so here, after
    /// the handshake.
    pub(super) fn failure(&self) -> Option<&str> {
        self.failure.get().map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_hold_something_else_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let garbage = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        for (path, words) in [
            (file("empty", ""), "no certificate"),
            (file("text", "hello"), "no certificate"),
            (file("cut", "-----BEGIN CERTIFICATE-----\nAA"), "in PEM"),
            (file("garbage", garbage), "none of its certificates"),
            (dir.path().join("absent"), "No such file"),
            (dir.path().to_owned(), "expected a file"),
        ] {
            let error = Tls::load(Some(&path), None).err().unwrap();
            assert_eq!(error.path, path);
            assert!(error.reason.contains(words), "{error}");
        }
    }
}
