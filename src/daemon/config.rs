//! Configuration: built-in values < `/etc/emberd/config.toml` < `/etc/emberd/conf.d/*.toml` < `EMBERD__SECTION__KEY` <
//! flags. `--config FILE` takes the place of the files below `/etc`.

mod cache;
mod governor;
mod mqtt;
mod prefix;
mod sessions;
mod spool;
mod values;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use config::builder::DefaultState;
use config::{ConfigBuilder, Environment, File, FileFormat};
use serde::{Deserialize, Serialize};

pub use self::cache::Cache;
pub use self::governor::Governor;
pub use self::mqtt::{Client as MqttClient, Mqtt};
pub use self::prefix::Prefix;
pub use self::sessions::Sessions;
pub use self::spool::Spool;
pub use self::values::ConfigError;
pub(super) use self::values::state_directory;
use self::values::{demand, range, some_text, text};
use super::models;

/// Where the files are.
const ETC: &str = "/etc/emberd";

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
    /// Where requests over MQTT are kept.
    pub spool: Spool,
    /// Heat, power, memory and the load of others.
    pub governor: Governor,
    /// What is kept of earlier prompts.
    pub cache: Cache,
    /// Conversations that are continued.
    pub sessions: Sessions,
    /// The log.
    pub log: Log,
    /// Beginnings of prompts that are kept on disk.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub prefix: Vec<Prefix>,
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
    /// Pack a directory once, into the service's state directory, and serve that.
    pub pack: bool,
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
            pack: true,
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

impl Default for Log {
    fn default() -> Log {
        Log { level: "info".into() }
    }
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
        let kernels = ["auto", "scalar", "neon", "neondot", "avx2", "avx512vnni"];
        let known = kernels.contains(&c.model.kernels.as_str());
        demand("model.kernels", known, || kernels.join(", "), &c.model.kernels)?;
        self.mqtt.check()?;
        self.spool.check()?;
        self.governor.check()?;
        self.cache.check()?;
        self.sessions.check()?;
        prefix::check(&self.prefix)?;
        let octal = self.socket.mode_bits().is_some();
        demand("socket.mode", octal, || "an octal mode such as \"0660\"".into(), &c.socket.mode)?;
        let level = tracing_subscriber::EnvFilter::try_new(&c.log.level);
        demand("log.level", level.is_ok(), || "error, warn, info, debug, trace or directives".into(), &c.log.level)
    }

    /// The merged configuration as TOML. There are no secrets in it: passwords live in files of their own.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).unwrap_or_default()
    }
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

impl Model {
    /// Name under which the model is offered.
    pub fn name(&self) -> String {
        // Through a link, as `emberd model use` makes it, to the model itself.
        let path = self.path.canonicalize();
        let own = || models::name(path.as_deref().unwrap_or(&self.path));
        self.name.clone().or_else(own).unwrap_or_else(|| "model".into())
    }
}

impl Socket {
    /// The mode as a number.
    pub fn mode_bits(&self) -> Option<u32> {
        u32::from_str_radix(&self.mode, 8).ok().filter(|&mode| mode <= 0o777)
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
