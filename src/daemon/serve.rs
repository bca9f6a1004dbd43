//! Start-up, read downwards, and shutdown.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use sd_notify::NotifyState;
use serde_json::json;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tracing::{error, info, warn};

use super::config::{self, Config, ConfigError};
use super::error::Error;
use super::reload;
use super::systemd::{LOADING, NEWS, PATIENCE, Watchdog, passed_socket, patience, tell};
use crate::governor::policy::{Need, Settings};
use crate::governor::sensors::Sensors;
use crate::governor::{Decision, Governor, Handle};
use crate::scheduler::backend::{Backend, ModelInfo};
use crate::scheduler::{Options, Scheduler};
use crate::spool;
use crate::transport::sessions::{self, Sessions};
use crate::transport::socket::{BindError, Limits, Listener, Service};
use crate::transport::wire::Topics;
use crate::transport::{mqtt, socket};

/// Time that HTTP clients get to read the end of their answers at shutdown.
const GRACE: Duration = Duration::from_secs(5);

/// Reads the configuration again, and applies what belongs to the process, as the level of its log.
pub type Reread = Box<dyn Fn() -> Result<Config, ConfigError> + Send>;

/// Runs the daemon until a signal ends it. `reread` is called on SIGHUP; `load` makes the model on the engine thread.
///
/// # Errors
///
/// When it cannot start, or the engine ends unexpectedly, or a second signal cuts the shutdown short.
pub fn serve<F>(config: Config, reread: Reread, load: F) -> Result<(), Error>
where
    F: FnOnce(&Config, &Handle) -> Result<Box<dyn Backend>, String> + Send + 'static,
{
    let io = std::thread::Builder::new().name("io".into()).spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| Error::System("cannot start the I/O runtime", error))?;
        let result = runtime.block_on(run(config, reread, load));
        // Does not wait for a name lookup in progress.
        runtime.shutdown_background();
        result
    });
    let io = io.map_err(|error| Error::System("cannot start the thread io", error))?;
    io.join().unwrap_or_else(|_| Err(Error::System("thread io", io::Error::other("panicked"))))
}

async fn run<F>(mut config: Config, reread: Reread, load: F) -> Result<(), Error>
where
    F: FnOnce(&Config, &Handle) -> Result<Box<dyn Backend>, String> + Send + 'static,
{
    let mut signals = Signals::new().map_err(|error| Error::System("cannot handle signals", error))?;
    let (password, tls) = (config.mqtt.password()?, config.mqtt.encryption()?);
    let (say_rules, heard_rules) = watch::channel(rules(&config)?);
    let listener = listen(&config.socket)?;

    tell(&[NotifyState::Status("loading the model")]);
    let Some((engine, model)) = Engine::start(&config, load, &mut signals).await? else { return Ok(()) };
    info!(
        version = env!("CARGO_PKG_VERSION"),
        model = model.name, context = model.context, kernels = model.kernels, threads = model.threads, kv = model.kv,
        socket = %listener.path().display(),
        "serving"
    );

    let chunk = engine.scheduler.governor().decision().chunk;
    let mut governor = govern(&config, &engine.scheduler, &model, chunk)?;
    let (stop, stopped) = watch::channel(false);
    let (connected, mut mqtt_state) = watch::channel(false);
    let mut doors = JoinSet::new();
    let known = heard_rules.clone();
    let presets = move || known.borrow().presets.clone();
    let sessions = Arc::new(Sessions::new(session_limits(&config)));
    let limits = socket_limits(&config);
    let service = Service::new(engine.scheduler.clone(), model.clone(), limits, Arc::clone(&sessions), presets);
    doors.spawn(socket::serve(listener, service, stopped.clone(), GRACE));
    if config.mqtt.enabled {
        let options = mqtt::Options { password, tls, rules: heard_rules, ..mqtt_options(&config, &model, sessions) };
        doors.spawn(mqtt::run(options, engine.scheduler.clone(), stopped, connected));
    }
    tell(&[NotifyState::Ready, NotifyState::Status(status(&config, false))]);

    let mut watchdog = Watchdog::new();
    let Engine { scheduler, thread, mut exited } = engine;
    let mut draining = false;
    loop {
        tokio::select! {
            _ = &mut exited => break,
            signal = signals.next() => match signal {
                Asked::Reload if draining => {}
                Asked::Reload => match reread().and_then(|new| Ok((rules(&new)?, new))) {
                    Ok((rules, new)) => {
                        let changes = reload::take_over(&mut config, &new);
                        if changes.touch("governor") {
                            // The old one ends before the new one decides.
                            drop(governor.take());
                            governor = govern(&config, &scheduler, &model, chunk)?;
                        }
                        if changes.touch("mqtt") {
                            let _ = say_rules.send(rules);
                        }
                        info!(changed = ?changes.live, after_restart = ?changes.waiting, "configuration read again");
                    }
                    Err(reason) => error!(%reason, "configuration not read again; the old one stays"),
                },
                Asked::Stop if draining => {
                    warn!("second signal: ending without waiting");
                    return Err(Error::Interrupted);
                }
                Asked::Stop => {
                    draining = true;
                    info!(limit_s = config.limits.drain_s, "shutting down");
                    // First, so that who hears of the end sees no waiting request start any more.
                    let limit = config.limits.drain();
                    scheduler.drain(limit);
                    let status = NotifyState::Status("finishing the running request");
                    // And a while for the answer, and for what has to be written.
                    tell(&[NotifyState::Stopping, status, patience(limit + PATIENCE)]);
                }
            },
            () = watchdog.due() => watchdog.feed(scheduler.heartbeat()),
            Ok(()) = mqtt_state.changed() => {
                let up = *mqtt_state.borrow_and_update();
                tell(&[NotifyState::Status(status(&config, up))]);
            }
        }
    }
    let died = thread.join().is_err() || !draining;
    drop(governor);
    let _ = stop.send(true);
    tokio::select! {
        () = async { while doors.join_next().await.is_some() {} } => {}
        () = signals.stop() => return Err(Error::Interrupted),
    }
    if died {
        error!("the engine thread ended unexpectedly");
        return Err(Error::EngineDied);
    }
    info!("stopped");
    Ok(())
}

/// The engine thread and what is needed to follow it.
struct Engine {
    scheduler: Scheduler,
    thread: JoinHandle<()>,
    exited: oneshot::Receiver<()>,
}

impl Engine {
    /// Starts the thread and waits for the model; `None` when a signal came first. A load cannot be interrupted, so the
    /// thread is left to the end of the process then.
    async fn start<F>(config: &Config, load: F, signals: &mut Signals) -> Result<Option<(Engine, ModelInfo)>, Error>
    where
        F: FnOnce(&Config, &Handle) -> Result<Box<dyn Backend>, String> + Send + 'static,
    {
        let options = Options { depth: config.queue.depth, max_tokens: config.limits.max_tokens };
        let (ready, mut loaded) = oneshot::channel();
        let (ended, exited) = oneshot::channel();
        let (own, governor) = (config.clone(), Handle::new(Decision::unlimited(1, 1)));
        let known = governor.clone();
        // Nobody listens any more when a signal came first.
        let ready = move |result| {
            let _ = ready.send(result);
        };
        let ended = move || {
            let _ = ended.send(());
        };
        let (scheduler, thread) = Scheduler::start(options, governor, move || load(&own, &known), ready, ended)
            .map_err(|error| Error::System("cannot start the thread engine", error))?;
        let mut news = tokio::time::interval(NEWS);
        let mut left = LOADING;
        loop {
            tokio::select! {
                result = &mut loaded => return match result {
                    Ok(Ok(model)) => Ok(Some((Engine { scheduler, thread, exited }, model))),
                    Ok(Err(reason)) => Err(Error::Model(reason)),
                    Err(_) => Err(Error::EngineDied),
                },
                _ = news.tick(), if !left.is_zero() => {
                    left = left.saturating_sub(NEWS);
                    tell(&[patience(PATIENCE)]);
                }
                // A SIGHUP waits until there is something to change.
                () = signals.stop() => {
                    info!("stopped while the model was loading");
                    tell(&[NotifyState::Stopping]);
                    return Ok(None);
                }
            }
        }
    }
}

/// The service manager's socket, else one of our own.
fn listen(section: &config::Socket) -> Result<Listener, BindError> {
    let Some(socket) = passed_socket()? else {
        return Listener::bind(&section.path, section.mode_bits().unwrap_or(0o600), section.group.as_deref());
    };
    let listener = Listener::passed(socket)?;
    if listener.path() != section.path {
        let (socket, configured) = (listener.path().display(), section.path.display());
        warn!(%socket, %configured, "socket.path is not where the service manager listens; clients have to use the former");
    }
    let socket = listener.path().display();
    match listener.access() {
        Ok((mode, group)) if Some(mode) != section.mode_bits() || section.group.is_some() && section.group != group => {
            let (mode, group) = (format!("{mode:04o}"), group.unwrap_or_default());
            warn!(%socket, mode, group, "socket.mode and socket.group have no effect: the service manager made the socket");
        }
        Ok(_) => {}
        Err(error) => warn!(%socket, %error, "cannot tell who may connect"),
    }
    Ok(listener)
}

/// Starts to decide how hard the engine computes, unless that is switched off.
fn govern(config: &Config, scheduler: &Scheduler, model: &ModelInfo, chunk: usize) -> Result<Option<Governor>, Error> {
    let section = &config.governor;
    if !section.enabled {
        return Ok(None);
    }
    let handle = scheduler.governor().clone();
    let reserve = section.reserve_mb << 20;
    let need = handle.need().unwrap_or(Need { weights: 0, position: 0, context: model.context, reserve });
    let need = Need { reserve, ..need };
    let settings = Settings {
        threads: model.threads,
        chunk,
        set_point: section.set_point_c,
        cautious: section.duty_without_sensor,
        share: section.share,
        need,
    };
    let cpus = std::thread::available_parallelism().map_or(model.threads, |cpus| cpus.get());
    let started = Governor::start(settings, Sensors::new(Path::new("/"), cpus), handle);
    started.map(Some).map_err(|error| Error::System("cannot start the thread governor", error))
}

fn status(config: &Config, connected: bool) -> &'static str {
    match (config.mqtt.enabled, connected) {
        (false, _) => "serving the socket",
        (true, true) => "serving the socket and MQTT",
        (true, false) => "serving the socket; no connection to the MQTT broker",
    }
}

fn socket_limits(config: &Config) -> Limits {
    Limits {
        connections: config.socket.max_connections,
        header_timeout: Duration::from_secs(config.socket.header_timeout_s),
        body_bytes: config.limits.body_bytes,
        request_timeout: config.limits.request_timeout(),
    }
}

fn session_limits(config: &Config) -> sessions::Limits {
    let config::Sessions { max, max_bytes, idle_s } = config.sessions;
    sessions::Limits { number: max, bytes: max_bytes, idle: Duration::from_secs(idle_s) }
}

/// All but the secrets and what was checked at the start.
fn mqtt_options(config: &Config, model: &ModelInfo, sessions: Arc<Sessions>) -> mqtt::Options {
    let c = &config.mqtt;
    let home_assistant = Some(c.homeassistant.clone()).filter(|prefix| !prefix.is_empty());
    let info = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "model": model.name,
        "context": model.context,
        "kernels": model.kernels,
        "threads": model.threads,
        "kv": model.kv,
        "max_tokens": config.limits.max_tokens,
        "max_packet_bytes": c.max_packet_bytes,
        "stats_s": c.stats_s,
        "share": c.share,
        "queue_depth": config.queue.depth,
        "request_timeout_s": config.limits.request_timeout_s,
    });
    mqtt::Options {
        host: c.host.clone(),
        port: c.port(),
        tls: None,
        client_id: c.client_id(),
        username: c.username.clone(),
        password: None,
        keep_alive: Duration::from_secs(c.keep_alive_s),
        max_packet: c.max_packet_bytes,
        session_expiry_s: c.session_expiry_s,
        topics: Topics::new(&c.base, &c.node()).sharing(c.share.as_deref()).closing(home_assistant.as_deref()),
        spool: config.spool.path.clone(),
        spool_limits: spool::Limits {
            requests: config.spool.max_requests,
            bytes: config.spool.max_bytes,
            keep_s: config.spool.keep_s,
        },
        attempts: config.spool.attempts,
        open: config.queue.depth + 1,
        request_timeout: config.limits.request_timeout(),
        events: c.events,
        batch: Duration::from_millis(c.batch_ms),
        rules: watch::channel(mqtt::Rules::default()).1,
        sessions,
        stats_every: Duration::from_secs(c.stats_s),
        home_assistant,
        model: model.name.clone(),
        info,
    }
}

/// What the operator says of clients and requests.
fn rules(config: &Config) -> Result<mqtt::Rules, ConfigError> {
    Ok(mqtt::Rules { presets: config.mqtt.presets()?, clients: config.mqtt.clients.iter().map(client).collect() })
}

fn client(client: &config::MqttClient) -> mqtt::Client {
    let config::MqttClient { names, packet_bytes, preset } = client.clone();
    mqtt::Client { names, packet_bytes, preset }
}

enum Asked {
    Stop,
    Reload,
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> io::Result<Signals> {
        Ok(Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> Asked {
        tokio::select! {
            _ = self.terminate.recv() => Asked::Stop,
            _ = self.interrupt.recv() => Asked::Stop,
            _ = self.hangup.recv() => Asked::Reload,
        }
    }

    async fn stop(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
