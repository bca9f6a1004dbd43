//! Section `[mqtt]`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::values::{ConfigError, demand, range, some_text, text};
use crate::transport::mqtt::Tls;
use crate::transport::mqtt::chunks::{MAX_PACKET, MIN_PACKET};
use crate::transport::preset::{Preset, Presets};

/// Largest password file.
const MAX_PASSWORD: u64 = 4096;

/// Section `[mqtt]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Mqtt {
    /// Whether to connect.
    pub enabled: bool,
    /// Host, address, or path of a Unix socket.
    #[serde(deserialize_with = "text")]
    pub host: String,
    /// TCP port; 8883 with `tls`, else 1883, when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Whether the connection is encrypted.
    pub tls: bool,
    /// PEM file with the authorities that may have signed the broker's certificate; `$CREDENTIALS_DIRECTORY/mqtt-ca` or the
    /// system's when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    /// PEM file with the certificate to show; `$CREDENTIALS_DIRECTORY/mqtt-cert` or none when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cert_file: Option<PathBuf>,
    /// PEM file with its key; `$CREDENTIALS_DIRECTORY/mqtt-key` when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_file: Option<PathBuf>,
    /// `emberd-<node>` when absent.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "some_text")]
    pub client_id: Option<String>,
    /// User name at the broker.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "some_text")]
    pub username: Option<String>,
    /// File whose first line is the password; `$CREDENTIALS_DIRECTORY/mqtt-password` when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password_file: Option<PathBuf>,
    /// First levels of all topics.
    #[serde(deserialize_with = "text")]
    pub base: String,
    /// The level after them; the host's name when absent.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "some_text")]
    pub node: Option<String>,
    /// The level of a tree that several daemons answer; none when absent.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "some_text")]
    pub share: Option<String>,
    /// Seconds between pings.
    pub keep_alive_s: u64,
    /// Largest packet that the broker may send.
    pub max_packet_bytes: u32,
    /// Seconds for which the broker keeps requests while the daemon is away.
    pub session_expiry_s: u32,
    /// Whether events (queued, started, prefill, ended) are published.
    pub events: bool,
    /// Milliseconds for which pieces of an answer are collected.
    pub batch_ms: u64,
    /// Seconds between statistics.
    pub stats_s: u64,
    /// Home Assistant's discovery prefix; empty leaves it alone.
    #[serde(deserialize_with = "text")]
    pub homeassistant: String,
    /// Clients that are treated in their own way.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub clients: Vec<Client>,
    /// Fields that requests need not bring, by the preset's name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub presets: BTreeMap<String, Map<String, Value>>,
}

/// An entry `[[mqtt.clients]]`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Client {
    /// Names as in `req/<client>/…`; one that ends with `*` stands for all that begin so.
    pub names: Vec<String>,
    /// Bytes of their buffer for a whole packet; answers come in pieces that fit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub packet_bytes: Option<usize>,
    /// Preset of requests that name none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preset: Option<String>,
}

impl Default for Mqtt {
    fn default() -> Mqtt {
        Mqtt {
            enabled: false,
            host: "localhost".into(),
            port: None,
            tls: false,
            ca_file: None,
            cert_file: None,
            key_file: None,
            client_id: None,
            username: None,
            password_file: None,
            base: "emberd".into(),
            node: None,
            share: None,
            keep_alive_s: 30,
            max_packet_bytes: 128 * 1024,
            session_expiry_s: 3600,
            events: true,
            batch_ms: 200,
            stats_s: 60,
            homeassistant: "homeassistant".into(),
            clients: Vec::new(),
            presets: BTreeMap::new(),
        }
    }
}

impl Mqtt {
    /// The topic level of this daemon.
    pub fn node(&self) -> String {
        let host = || {
            let name = nix::unistd::gethostname().unwrap_or_default();
            let safe = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' };
            name.to_string_lossy().chars().map(safe).take(64).collect()
        };
        self.node.clone().unwrap_or_else(host)
    }

    /// The client id at the broker.
    pub fn client_id(&self) -> String {
        self.client_id.clone().unwrap_or_else(|| format!("emberd-{}", self.node()))
    }

    /// The password: the first line of `password_file`, else of the credential `mqtt-password`, else none.
    ///
    /// # Errors
    ///
    /// When the file is named and cannot be read, or is no password.
    pub fn password(&self) -> Result<Option<String>, ConfigError> {
        let Some(path) = file(&self.password_file, "mqtt-password") else { return Ok(None) };
        let wrong = |reason: String| ConfigError::Password { path: path.clone(), reason };
        let file = std::fs::metadata(&path).map_err(|error| wrong(error.to_string()))?;
        if !file.is_file() || file.len() > MAX_PASSWORD {
            return Err(wrong(format!("expected a file of at most {MAX_PASSWORD} bytes")));
        }
        let text = std::fs::read_to_string(&path).map_err(|error| wrong(error.to_string()))?;
        match text.lines().next() {
            Some(password) if !password.is_empty() => Ok(Some(password.to_owned())),
            _ => Err(wrong("its first line is empty; expected the password there".into())),
        }
    }

    /// The TCP port.
    pub fn port(&self) -> u16 {
        self.port.unwrap_or(if self.tls { 8883 } else { 1883 })
    }

    /// The encryption; `None` without `tls`.
    ///
    /// # Errors
    ///
    /// When a file cannot be read or used, or one of certificate and key is missing.
    pub fn encryption(&self) -> Result<Option<Tls>, ConfigError> {
        if !self.tls {
            return Ok(None);
        }
        let ca = file(&self.ca_file, "mqtt-ca");
        let (cert, key) = (file(&self.cert_file, "mqtt-cert"), file(&self.key_file, "mqtt-key"));
        let identity = match (&cert, &key) {
            (Some(cert), Some(key)) => Some((cert.as_path(), key.as_path())),
            (None, None) => None,
            (Some(_), None) => return Err(missing("mqtt.key_file", "the key of cert_file")),
            (None, Some(_)) => return Err(missing("mqtt.cert_file", "the certificate of key_file")),
        };
        Ok(Some(Tls::load(ca.as_deref(), identity)?))
    }

    /// The presets, checked.
    ///
    /// # Errors
    ///
    /// Naming the first preset and field that is wrong.
    pub fn presets(&self) -> Result<Presets, ConfigError> {
        let preset = |(name, fields): (&String, &Map<String, Value>)| match Preset::new(fields.clone()) {
            Ok(preset) => Ok((name.clone(), preset)),
            Err(error) => Err(ConfigError::Preset { name: name.clone(), reason: error.message }),
        };
        self.presets.iter().map(preset).collect()
    }

    fn check_clients(&self) -> Result<(), ConfigError> {
        let presets = self.presets()?;
        for (at, client) in self.clients.iter().enumerate() {
            let key = |field: &str| format!("mqtt.clients[{at}].{field}");
            let level = |name: &String| {
                let start = name.strip_suffix('*').unwrap_or(name);
                (1..=128).contains(&name.len()) && !start.contains(['*', '/', '+', '#'])
            };
            let words = || "names of one topic level, which may end with *".into();
            demand(key("names"), !client.names.is_empty(), words, &"none")?;
            for name in &client.names {
                demand(key("names"), level(name), words, name)?;
            }
            if let Some(bytes) = client.packet_bytes {
                range(key("packet_bytes"), bytes, MIN_PACKET..=MAX_PACKET)?;
            }
            if let Some(name) = &client.preset {
                demand(key("preset"), presets.has(name), || "the name of a preset in [mqtt.presets]".into(), name)?;
            }
        }
        Ok(())
    }

    /// Checks every value's range.
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        range("mqtt.port", self.port(), 1..=u16::MAX)?;
        let files = [&self.ca_file, &self.cert_file, &self.key_file].into_iter().flatten().next();
        demand("mqtt.tls", self.tls || files.is_none(), || "true, since there are files for it".into(), &self.tls)?;
        let local = self.host.starts_with('/');
        demand("mqtt.tls", !(self.tls && local), || "false, since the broker is a Unix socket".into(), &self.tls)?;
        range("mqtt.keep_alive_s", self.keep_alive_s, 5..=3600)?;
        range("mqtt.max_packet_bytes", self.max_packet_bytes, 1024..=64 << 20)?;
        range("mqtt.stats_s", self.stats_s, 5..=86_400)?;
        let prefix = self.homeassistant.is_empty() || self.homeassistant.split('/').all(is_level);
        demand("mqtt.homeassistant", prefix, || "topic levels, or nothing".into(), &self.homeassistant)?;
        self.check_clients()?;
        range("mqtt.batch_ms", self.batch_ms, 10..=10_000)?;
        let host = (1..=255).contains(&self.host.len());
        demand("mqtt.host", host, || "a host name, an address or a path".into(), &self.host)?;
        let base = self.base.len() <= 128 && self.base.split('/').all(is_level);
        let words =
            || "topic levels of letters, digits, '.', '_', '-' with / between them, none of them \"req\"".to_owned();
        demand("mqtt.base", base, words, &self.base)?;
        let node = self.node();
        demand("mqtt.node", is_level(&node), || "one topic level, not \"req\"".into(), &node)?;
        if let Some(share) = &self.share {
            let words = || "one topic level, not \"req\" and not this daemon's node".into();
            demand("mqtt.share", is_level(share) && *share != node, words, share)?;
        }
        let client = self.client_id();
        demand("mqtt.client_id", (1..=128).contains(&client.len()), || "1 to 128 bytes".into(), &client)?;
        let named = self.password_file.is_none() || self.username.is_some();
        demand("mqtt.username", named, || "a name, since there is a password_file".into(), &"none")
    }
}

/// The file that the configuration names, else the credential that systemd passed.
fn file(named: &Option<PathBuf>, credential: &str) -> Option<PathBuf> {
    let passed = || {
        let path = Path::new(&std::env::var_os("CREDENTIALS_DIRECTORY")?).join(credential);
        path.exists().then_some(path)
    };
    named.clone().or_else(passed)
}

fn missing(key: &str, expected: &str) -> ConfigError {
    ConfigError::Range { key: key.into(), expected: expected.into(), found: "none".into() }
}

/// `req` is where requests come in: a level of that name would make answers look like requests.
fn is_level(level: &str) -> bool {
    let safe = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    (1..=64).contains(&level.len()) && level.chars().all(safe) && level != "req"
}
