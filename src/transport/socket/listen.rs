//! The socket: the service manager's, which owns its file; or one of our own, whose file is taken over only when nobody answers
//! behind it, and removed only when it is still this one.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::sys::socket::{getsockopt, sockopt};
use nix::unistd::{Gid, Group, chown};
use tokio::net::{UnixListener, UnixStream};

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Somebody answers behind the path.
    #[error("socket {0}: another process is listening there; stop it or choose another path")]
    InUse(PathBuf),
    /// The path belongs to something else.
    #[error("socket {0}: exists and is not a socket; remove it or choose another path")]
    NotASocket(PathBuf),
    /// The group does not exist.
    #[error("socket {path}: there is no group {group:?}; create it or change `group` in the section [socket]")]
    NoGroup {
        /// Path of the socket.
        path: PathBuf,
        /// The name that was looked up.
        group: String,
    },
    /// What the service manager passed is of no use.
    #[error("socket of the service manager: {0}; its socket unit needs one ListenStream= with an absolute path")]
    Passed(String),
    /// Anything else.
    #[error("socket {path}: cannot {action}: {source}")]
    Io {
        /// Path of the socket.
        path: PathBuf,
        /// What failed.
        action: &'static str,
        /// How it failed.
        source: io::Error,
    },
}

/// A listening socket. One of our own removes its file when it is dropped.
#[derive(Debug)]
pub struct Listener {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode of the file; `None` when the service manager owns it.
    identity: Option<(u64, u64)>,
}

impl Listener {
    /// Takes a socket that the service manager listens on already. Needs a runtime.
    ///
    /// # Errors
    ///
    /// It is no listening stream socket at a path.
    pub fn passed(socket: OwnedFd) -> Result<Listener, BindError> {
        let refused = |error: &dyn std::fmt::Display| BindError::Passed(error.to_string());
        let stream = getsockopt(&socket, sockopt::SockType) == Ok(nix::sys::socket::SockType::Stream);
        if !stream || getsockopt(&socket, sockopt::AcceptConn) != Ok(true) {
            return Err(refused(&"not a listening stream socket"));
        }
        let listener = std::os::unix::net::UnixListener::from(socket);
        let address = listener.local_addr().map_err(|_| refused(&"not a Unix socket"))?;
        let path = address.as_pathname().ok_or_else(|| refused(&"has no path"))?.to_owned();
        listener.set_nonblocking(true).map_err(|error| refused(&error))?;
        let listener = UnixListener::from_std(listener).map_err(|error| refused(&error))?;
        Ok(Listener { listener, path, identity: None })
    }

    /// Where clients find it.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Who may connect: the mode of the file, and the name of its group if it has one.
    ///
    /// # Errors
    ///
    /// When that cannot be found out.
    pub fn access(&self) -> io::Result<(u32, Option<String>)> {
        let file = fs::symlink_metadata(&self.path)?;
        let group = Group::from_gid(Gid::from_raw(file.gid()))?;
        Ok((file.permissions().mode() & 0o7777, group.map(|group| group.name)))
    }

    /// Listens at `path`, with `mode` and `group` in force before the first connection can be made. Needs a runtime.
    ///
    /// # Errors
    ///
    /// When the path is taken or the file cannot be made.
    pub fn bind(path: &Path, mode: u32, group: Option<&str>) -> Result<Listener, BindError> {
        let failed = |action: &'static str| move |source| BindError::Io { path: path.to_owned(), action, source };
        probe(path)?;
        let gid = match group {
            None => None,
            Some(name) => match Group::from_name(name).map_err(io::Error::from).map_err(failed("look up its group"))? {
                Some(group) => Some(group.gid),
                None => return Err(BindError::NoGroup { path: path.to_owned(), group: name.to_owned() }),
            },
        };
        // Made under another name and renamed when its permissions are right: there is no moment at which it is open
        // to everybody, and a stale file is replaced without a gap.
        let mut fresh = path.as_os_str().to_owned();
        fresh.push(".new");
        let fresh = PathBuf::from(fresh);
        probe(&fresh)?;
        let _ = fs::remove_file(&fresh);
        let listener = UnixListener::bind(&fresh).map_err(failed("listen (does the directory exist?)"))?;
        let finish = || {
            if gid.is_some() {
                chown(&fresh, None, gid).map_err(io::Error::from).map_err(failed("set its group"))?;
            }
            fs::set_permissions(&fresh, fs::Permissions::from_mode(mode)).map_err(failed("set its mode"))?;
            fs::rename(&fresh, path).map_err(failed("put it in its place"))?;
            fs::symlink_metadata(path).map_err(failed("look at it"))
        };
        match finish() {
            Ok(file) => Ok(Listener { listener, path: path.to_owned(), identity: Some((file.dev(), file.ino())) }),
            Err(error) => {
                let _ = fs::remove_file(&fresh);
                Err(error)
            }
        }
    }

    pub(super) async fn accept(&self) -> io::Result<UnixStream> {
        self.listener.accept().await.map(|(stream, _)| stream)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Ok(file) = fs::symlink_metadata(&self.path)
            && Some((file.dev(), file.ino())) == self.identity
        {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Whether `path` may be taken: nothing is there, or a socket behind which nobody listens.
fn probe(path: &Path) -> Result<(), BindError> {
    let failed = |action| move |source| BindError::Io { path: path.to_owned(), action, source };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed("look at it")(error)),
        Ok(file) if !file.file_type().is_socket() => return Err(BindError::NotASocket(path.to_owned())),
        Ok(_) => {}
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => Err(BindError::InUse(path.to_owned())),
        Err(error) if matches!(error.kind(), ErrorKind::ConnectionRefused | ErrorKind::NotFound) => Ok(()),
        Err(error) => Err(failed("find out whether it is in use")(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bind(path: &Path) -> Result<Listener, BindError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let _guard = runtime.enter();
        Listener::bind(path, 0o640, None)
    }

    #[test]
    fn a_stale_socket_is_replaced_and_the_own_one_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let listener = bind(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o640);
        drop(listener);
        assert!(!path.exists());
    }

    #[test]
    fn what_is_in_use_or_no_socket_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let other = std::os::unix::net::UnixListener::bind(&path).unwrap();
        assert!(matches!(bind(&path), Err(BindError::InUse(_))));
        drop(other);
        fs::remove_file(&path).unwrap();
        fs::write(&path, "precious").unwrap();
        assert!(matches!(bind(&path), Err(BindError::NotASocket(_))));
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }

    #[test]
    fn the_file_of_a_successor_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = bind(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let _successor = std::os::unix::net::UnixListener::bind(&path).unwrap();
        drop(listener);
        assert!(path.exists());
    }

    #[test]
    fn only_a_listening_unix_socket_is_taken_over_and_its_file_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let _guard = runtime.enter();
        let socket = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let listener = Listener::passed(socket.into()).unwrap();
        assert_eq!(listener.path(), path);
        drop(listener);
        assert!(path.exists());
        let refused = |socket: OwnedFd| Listener::passed(socket).unwrap_err().to_string();
        assert!(refused(fs::File::open(path.with_file_name(".")).unwrap().into()).contains("not a listening"));
        assert!(refused(std::os::unix::net::UnixStream::pair().unwrap().0.into()).contains("not a listening"));
        assert!(refused(std::net::TcpListener::bind("127.0.0.1:0").unwrap().into()).contains("not a Unix socket"));
    }

    #[test]
    fn an_unknown_group_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let error = Listener::bind(&dir.path().join("s"), 0o660, Some("no-such-group-here")).unwrap_err();
        assert!(error.to_string().contains("no-such-group-here"), "{error}");
    }
}
