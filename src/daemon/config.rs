//! Configuration: built-in values < `/etc/emberd/config.toml` < `/etc/emberd/conf.d/*.toml` < `EMBERD__SECTION__KEY` <
//! flags. `--config FILE` takes the place of the files below `/etc`.

use std::collections::HashMap;
use std::fmt::{Display, Write as _};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use config::builder::DefaultState;
use config::{ConfigBuilder, Environment, File, FileFormat};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

/// Where the files are.
const ETC: &str = "/etc/emberd";

/// Largest password file.
const MAX_PASSWORD: u64 = 4096;

/// Everything that can be set.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The model and how it runs.
    pub model: Model,
    /// The queue.
    pub queue: Queue,
    /// Bounds of a request.
    pub limits: Limits,
    /// The Unix socket.
    pub socket: Socket,
    /// The MQTT connection.
    pub mqtt: Mqtt,
    /// The log.
    pub log: Log,
}

/// Form of the KV cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kv {
    /// On the checkpoint's own int8 grids.
    #[default]
    Int8,
    /// Not quantized, four times the memory.
    F32,
}

/// Section `[model]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Model {
    /// A directory with config.json and model.safetensors, or a packed file.
    pub path: PathBuf,
    /// Name under which it is offered; the name of the directory or file when absent.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "some_text")]
    pub name: Option<String>,
    /// Form of the KV cache.
    pub kv: Kv,
    /// Tokens that prompt and answer share.
    pub context: usize,
    /// Threads that compute; 0 is one per CPU.
    pub threads: usize,
    /// `auto`, or the name of an instruction set.
    #[serde(deserialize_with = "text")]
    pub kernels: String,
}

/// Section `[queue]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Queue {
    /// Requests that may wait while one is running.
    pub depth: usize,
}

/// Section `[limits]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Most tokens of an answer.
    pub max_tokens: usize,
    /// Seconds for an answer, the queue included.
    pub request_timeout_s: u64,
    /// Most bytes of an HTTP body.
    pub body_bytes: usize,
    /// Seconds that the running request gets at shutdown.
    pub drain_s: u64,
}

/// Section `[socket]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Socket {
    /// The socket's file.
    pub path: PathBuf,
    /// Its mode, octal.
    #[serde(deserialize_with = "text")]
    pub mode: String,
    /// Its group; the daemon's own when absent.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "some_text")]
    pub group: Option<String>,
    /// Connections that are served at once.
    pub max_connections: usize,
    /// Seconds for a request's head, and again for its body.
    pub header_timeout_s: u64,
}

/// Section `[mqtt]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Mqtt {
    /// Whether to connect.
    pub enabled: bool,
    /// Host, address, or path of a Unix socket.
    #[serde(deserialize_with = "text")]
    pub host: String,
    /// TCP port.
    pub port: u16,
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
}

/// Section `[log]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// `error`, `warn`, `info`, `debug`, `trace`, or directives per module.
    #[serde(deserialize_with = "text")]
    pub level: String,
}

impl Default for Model {
    fn default() -> Model {
        Model {
            path: "/var/lib/emberd/model".into(),
            name: None,
            kv: Kv::Int8,
            context: 4096,
            threads: 0,
            kernels: "auto".into(),
        }
    }
}

impl Default for Queue {
    fn default() -> Queue {
        Queue { depth: 8 }
    }
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { max_tokens: 1024, request_timeout_s: 900, body_bytes: 256 * 1024, drain_s: 30 }
    }
}

impl Default for Socket {
    fn default() -> Socket {
        Socket {
            path: "/run/emberd/emberd.sock".into(),
            mode: "0660".into(),
            group: None,
            max_connections: 32,
            header_timeout_s: 10,
        }
    }
}

impl Default for Mqtt {
    fn default() -> Mqtt {
        Mqtt {
            enabled: false,
            host: "localhost".into(),
            port: 1883,
            client_id: None,
            username: None,
            password_file: None,
            base: "emberd".into(),
            node: None,
            keep_alive_s: 30,
            max_packet_bytes: 128 * 1024,
            session_expiry_s: 3600,
            events: true,
            batch_ms: 200,
        }
    }
}

impl Default for Log {
    fn default() -> Log {
        Log { level: "info".into() }
    }
}

/// What is wrong with the configuration, and where.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A layer cannot be read or has an unknown key or a value of the wrong type.
    #[error("configuration, {layer}: {reason}")]
    Layer {
        /// The file, or which other layer.
        layer: String,
        /// What is wrong there.
        reason: String,
    },
    /// A value is outside its range.
    #[error("configuration, {key}: expected {expected}, found {found}")]
    Range {
        /// `section.key`.
        key: &'static str,
        /// The range in words.
        expected: String,
        /// The value.
        found: String,
    },
    /// The password cannot be read.
    #[error("password of the MQTT connection, {}: {reason}", .path.display())]
    Password {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

/// Where the layers come from.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// Takes the place of the files below `/etc`.
    pub file: Option<PathBuf>,
    /// The environment; `None` is the process's own.
    pub environment: Option<HashMap<String, String>>,
    /// `section.key` and value, from flags.
    pub flags: Vec<(&'static str, String)>,
}

impl Config {
    /// Merges the layers and checks the result.
    ///
    /// # Errors
    ///
    /// Naming the first layer that is wrong, or the key whose value is out of range.
    pub fn load(sources: &Sources) -> Result<Config, ConfigError> {
        let layer = |layer: &str| {
            let layer = layer.to_owned();
            move |error: config::ConfigError| ConfigError::Layer { layer, reason: error.to_string() }
        };
        let defaults = config::Config::try_from(&Config::default()).map_err(layer("built-in values"))?;
        let mut builder = config::Config::builder().add_source(defaults);
        // One layer after the other, so that the first one that cannot be read is the one at fault.
        for path in files(sources)? {
            let name = path.display().to_string();
            builder = builder.add_source(File::from(path).format(FileFormat::Toml));
            read(&builder).map_err(layer(&name))?;
        }
        let environment = Environment::with_prefix("EMBERD").prefix_separator("__").separator("__");
        builder = builder.add_source(environment.source(sources.environment.clone()));
        let mut merged = read(&builder).map_err(layer("environment (EMBERD__SECTION__KEY)"))?;
        for (key, value) in &sources.flags {
            builder = builder.set_override(key, value.as_str()).map_err(layer("flags"))?;
            merged = read(&builder).map_err(layer("flags"))?;
        }
        merged.check()?;
        Ok(merged)
    }

    fn check(&self) -> Result<(), ConfigError> {
        let c = self;
        range("model.context", c.model.context, 16..=1 << 20)?;
        range("model.threads", c.model.threads, 0..=256)?;
        range("queue.depth", c.queue.depth, 0..=200)?;
        range("limits.max_tokens", c.limits.max_tokens, 1..=1 << 20)?;
        range("limits.request_timeout_s", c.limits.request_timeout_s, 1..=86_400)?;
        range("limits.body_bytes", c.limits.body_bytes, 1024..=64 << 20)?;
        range("limits.drain_s", c.limits.drain_s, 0..=3600)?;
        range("socket.max_connections", c.socket.max_connections, 1..=1000)?;
        range("socket.header_timeout_s", c.socket.header_timeout_s, 1..=600)?;
        range("mqtt.port", c.mqtt.port, 1..=u16::MAX)?;
        range("mqtt.keep_alive_s", c.mqtt.keep_alive_s, 5..=3600)?;
        range("mqtt.max_packet_bytes", c.mqtt.max_packet_bytes, 1024..=64 << 20)?;
        range("mqtt.batch_ms", c.mqtt.batch_ms, 10..=10_000)?;
        let kernels = ["auto", "scalar", "neon", "neondot", "avx2", "avx512vnni"];
        let known = kernels.contains(&c.model.kernels.as_str());
        demand("model.kernels", known, || kernels.join(", "), &c.model.kernels)?;
        let octal = self.socket.mode_bits().is_some();
        demand("socket.mode", octal, || "an octal mode such as \"0660\"".into(), &c.socket.mode)?;
        let host = (1..=255).contains(&c.mqtt.host.len());
        demand("mqtt.host", host, || "a host name, an address or a path".into(), &c.mqtt.host)?;
        let base = c.mqtt.base.len() <= 128 && c.mqtt.base.split('/').all(is_level);
        let words =
            || "topic levels of letters, digits, '.', '_', '-' with / between them, none of them \"req\"".to_owned();
        demand("mqtt.base", base, words, &c.mqtt.base)?;
        let node = c.mqtt.node();
        demand("mqtt.node", is_level(&node), || "one topic level, not \"req\"".into(), &node)?;
        let client = c.mqtt.client_id();
        demand("mqtt.client_id", (1..=128).contains(&client.len()), || "1 to 128 bytes".into(), &client)?;
        let named = c.mqtt.password_file.is_none() || c.mqtt.username.is_some();
        demand("mqtt.username", named, || "a name, since there is a password_file".into(), &"none")?;
        let level = tracing_subscriber::EnvFilter::try_new(&c.log.level);
        demand("log.level", level.is_ok(), || "error, warn, info, debug, trace or directives".into(), &c.log.level)
    }

    /// The merged configuration as TOML. There are no secrets in it: passwords live in files of their own.
    pub fn to_toml(&self) -> String {
        let mut out = String::new();
        let Ok(Value::Object(sections)) = serde_json::to_value(self) else { return out };
        for (section, keys) in &sections {
            let _ = writeln!(out, "{}[{section}]", if out.is_empty() { "" } else { "\n" });
            // JSON's strings, numbers and booleans are TOML's.
            for (key, value) in keys.as_object().into_iter().flatten() {
                let _ = writeln!(out, "{key} = {value}");
            }
        }
        out
    }
}

/// A string that was written as one: config-rs would also take a number, and `mode = 0o660` would become "432".
fn text<'de, D: Deserializer<'de>>(value: D) -> Result<String, D::Error> {
    match Value::deserialize(value)? {
        Value::String(text) => Ok(text),
        other => Err(serde::de::Error::custom(format_args!("invalid type: {other}, expected a string in quotes"))),
    }
}

fn some_text<'de, D: Deserializer<'de>>(value: D) -> Result<Option<String>, D::Error> {
    text(value).map(Some)
}

fn read(builder: &ConfigBuilder<DefaultState>) -> Result<Config, config::ConfigError> {
    builder.build_cloned()?.try_deserialize()
}

fn files(sources: &Sources) -> Result<Vec<PathBuf>, ConfigError> {
    if let Some(file) = &sources.file {
        return Ok(vec![file.clone()]);
    }
    let unreadable = |path: &Path, error: std::io::Error| ConfigError::Layer {
        layer: path.display().to_string(),
        reason: error.to_string(),
    };
    let main = Path::new(ETC).join("config.toml");
    let mut files = Vec::new();
    if main.try_exists().map_err(|error| unreadable(&main, error))? {
        files.push(main);
    }
    let drop_ins = Path::new(ETC).join("conf.d");
    let mut found = Vec::new();
    match std::fs::read_dir(&drop_ins) {
        Ok(entries) => {
            for entry in entries {
                let path = entry.map_err(|error| unreadable(&drop_ins, error))?.path();
                if path.extension().is_some_and(|extension| extension == "toml") {
                    found.push(path);
                }
            }
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(unreadable(&drop_ins, error)),
    }
    found.sort();
    files.extend(found);
    Ok(files)
}

fn range<T: PartialOrd + Display>(key: &'static str, value: T, range: RangeInclusive<T>) -> Result<(), ConfigError> {
    demand(key, range.contains(&value), || format!("{} to {}", range.start(), range.end()), &value)
}

fn demand(
    key: &'static str,
    holds: bool,
    expected: impl Fn() -> String,
    found: &dyn Display,
) -> Result<(), ConfigError> {
    if holds {
        return Ok(());
    }
    Err(ConfigError::Range { key, expected: expected(), found: format!("{found:?}", found = found.to_string()) })
}

/// `req` is where requests come in: a level of that name would make answers look like requests.
fn is_level(level: &str) -> bool {
    let safe = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    (1..=64).contains(&level.len()) && level.chars().all(safe) && level != "req"
}

impl Model {
    /// Name under which the model is offered.
    pub fn name(&self) -> String {
        let own = || {
            let packed = self.path.extension().is_some_and(|extension| extension == "ember");
            let name = if packed { self.path.file_stem() } else { self.path.file_name() };
            Some(name?.to_string_lossy().into_owned())
        };
        self.name.clone().or_else(own).unwrap_or_else(|| "model".into())
    }
}

impl Socket {
    /// The mode as a number.
    pub fn mode_bits(&self) -> Option<u32> {
        u32::from_str_radix(&self.mode, 8).ok().filter(|&mode| mode <= 0o777)
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
        let credential = || {
            let path = Path::new(&std::env::var_os("CREDENTIALS_DIRECTORY")?).join("mqtt-password");
            path.exists().then_some(path)
        };
        let Some(path) = self.password_file.clone().or_else(credential) else { return Ok(None) };
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
}

impl Limits {
    /// Time for an answer, the queue included.
    pub fn request_timeout(&self) -> Duration {
        Duration::from_secs(self.request_timeout_s)
    }

    /// Time that the running request gets at shutdown.
    pub fn drain(&self) -> Duration {
        Duration::from_secs(self.drain_s)
    }
}
