//! A mosquitto for one test.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};

use super::wait_for;

/// A TCP port that nobody uses now.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A broker of one's own.
pub struct Broker {
    pub child: Child,
    pub port: u16,
    pub dir: tempfile::TempDir,
}

impl Broker {
    pub fn start() -> Broker {
        Broker::start_at(free_port(), "")
    }

    pub fn start_at(port: u16, more: &str) -> Broker {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("mosquitto.conf");
        fs::write(&file, format!("listener {port} 127.0.0.1\nallow_anonymous true\npersistence false\n{more}\n"))
            .unwrap();
        let mut command = Command::new("/usr/sbin/mosquitto");
        let child = command.arg("-c").arg(file).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let child = child.expect("mosquitto is needed for this test (Debian package mosquitto)");
        wait_for("mosquitto", || TcpStream::connect(("127.0.0.1", port)).ok());
        Broker { child, port, dir }
    }

    /// Settings of a daemon that uses this broker.
    pub fn settings(&self, more: &str) -> String {
        format!(
            "[mqtt]\nenabled = true\nhost = \"127.0.0.1\"\nport = {}\nnode = \"n\"\nbatch_ms = 20\n{more}\n",
            self.port
        )
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = &self.dir;
    }
}
