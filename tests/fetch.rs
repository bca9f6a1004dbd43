//! `emberd fetch` against a server of the test's own: what comes is the same model, whatever the line does meanwhile.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use common::binary::{emberd, run, stdout};
use emberd::engine::checkpoint::header;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

const REPO: &str = "someone/tiny-e2b";
const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What the server does.
#[derive(Clone, Default)]
struct Manners {
    no_ranges: bool,
    no_tags: bool,
    /// Says this SHA-256 of weights instead of the right one.
    wrong_sum: bool,
    /// Sends weights from another server, to which this leads.
    elsewhere: Option<u16>,
    /// Wants this token.
    token: Option<&'static str>,
    /// Breaks off every answer after so many bytes of its body.
    cut: Option<usize>,
    /// Answers so many requests with 503 first.
    busy: usize,
    /// Says that the weights are so long that twice as much cannot be counted.
    vast: bool,
    /// Serves another file of weights from the so manieth request for ranges of it on.
    changes_at: Option<usize>,
    /// From then on it is shorter than what is asked for.
    shrinks: bool,
}

/// A request as it came: path, file, range, header lines.
#[derive(Clone)]
struct Seen {
    path: String,
    file: String,
    range: Option<(usize, usize)>,
    head: String,
}

struct Server {
    port: u16,
    manners: Arc<Mutex<Manners>>,
    seen: Arc<Mutex<Vec<Seen>>>,
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Server {
    fn start(files: BTreeMap<String, Vec<u8>>, manners: Manners) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (manners, seen) = (Arc::new(Mutex::new(manners)), Arc::new(Mutex::new(Vec::new())));
        let (files, ways, log) = (Arc::new(files), Arc::clone(&manners), Arc::clone(&seen));
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (files, ways, log) = (Arc::clone(&files), Arc::clone(&ways), Arc::clone(&log));
                thread::spawn(move || answer(stream, &files, &ways, &log));
            }
        });
        Server { port, manners, seen }
    }

    /// The same behind TLS: what comes at the new port is decrypted and passed on.
    fn encrypted(&self, certificate: &Path, key: &Path) -> u16 {
        let chain = CertificateDer::pem_file_iter(certificate).unwrap().map(Result::unwrap).collect();
        let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let key = PrivateKeyDer::from_pem_file(key).unwrap();
        let config = config.with_no_client_auth().with_single_cert(chain, key).unwrap();
        let (acceptor, plain) = (TlsAcceptor::from(Arc::new(config)), self.port);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        listener.set_nonblocking(true).unwrap();
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                while let Ok((stream, _)) = listener.accept().await {
                    let acceptor = acceptor.clone();
                    tokio::spawn(async move {
                        let mut stream = acceptor.accept(stream).await?;
                        let mut behind = tokio::net::TcpStream::connect(("127.0.0.1", plain)).await?;
                        tokio::io::copy_bidirectional(&mut stream, &mut behind).await
                    });
                }
            });
        });
        port
    }

    fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// The body bytes that went out of the weights, by range.
    fn ranges(&self) -> Vec<(usize, usize)> {
        self.seen().iter().filter(|seen| seen.file == "model.safetensors").filter_map(|seen| seen.range).collect()
    }
}

/// One request and its answer; the connection is closed behind it. Nothing is told of a client that has gone.
fn answer(
    stream: TcpStream,
    files: &BTreeMap<String, Vec<u8>>,
    ways: &Mutex<Manners>,
    log: &Mutex<Vec<Seen>>,
) -> Option<()> {
    let mut lines = BufReader::new(stream.try_clone().ok()?).lines();
    let path = lines.next()?.ok()?.split(' ').nth(1)?.to_owned();
    let head: Vec<String> = lines.map_while(Result::ok).take_while(|line| !line.is_empty()).collect();
    let file = path.split('?').next()?.rsplit('/').next()?.to_owned();
    let value = |name: &str| head.iter().find_map(|line| line.strip_prefix(&format!("{name}: ")).map(str::to_owned));
    let range = value("range").and_then(|range| {
        let (first, last) = range.strip_prefix("bytes=")?.split_once('-')?;
        Some((first.parse().ok()?, last.parse::<usize>().ok()? + 1))
    });
    let weights = file.ends_with(".safetensors");
    let (manners, asked) = {
        let (mut manners, mut log) = (ways.lock().unwrap(), log.lock().unwrap());
        log.push(Seen { path: path.clone(), file: file.clone(), range, head: head.join("\n") });
        let now = manners.clone();
        manners.busy = manners.busy.saturating_sub(1);
        (now, log.iter().filter(|seen| seen.file == file).count())
    };
    let mut out = &stream;
    let mut plain = |status: &str, more: &str| write!(out, "HTTP/1.1 {status}\r\ncontent-length: 0\r\n{more}\r\n").ok();
    if manners.busy > 0 {
        return plain("503 Service Unavailable", "");
    }
    if manners.token.is_some_and(|token| value("authorization") != Some(format!("Bearer {token}"))) {
        return plain("401 Unauthorized", "");
    }
    let resolves = format!("/{REPO}/resolve/");
    let Some(data) = files.get(&file).filter(|_| path.starts_with(&resolves) || path.starts_with("/blob/")) else {
        return plain("404 Not Found", "");
    };
    let mut data = data.clone();
    if weights && manners.changes_at.is_some_and(|at| asked > at) {
        *data.last_mut()? ^= 1;
        if manners.shrinks {
            data.truncate(100);
        }
    }
    let sum = if manners.wrong_sum && weights { "0".repeat(64) } else { hex(&data) };
    if let (Some(port), true) = (manners.elsewhere, weights) {
        let more = format!(
            "location: http://127.0.0.1:{port}/blob/{file}?Signature=secret\r\nx-linked-etag: \"{sum}\"\r\nx-repo-commit: {COMMIT}\r\n"
        );
        return plain("302 Found", &more);
    }
    let tag = if manners.no_tags { String::new() } else { format!("etag: \"{sum}\"\r\n") };
    let len = if manners.vast && weights { 1 << 63 } else { data.len() as u64 };
    let head = match range.filter(|_| !manners.no_ranges) {
        Some((first, end)) if first < data.len() => {
            let end = end.min(data.len());
            data = data[first..end].to_vec();
            format!("206 Partial Content\r\ncontent-range: bytes {first}-{}/{len}\r\n", end - 1)
        }
        Some(_) => return plain("416 Range Not Satisfiable", ""),
        None => "200 OK\r\n".to_owned(),
    };
    write!(out, "HTTP/1.1 {head}{tag}x-repo-commit: {COMMIT}\r\ncontent-length: {}\r\n\r\n", data.len()).ok()?;
    let sent = manners.cut.filter(|_| weights).map_or(data.len(), |cut| cut.min(data.len()));
    out.write_all(&data[..sent]).ok()
}

/// A checkpoint as it is published: one file that has images and sounds, too.
struct Published {
    dir: tempfile::TempDir,
    files: BTreeMap<String, Vec<u8>>,
}

impl Published {
    fn new() -> Published {
        let dir = tempfile::tempdir().unwrap();
        let model = dir.path().join("tiny-e2b");
        stdout(run(emberd().args(["debug", "synth", "--shape", "tiny-e2b", "--out"]).arg(&model)));
        with_other_modalities(&model.join("model.safetensors"));
        let files = fs::read_dir(&model).unwrap().map(|entry| {
            let path = entry.unwrap().path();
            (path.file_name().unwrap().to_str().unwrap().to_owned(), fs::read(&path).unwrap())
        });
        let files = files.collect();
        Published { dir, files }
    }

    fn serve(&self, manners: Manners) -> Server {
        Server::start(self.files.clone(), manners)
    }

    /// What `emberd pack` makes of the whole directory.
    fn packed(&self) -> Vec<u8> {
        let (model, file) = (self.dir.path().join("tiny-e2b"), self.dir.path().join("whole.ember"));
        stdout(run(emberd().args(["pack", "--force"]).args([&model, &file])));
        fs::read(file).unwrap()
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn command(&self, server: &Server) -> Command {
        let mut command = emberd();
        command.args(["fetch", REPO, "--base-url", &format!("http://127.0.0.1:{}", server.port), "--to"]);
        command.arg(self.at("got.ember"));
        command
    }

    fn fetch(&self, server: &Server, more: &[&str]) -> Output {
        run(self.command(server).args(more))
    }

    fn refused(&self, server: &Server, more: &[&str], words: &[&str]) {
        let output = self.fetch(server, more);
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && words.iter().all(|word| said.contains(word)), "{more:?}: {said}");
        assert!(!self.at("got.ember").exists(), "{more:?}");
    }

    /// The model came, whole, and nothing else is left.
    fn got(&self, output: Output) -> String {
        let said = stdout(output);
        assert!(fs::read(self.at("got.ember")).unwrap() == self.packed(), "another model than that of the directory");
        assert!(!self.at(".got.ember.fetch").exists());
        fs::remove_file(self.at("got.ember")).unwrap();
        said
    }
}

/// Puts tensors of images and sounds between those of the text model.
fn with_other_modalities(file: &Path) {
    let bytes = fs::read(file).unwrap();
    let found = header::parse(&bytes).unwrap();
    let mut names: Vec<_> = found.entries.keys().cloned().collect();
    names.sort_by_key(|name| (found.entries[name].start, name.clone()));
    let (mut head, mut data) = (Map::new(), Vec::new());
    for (number, name) in names.iter().enumerate() {
        if number % 40 == 0 {
            let tower = ["vision_tower", "audio_tower"][number / 40 % 2];
            let entry = json!({"dtype": "U8", "shape": [5000], "data_offsets": [data.len(), data.len() + 5000]});
            head.insert(format!("model.{tower}.layers.{number}.weight"), entry);
            data.extend([0xee; 5000]);
        }
        let entry = &found.entries[name];
        let end = data.len() + entry.len;
        let place = json!({"dtype": entry.dtype.name(), "shape": entry.shape, "data_offsets": [data.len(), end]});
        head.insert(name.clone(), place);
        data.extend(&bytes[entry.start..entry.start + entry.len]);
    }
    let head = Value::Object(head).to_string();
    fs::write(file, [&(head.len() as u64).to_le_bytes(), head.as_bytes(), &data].concat()).unwrap();
}

#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "needs no architecture")]
fn the_text_model_comes_and_nothing_else_leaves_the_server() {
    let published = Published::new();
    let server = published.serve(Manners::default());
    let said = published.got(published.fetch(&server, &[]));
    assert!(said.contains("SHA-256"), "{said}");
    let weights = &published.files["model.safetensors"];
    let others = header::parse(weights).unwrap().entries;
    let others: Vec<_> = others.iter().filter(|(name, _)| name.contains("_tower")).map(|(_, entry)| entry).collect();
    assert!(others.len() > 3);
    for (first, end) in server.ranges() {
        assert!(others.iter().all(|entry| end <= entry.start || first >= entry.start + entry.len), "{first}..{end}");
    }
    // All files are of the commit that the first answer named.
    let seen = server.seen();
    assert!(seen.len() > 6);
    let pinned = format!("/{REPO}/resolve/{COMMIT}/");
    assert!(seen[0].path.contains("/resolve/main/") && seen[1..].iter().all(|seen| seen.path.starts_with(&pinned)));

    // The same model by its own checksum; another one is refused.
    let sum = said.split("SHA-256 ").nth(1).unwrap()[..64].to_owned();
    published.got(published.fetch(&server, &["--expect", &sum]));
    published.refused(&server, &["--expect", &"0".repeat(64)], &["got.ember", &sum, "deleted"]);
    fs::write(published.at("got.ember"), "there").unwrap();
    let output = published.fetch(&server, &[]);
    assert!(String::from_utf8(output.stderr).unwrap().contains("--force"));
    assert_eq!(fs::read_to_string(published.at("got.ember")).unwrap(), "there");
}

#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "needs no architecture")]
fn a_line_that_breaks_is_gone_on_with() {
    let published = Published::new();
    let weights = published.files["model.safetensors"].len();
    // Every answer is cut: it comes in so many pieces, none of them twice.
    let cut = weights / 9;
    let server = published.serve(Manners { cut: Some(cut), busy: 2, ..Manners::default() });
    published.got(published.fetch(&server, &["--whole"]));
    let asked: usize = server.ranges().iter().map(|(first, end)| (end - first).min(cut)).sum();
    assert!((weights..weights + 10).contains(&asked), "{asked} bytes of {weights}");
    published.got(published.fetch(&server, &[]));

    // The command is killed in the middle, and the next one goes on.
    server.manners.lock().unwrap().cut = None;
    let before = server.seen().len();
    let mut child = published.command(&server).args(["--whole", "--limit-rate", "1M"]).spawn().unwrap();
    let partial = published.at(".got.ember.fetch/model.safetensors.partial");
    let until = Instant::now() + Duration::from_secs(60);
    while fs::metadata(&partial).map_or(0, |found| found.len()) < 100_000 {
        assert!(Instant::now() < until, "nothing comes");
        thread::sleep(Duration::from_millis(10));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let there = fs::metadata(&partial).unwrap().len() as usize;
    assert!(there < weights, "the rate has no effect: {there} of {weights} bytes");
    published.got(published.fetch(&server, &["--whole"]));
    let starts: Vec<usize> = server.ranges().iter().map(|range| range.0).collect();
    assert!(starts.contains(&there), "{there}: {starts:?}");
    // Small files that are there are not asked for again but for a byte.
    let again =
        server.seen()[before..].iter().filter(|seen| seen.file == "config.json" && seen.range.unwrap().1 > 1).count();
    assert_eq!(again, 1);
}

#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "needs no architecture")]
fn what_is_not_the_file_is_refused() {
    let published = Published::new();
    let server = published.serve(Manners { wrong_sum: true, ..Manners::default() });
    published.refused(&server, &["--whole"], &["model.safetensors", "SHA-256", "deleted"]);
    assert!(!published.at(".got.ember.fetch/model.safetensors").exists());
    // More than there is room for, and more than can be counted.
    *server.manners.lock().unwrap() = Manners { vast: true, ..Manners::default() };
    published.refused(&server, &["--whole"], &["MB more", "MB free", "--work-dir"]);
    *server.manners.lock().unwrap() = Manners::default();

    // Checksums of one's own, in sha256sum's form.
    let sums = published.at("sums");
    let list = |weights: &str| {
        let sum = |name: &str| format!("{}  ./{name}\n", hex(&published.files[name]));
        fs::write(&sums, format!("{}{weights}  model.safetensors\n", sum("config.json"))).unwrap();
    };
    list(&"1".repeat(64));
    published.refused(&server, &["--checksums", sums.to_str().unwrap()], &["--whole", "--expect"]);
    let whole = ["--whole", "--checksums", sums.to_str().unwrap()];
    published.refused(&server, &whole, &["model.safetensors", "1111", "not"]);
    list(&hex(&published.files["model.safetensors"]));
    published.got(published.fetch(&server, &whole));

    // A file that becomes another one while it is fetched.
    let server = published.serve(Manners { changes_at: Some(3), ..Manners::default() });
    published.refused(&server, &[], &["model.safetensors", "changed on the server"]);
    // And between two attempts: what is there of the old one is not used.
    server.manners.lock().unwrap().changes_at = None;
    published.got(published.fetch(&server, &[]));
}

#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "needs no architecture")]
fn what_is_there_of_another_version_is_not_used() {
    let published = Published::new();
    // Everything of the version before came, a file among it that there is none of now, but it could not be packed.
    let mut before = published.files.clone();
    *before.get_mut("model.safetensors").unwrap().last_mut().unwrap() ^= 1;
    before.insert("tokenizer.json".into(), b"{}".to_vec());
    let gone = ["chat_template.jinja", "generation_config.json"].into_iter().find(|name| !before.contains_key(*name));
    let gone = gone.expect("a file that is not published");
    before.insert(gone.into(), published.files["config.json"].clone());
    published.refused(&Server::start(before, Manners::default()), &[], &["tokenizer.json"]);
    let work = published.at(".got.ember.fetch");
    assert!(work.join("model.safetensors").exists() && work.join(gone).exists());
    // The next version is begun with, and cut.
    let server = published.serve(Manners::default());
    let mut child = published.command(&server).args(["--limit-rate", "1M"]).spawn().unwrap();
    let until = Instant::now() + Duration::from_secs(60);
    while fs::metadata(work.join("model.safetensors.partial")).map_or(0, |found| found.len()) < 100_000 {
        assert!(Instant::now() < until, "nothing comes");
        thread::sleep(Duration::from_millis(10));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!work.join(gone).exists());
    published.got(published.fetch(&server, &[]));
}

#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "needs no architecture")]
fn a_server_without_ranges_or_tags_sends_whole_files() {
    let published = Published::new();
    let server = published.serve(Manners { no_ranges: true, ..Manners::default() });
    published.got(published.fetch(&server, &[]));
    let server = published.serve(Manners { no_tags: true, ..Manners::default() });
    let output = published.fetch(&server, &[]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("no checksum known"));
    published.got(output);
    // Nothing can be gone on with there: an attempt begins again, and they are counted.
    server.manners.lock().unwrap().busy = 100;
    published.refused(&server, &[], &["config.json", "503"]);
}

#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "needs no architecture")]
fn a_token_is_shown_to_its_server_alone() {
    let published = Published::new();
    let other = published.serve(Manners::default());
    let server =
        published.serve(Manners { token: Some("hf_secret"), elsewhere: Some(other.port), ..Manners::default() });
    published.refused(&server, &[], &["401", "--token-file", "terms"]);
    let token = published.at("token");
    fs::write(&token, "hf_secret\n").unwrap();
    let with = ["--token-file", token.to_str().unwrap()];
    fs::set_permissions(&token, fs::Permissions::from_mode(0o644)).unwrap();
    published.refused(&server, &with, &["token", "chmod 600"]);
    fs::set_permissions(&token, fs::Permissions::from_mode(0o600)).unwrap();
    published.got(published.fetch(&server, &with));
    assert!(!other.seen().is_empty() && other.seen().iter().all(|seen| !seen.head.contains("hf_secret")));
    // A token is not sent where it can be read on the way.
    let output = run(emberd()
        .args(["fetch", "--base-url", "http://mirror.invalid"])
        .args(with)
        .arg("--to")
        .arg(published.at("x.ember")));
    assert!(String::from_utf8_lossy(&output.stderr).contains("without TLS"), "{output:?}");

    published.refused(&published.serve(Manners::default()), &["--revision", "../x"], &["--revision"]);
    let output = run(published.command(&published.serve(Manners::default())).arg("--name").arg("x"));
    assert_eq!(output.status.code(), Some(2));
    let nobody = Server::start(BTreeMap::new(), Manners::default());
    published.refused(&nobody, &[], &["config.json", "no such file", "--base-url"]);
}

#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "needs no architecture")]
fn a_full_disk_is_said_and_gone_on_from() {
    let published = Published::new();
    let server = published.serve(Manners::default());
    // Files may not grow further, in blocks of 512 bytes; once the signal is ignored, that is an error.
    let (blocks, whole) = (900, published.command(&server));
    let script = format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$@\"");
    let output = run(Command::new("sh").args(["-c", &script, "sh"]).arg(whole.get_program()).args(whole.get_args()));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        !output.status.success() && said.contains("model.safetensors.partial") && said.contains("goes on"),
        "{said}"
    );
    assert_eq!(fs::metadata(published.at(".got.ember.fetch/model.safetensors.partial")).unwrap().len(), blocks * 512);
    published.got(published.fetch(&server, &[]));
}

/// As a server says it with 416: the file is another one by now, and shorter than what is missing of it.
#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "needs no architecture")]
fn a_range_that_is_not_there_any_more_is_a_changed_file() {
    let published = Published::new();
    let server = published.serve(Manners { changes_at: Some(3), shrinks: true, ..Manners::default() });
    published.refused(&server, &[], &["model.safetensors", "changed on the server", "again"]);
    // The same command again gets it.
    *server.manners.lock().unwrap() = Manners::default();
    published.got(published.fetch(&server, &[]));

    // Complete before the command was killed: nothing behind the end is asked for, so that there is no 416.
    let partial = published.at(".got.ember.fetch");
    let mut child = published.command(&server).args(["--whole", "--limit-rate", "1M"]).spawn().unwrap();
    let until = Instant::now() + Duration::from_secs(60);
    // With a byte of it, the server has noted the request.
    while fs::metadata(partial.join("model.safetensors.partial")).map_or(0, |data| data.len()) == 0 {
        assert!(Instant::now() < until, "nothing comes");
        thread::sleep(Duration::from_millis(5));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    fs::write(partial.join("model.safetensors.partial"), &published.files["model.safetensors"]).unwrap();
    let before = server.seen().len();
    published.got(published.fetch(&server, &["--whole"]));
    let asked: Vec<_> =
        server.seen()[before..].iter().filter(|seen| seen.file == "model.safetensors").cloned().collect();
    assert!(
        asked.iter().all(|seen| seen.range == Some((0, 1))),
        "{:?}",
        asked.iter().map(|s| s.range).collect::<Vec<_>>()
    );
}

/// Several files of weights and their index: of each, only what belongs to the text model; one without any is left out.
#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "needs no architecture")]
fn shards_come_as_far_as_they_are_text() {
    let published = Published::new();
    let whole = published.files["model.safetensors"].clone();
    let found = header::parse(&whole).unwrap();
    let mut names: Vec<_> = found.entries.keys().cloned().collect();
    names.sort_by_key(|name| (found.entries[name].start, name.clone()));
    // Every third tensor into another file; all sounds into a fourth.
    let shard = |at: usize, name: &str| if name.contains("audio_tower") { 3 } else { at % 3 };
    let file = |number: usize| format!("model-{:05}-of-00004.safetensors", number + 1);
    let (mut heads, mut bodies) = (vec![Map::new(); 4], vec![Vec::new(); 4]);
    let mut index = Map::new();
    for (at, name) in names.iter().enumerate() {
        let (entry, number) = (&found.entries[name], shard(at, name));
        let start = bodies[number].len();
        bodies[number].extend(&whole[entry.start..entry.start + entry.len]);
        let place =
            json!({"dtype": entry.dtype.name(), "shape": entry.shape, "data_offsets": [start, bodies[number].len()]});
        heads[number].insert(name.clone(), place);
        index.insert(name.clone(), file(number).into());
    }
    let mut files = published.files.clone();
    files.remove("model.safetensors");
    files
        .insert("model.safetensors.index.json".into(), json!({"metadata": {}, "weight_map": index}).to_string().into());
    for (number, (head, body)) in heads.into_iter().zip(bodies).enumerate() {
        let head = Value::Object(head).to_string();
        let bytes = [&(head.len() as u64).to_le_bytes(), head.as_bytes(), &body].concat();
        files.insert(file(number), bytes);
    }
    let server = Server::start(files.clone(), Manners::default());
    published.got(published.fetch(&server, &[]));
    let mut from = [0; 4];
    for seen in server.seen() {
        let Some(number) = (0..4).find(|number| file(*number) == seen.file) else { continue };
        let entries = header::parse(&files[&seen.file]).unwrap().entries;
        let (first, end) = seen.range.unwrap();
        from[number] += end - first;
        for (name, entry) in entries.iter().filter(|(name, _)| name.contains("_tower")) {
            assert!(end <= entry.start || first >= entry.start + entry.len, "{name}: {first}..{end} of {}", seen.file);
        }
    }
    assert!(from[..3].iter().all(|bytes| *bytes > 1000) && from[3] == 0, "{from:?}");
    // A shard that is named and not there.
    files.remove(&file(1));
    let server = Server::start(files, Manners::default());
    published.refused(&server, &[], &[&file(1), "no such file"]);
}

/// TLS with an authority of one's own; neither an unknown authority nor another name is accepted, and a redirect out of TLS is not
/// followed.
#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "needs no architecture")]
fn servers_have_to_show_a_certificate() {
    let published = Published::new();
    let openssl = |line: &str| {
        let output = Command::new("openssl").current_dir(published.dir.path()).args(line.split(' ')).output();
        let output = output.expect("openssl is needed for this test (Debian package openssl)");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2";
    openssl(&format!(
        "req -x509 {key} -keyout ca.key -out ca.pem -subj /CN=authority -addext basicConstraints=critical,CA:TRUE"
    ));
    let sign = |name: &str, address: &str| {
        openssl(&format!("req -new {key} -keyout {name}.key -out {name}.csr -subj /CN={name}"));
        fs::write(published.at("names"), format!("subjectAltName=IP:{address}\n")).unwrap();
        openssl(&format!(
            "x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile names -out {name}.pem"
        ));
    };
    sign("here", "127.0.0.1");
    sign("elsewhere", "127.0.0.2");
    let server = published.serve(Manners { token: Some("hf_secret"), ..Manners::default() });
    let token = published.at("token");
    fs::write(&token, "hf_secret").unwrap();
    fs::set_permissions(&token, fs::Permissions::from_mode(0o600)).unwrap();
    let fetch = |port: u16, ca: Option<&str>| {
        let mut command = emberd();
        command.args(["fetch", REPO, "--base-url", &format!("https://127.0.0.1:{port}"), "--to"]);
        command.arg(published.at("got.ember")).arg("--token-file").arg(&token);
        if let Some(ca) = ca {
            command.arg("--ca-file").arg(published.at(ca));
        }
        run(&mut command)
    };
    let port = server.encrypted(&published.at("here.pem"), &published.at("here.key"));
    published.got(fetch(port, Some("ca.pem")));
    let refused = |output: Output, word: &str| {
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && said.contains(word), "{word}: {said}");
    };
    let before = server.seen().len();
    refused(fetch(port, None), "UnknownIssuer");
    let other = server.encrypted(&published.at("elsewhere.pem"), &published.at("elsewhere.key"));
    refused(fetch(other, Some("ca.pem")), "not valid for name");
    refused(fetch(port, Some("token")), "token");
    assert_eq!(server.seen().len(), before, "nothing was asked without a good certificate");
    let plain = published.serve(Manners::default());
    server.manners.lock().unwrap().elsewhere = Some(plain.port);
    refused(fetch(port, Some("ca.pem")), "without TLS");
    assert!(plain.seen().is_empty());
}
