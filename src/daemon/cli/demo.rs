//! `emberd demo`: a daemon on a socket of its own, an MQTT broker inside this process, and a few prompts through both doors.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use clap::Args;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::Packet;
use rumqttc::v5::{Client, Event, MqttOptions};
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};

use super::super::error::Error;

/// For the model to load, and for an answer.
const PATIENCE: Duration = Duration::from_secs(300);

/// Topic level below which the daemon of the demo lives.
const NODE: &str = "emberd/demo";

const SOCKET_PROMPTS: [&str; 2] = [
    "dim the hall lights to 30 and shut the blinds",
    r#"{"bedroom":{"temperature":26.5},"kitchen":{"temperature":21.0}} is it too warm in the bedroom?"#,
];
const MQTT_PROMPTS: [&str; 2] = ["turn off the kitchen lamp please", "who won the world cup in 1990?"];

#[derive(Args)]
pub(super) struct Demo {
    /// End after the prompts instead of staying up
    #[arg(long)]
    once: bool,
    /// The model: a directory or a packed file; the bundled model when absent
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// Most tokens of an answer
    #[arg(long, value_name = "N", default_value_t = 96)]
    max_tokens: u32,
}

pub(super) fn run(demo: &Demo) -> Result<(), Error> {
    let place = Place::new()?;
    let model = demo.model.clone().map_or_else(bundled, Ok)?;
    println!("model     {}", model.display());
    let broker = Broker::start()?;
    println!("broker    127.0.0.1:{} (MQTT 3.1.1), 127.0.0.1:{} (MQTT 5), inside this process", broker.v4, broker.v5);
    let mut daemon = Daemon::start(&place, &model, broker.v5)?;
    println!("socket    {}\n", place.socket().display());

    for prompt in SOCKET_PROMPTS {
        let answer = daemon.ask(&place, prompt, demo.max_tokens)?;
        show("socket", prompt, answer["choices"][0]["message"]["content"].as_str(), &answer["timings"]);
    }
    let mut device = Device::connect(broker.v5)?;
    for (id, prompt) in MQTT_PROMPTS.into_iter().enumerate() {
        let answer = device.ask(id, prompt, demo.max_tokens)?;
        show("MQTT", prompt, answer["text"].as_str(), &answer["timings"]);
    }
    println!("kernels   {}", device.info()?);
    if demo.once {
        return daemon.stop();
    }
    stay(&place, &broker, &mut daemon)
}

/// The model that comes with the repository: below the working directory, or where this binary was built.
fn bundled() -> Result<PathBuf, Error> {
    let places = [Path::new("models/ember-home"), Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/models/ember-home"))];
    let found = places.into_iter().find(|dir| dir.join("model.safetensors").is_file());
    found.map(Path::to_path_buf).ok_or_else(|| {
        Error::Usage(format!(
            "there is no model in {} nor in {}; name one with --model",
            places[0].display(),
            places[1].display()
        ))
    })
}

fn show(door: &str, prompt: &str, answer: Option<&str>, timings: &Value) {
    println!("{door:<9} > {prompt}");
    // Noise may hold what a terminal obeys.
    println!("          {}", answer.unwrap_or("(no answer)").trim().replace(char::is_control, " "));
    let figure = |name: &str| timings[name].as_f64().unwrap_or_default();
    println!(
        "          {:.0} tokens/s prompt, {:.0} tokens/s answer\n",
        figure("prefill_per_s"),
        figure("decode_per_s")
    );
}

fn stay(place: &Place, broker: &Broker, daemon: &mut Daemon) -> Result<(), Error> {
    let (socket, port) = (place.socket(), broker.v4);
    let socket = socket.display();
    println!("\nStill up; Ctrl-C ends it. In another terminal try:\n");
    println!("  {} ask --socket {socket} \"is the kitchen window open?\"", daemon.program.display());
    println!("  echo \"lights off\" | curl --unix-socket {socket} --data-binary @- http://localhost/v1/prompt");
    println!("  mosquitto_sub -p {port} -t '{NODE}/res/#' -v &");
    println!("  mosquitto_pub -p {port} -t {NODE}/req/me/1 -m \"lights off\"");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Error::System("cannot wait for Ctrl-C", error))?;
    runtime
        .block_on(async {
            let mut terminate = signal(SignalKind::terminate())?;
            tokio::select! {
                result = tokio::signal::ctrl_c() => result,
                _ = terminate.recv() => Ok(()),
            }
        })
        .map_err(|error| Error::System("cannot wait for Ctrl-C", error))?;
    daemon.stop()
}

/// A directory of the demo's own, gone at its end.
struct Place {
    dir: PathBuf,
}

impl Place {
    fn new() -> Result<Place, Error> {
        let dir = std::env::temp_dir().join(format!("emberd-demo-{}", std::process::id()));
        let made = std::fs::DirBuilder::new().mode(0o700).create(&dir);
        made.map_err(|error| Error::Failed(format!("{}: {error}", dir.display())))?;
        Ok(Place { dir })
    }

    fn socket(&self) -> PathBuf {
        self.dir.join("emberd.sock")
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Best effort: it lies in the directory for temporary files.
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// rumqttd, for both versions of the protocol.
struct Broker {
    v4: u16,
    v5: u16,
}

impl Broker {
    fn start() -> Result<Broker, Error> {
        let free_port = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|listener| listener.local_addr());
        let failed = |error| Error::System("cannot find a free port", error);
        let (v4, v5) = (free_port().map_err(failed)?, free_port().map_err(failed)?);
        let config = rumqttd::Config {
            router: rumqttd::RouterConfig {
                max_connections: 64,
                max_outgoing_packet_count: 200,
                max_segment_size: 1 << 20,
                max_segment_count: 8,
                ..Default::default()
            },
            v4: Some(HashMap::from([("v4".into(), server("v4", v4))])),
            v5: Some(HashMap::from([("v5".into(), server("v5", v5))])),
            ..Default::default()
        };
        let mut broker = rumqttd::Broker::new(config);
        let thread = std::thread::Builder::new().name("broker".into()).spawn(move || {
            if let Err(error) = broker.start() {
                eprintln!("emberd: the demo's broker ended: {error}");
            }
        });
        thread.map_err(|error| Error::System("cannot start the broker", error))?;
        Ok(Broker { v4: v4.port(), v5: v5.port() })
    }
}

fn server(name: &str, listen: SocketAddr) -> rumqttd::ServerSettings {
    rumqttd::ServerSettings {
        name: name.into(),
        listen,
        tls: None,
        next_connection_delay_ms: 1,
        connections: rumqttd::ConnectionSettings {
            connection_timeout_ms: 10_000,
            max_payload_size: 256 * 1024,
            max_inflight_count: 100,
            auth: None,
            external_auth: None,
            dynamic_filters: true,
        },
    }
}

/// `emberd serve` as a child process.
struct Daemon {
    program: PathBuf,
    child: Child,
}

impl Daemon {
    fn start(place: &Place, model: &Path, port: u16) -> Result<Daemon, Error> {
        let program = std::env::current_exe().map_err(|error| Error::System("cannot find this program", error))?;
        // JSON strings are TOML strings.
        let config = format!(
            "[model]\npath = {}\ncontext = 1024\n[socket]\npath = {}\n[spool]\npath = {}\n[log]\nlevel = \"warn\"\n\
             [mqtt]\nenabled = true\nhost = \"127.0.0.1\"\nport = {port}\nnode = \"demo\"\n",
            json!(model),
            json!(place.socket()),
            json!(place.dir.join("spool.redb")),
        );
        let file = place.dir.join("config.toml");
        std::fs::write(&file, config).map_err(|error| Error::Failed(format!("{}: {error}", file.display())))?;
        // In a process group of its own: a terminal's Ctrl-C is for this process, which then stops the daemon.
        let mut command = Command::new(&program);
        command.arg("serve").arg("--config").arg(&file).stdin(Stdio::null()).process_group(0);
        let child = command.spawn();
        let child = child.map_err(|error| Error::System("cannot start the daemon", error))?;
        let mut daemon = Daemon { program, child };
        let until = Instant::now() + PATIENCE;
        while !place.socket().exists() {
            let ended = daemon.child.try_wait().map_err(|error| Error::System("cannot watch the daemon", error))?;
            if let Some(status) = ended {
                return Err(Error::Failed(format!("the daemon could not start ({status}); its message stands above")));
            }
            if Instant::now() > until {
                return Err(Error::failed("the daemon did not start in time"));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(daemon)
    }

    /// The whole answer, by `emberd ask`.
    fn ask(&self, place: &Place, prompt: &str, max_tokens: u32) -> Result<Value, Error> {
        let output = Command::new(&self.program)
            .args(["ask", "--json", "--temperature", "0", "--max-tokens", &max_tokens.to_string(), "--socket"])
            .arg(place.socket())
            .arg(prompt)
            .stderr(Stdio::inherit())
            .output()
            .map_err(|error| Error::System("cannot run emberd ask", error))?;
        serde_json::from_slice(&output.stdout)
            .map_err(|error| Error::Failed(format!("no answer over the socket ({}): {error}", output.status)))
    }

    fn stop(&mut self) -> Result<(), Error> {
        let pid = nix::unistd::Pid::from_raw(self.child.id().cast_signed());
        // Fails when the daemon has ended already, which is what is wanted.
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        let status = self.child.wait().map_err(|error| Error::System("cannot wait for the daemon", error))?;
        if status.success() { Ok(()) } else { Err(Error::Failed(format!("the daemon ended with {status}"))) }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Only after an error: `stop` has waited for it otherwise, and both calls do nothing then.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A device on the broker, as an ESP32 would be.
struct Device {
    client: Client,
    connection: rumqttc::v5::Connection,
}

impl Device {
    fn connect(port: u16) -> Result<Device, Error> {
        let options = MqttOptions::new("doorbell", "127.0.0.1", port);
        let (client, connection) = Client::new(options, 16);
        let mut device = Device { client, connection };
        device.client.subscribe(format!("{NODE}/res/doorbell/+"), QoS::AtLeastOnce).map_err(Error::failed)?;
        // The daemon is on the broker when its state is `online`.
        device.client.subscribe(format!("{NODE}/state"), QoS::AtLeastOnce).map_err(Error::failed)?;
        device.wait("state", |payload| payload == b"online")?;
        Ok(device)
    }

    fn ask(&mut self, id: usize, prompt: &str, max_tokens: u32) -> Result<Value, Error> {
        let request = json!({"prompt": prompt, "max_tokens": max_tokens, "temperature": 0}).to_string();
        let topic = format!("{NODE}/req/doorbell/{id}");
        self.client.publish(topic, QoS::AtLeastOnce, false, request).map_err(Error::failed)?;
        let answer = self.wait(&format!("res/doorbell/{id}"), |_| true)?;
        serde_json::from_slice(&answer).map_err(Error::failed)
    }

    fn info(&mut self) -> Result<String, Error> {
        self.client.subscribe(format!("{NODE}/info"), QoS::AtLeastOnce).map_err(Error::failed)?;
        let info: Value = serde_json::from_slice(&self.wait("info", |_| true)?).map_err(Error::failed)?;
        Ok(format!("{}, {} threads", info["kernels"].as_str().unwrap_or("unknown"), info["threads"]))
    }

    /// The next message on `topic` that is `wanted`.
    fn wait(&mut self, topic: &str, wanted: impl Fn(&[u8]) -> bool) -> Result<Vec<u8>, Error> {
        let (topic, until) = (format!("{NODE}/{topic}"), Instant::now() + PATIENCE);
        while Instant::now() < until {
            match self.connection.recv_timeout(Duration::from_secs(1)) {
                Ok(Ok(Event::Incoming(Packet::Publish(publish)))) => {
                    if publish.topic == topic && wanted(&publish.payload) {
                        return Ok(publish.payload.to_vec());
                    }
                }
                // The broker may not listen yet.
                Ok(Err(_)) => std::thread::sleep(Duration::from_millis(50)),
                Ok(Ok(_)) | Err(_) => {}
            }
        }
        Err(Error::Failed(format!("nothing came on {topic}")))
    }
}
