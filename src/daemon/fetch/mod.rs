//! A checkpoint from a server that keeps it as Hugging Face does: `<base>/<repository>/resolve/<revision>/<file>`.
//!
//! Where the server answers requests for ranges, the header of the weights is read first, then the text model's tensors and
//! nothing else; what is written is a safetensors file of these. The checksum of the server's file cannot be compared then:
//! every piece has to come from a file with the same entity tag, every tensor is checked when it is loaded, and a packed model
//! has a checksum of its own that does not depend on the way it was fetched.

mod error;
mod file;
mod http;

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use hyper::Uri;
use serde_json::{Map, Value, json};
use tokio::time::Instant;

pub(super) use self::error::FetchError;
pub(super) use self::file::Event;
use self::file::{Line, Remote, Wanted, failed};
use self::http::Http;
use crate::engine::checkpoint::files::{self, INDEX_FILE, MODEL_FILE};
use crate::engine::checkpoint::header::{self, Entry, Header};
use crate::engine::checkpoint::{Config, Problem, names, output};
use crate::engine::template;

/// Where models are by default.
pub(super) const BASE: &str = "https://huggingface.co";

/// The one that emberd was made for.
pub(super) const REPOSITORY: &str = "google/gemma-4-E2B-it-qat-mobile-transformers";

/// Longest file that is no weights; E2B's tokenizer has 32 MB.
const MAX_TEXT: u64 = 256 << 20;

/// What a packed model takes beside the weights.
const PACKED_MORE: u64 = 64 << 20;

/// What is to be fetched.
pub(super) struct Order {
    /// The server, without a slash at its end.
    pub(super) base: String,
    /// `owner/name`.
    pub(super) repository: String,
    /// A branch, tag or commit.
    pub(super) revision: String,
    /// Shown to the server at `base`, and to no other.
    pub(super) token: Option<String>,
    /// File of certificate authorities.
    pub(super) ca: Option<PathBuf>,
    /// Bytes a second.
    pub(super) rate: Option<u64>,
    /// Whole files, even where parts could be had.
    pub(super) whole: bool,
    /// SHA-256 by file name, which have to be right.
    pub(super) checksums: HashMap<String, String>,
}

/// Fetches what `order` says into the directory `dir`, which is a checkpoint afterwards.
///
/// # Errors
///
/// See [`FetchError`]; what came stays in `dir`, for the next time.
pub(super) async fn fetch(order: &Order, dir: &Path, tell: &mut dyn FnMut(Event<'_>)) -> Result<(), FetchError> {
    let home: Uri = order
        .base
        .parse()
        .map_err(|error| FetchError::Server { url: order.base.clone(), reason: format!("{error}") })?;
    let http = Http::new(home, order.ca.as_ref(), order.token.clone())?;
    let line = Line { http, rate: order.rate, due: Instant::now(), answered: false, tell };
    Fetch { order, dir, revision: order.revision.clone(), line }.run().await
}

struct Fetch<'a> {
    order: &'a Order,
    dir: &'a Path,
    /// The commit, once the server has said it: all files are of one.
    revision: String,
    line: Line<'a>,
}

/// A file of weights, and what of it is fetched.
struct Weights {
    name: String,
    remote: Remote,
    wanted: Wanted,
    part: bool,
}

impl Fetch<'_> {
    async fn run(mut self) -> Result<(), FetchError> {
        let needed = |fetch: &Self, name: &str| FetchError::Missing { url: fetch.url(name) };
        let config = self.text("config.json").await?.ok_or_else(|| needed(&self, "config.json"))?;
        // Before gigabytes come: is it a model that can be served at all?
        let text = fs::read_to_string(&config).map_err(failed(&config, "read"))?;
        Config::parse(&text).map_err(|problem| problem.in_file(&config))?;
        self.text("tokenizer.json").await?.ok_or_else(|| needed(&self, "tokenizer.json"))?;
        for name in ["generation_config.json", template::TEMPLATE, template::CONFIG] {
            self.text(name).await?;
        }
        let weights = self.weights().await?;
        self.check_space(&weights)?;
        for weights in &weights {
            let Weights { name, remote, wanted, part } = weights;
            let path = self.dir.join(name);
            self.line.download(remote, wanted, &path).await?;
            let checked = match part {
                false => self.check(name, remote, &path)?,
                true => format!("the text model's part of {:.1} MB", remote.len as f64 / 1e6),
            };
            (self.line.tell)(Event::File { name, bytes: wanted.len(), checked: &checked });
        }
        Ok(())
    }

    fn url(&self, name: &str) -> String {
        format!("{}/{}/resolve/{}/{name}", self.order.base, self.order.repository, self.revision)
    }

    /// What the server has under `name`; held against the checksum that is wanted, if both are known.
    async fn probe(&mut self, name: &str) -> Result<Option<Remote>, FetchError> {
        let url = self.url(name);
        let Some(mut remote) = self.line.probe(&url).await? else {
            // Nor may one of an earlier attempt at something else be taken for it.
            file::forget(&self.dir.join(name));
            return Ok(None);
        };
        if let Some(commit) = &remote.commit {
            self.revision.clone_from(commit);
            remote.url = self.url(name);
        }
        match (&remote.sha256, self.order.checksums.get(name)) {
            (Some(has), Some(wanted)) if has != wanted => Err(FetchError::Server {
                url,
                reason: format!("the server's file has the SHA-256 {has}, not {wanted}"),
            }),
            _ => Ok(Some(remote)),
        }
    }

    /// Fetches the file `name`, which is no weights. `None` when the server has none.
    async fn text(&mut self, name: &str) -> Result<Option<PathBuf>, FetchError> {
        let Some(remote) = self.probe(name).await? else { return Ok(None) };
        if remote.len > MAX_TEXT {
            let reason = format!("{} bytes, expected at most {MAX_TEXT}", remote.len);
            return Err(FetchError::Server { url: remote.url, reason });
        }
        let path = self.dir.join(name);
        self.line.download(&remote, &Wanted::whole(&remote), &path).await?;
        let checked = self.check(name, &remote, &path)?;
        (self.line.tell)(Event::File { name, bytes: remote.len, checked: &checked });
        Ok(Some(path))
    }

    /// Compares a whole file with its checksum; says what that was.
    fn check(&self, name: &str, remote: &Remote, path: &Path) -> Result<String, FetchError> {
        let (expected, whose) = match (self.order.checksums.get(name), &remote.sha256) {
            (Some(sum), _) => (sum, "given"),
            (None, Some(sum)) => (sum, "server's"),
            (None, None) => return Ok("no checksum known".to_owned()),
        };
        let found = file::sha256(path)?;
        if found == *expected {
            return Ok(format!("as the {whose} SHA-256 says"));
        }
        file::forget(path);
        Err(FetchError::Checksum { name: name.to_owned(), expected: expected.clone(), found })
    }

    /// The files of weights, and what of each is wanted.
    async fn weights(&mut self) -> Result<Vec<Weights>, FetchError> {
        let (mut shards, index) = match self.probe(MODEL_FILE).await? {
            Some(remote) => (vec![(MODEL_FILE.to_owned(), remote)], None),
            None => {
                let missing = FetchError::Missing { url: self.url(MODEL_FILE) };
                let path = self.text(INDEX_FILE).await?.ok_or(missing)?;
                let text = fs::read_to_string(&path).map_err(failed(&path, "read"))?;
                let index = files::parse_index(&text).map_err(|problem| problem.in_file(&path))?;
                (Vec::new(), Some((path, index)))
            }
        };
        if let Some((path, index)) = &index {
            let prefix = names::prefix(|name| index.contains_key(name));
            let text: BTreeMap<_, _> = index.iter().filter(|(name, _)| names::is_text(prefix, name)).collect();
            let mut named: Vec<&String> = text.values().copied().collect();
            named.sort_unstable();
            named.dedup();
            for name in named {
                let remote = self.probe(name).await?.ok_or_else(|| FetchError::Missing { url: self.url(name) })?;
                shards.push((name.clone(), remote));
            }
            fs::write(path, json!({"weight_map": text}).to_string()).map_err(failed(path, "write"))?;
        }
        let mut weights = Vec::new();
        for (name, remote) in shards {
            let part = !self.order.whole && remote.in_pieces();
            let wanted = match part {
                false => Wanted::whole(&remote),
                true => {
                    let header = self.header(&name, &remote).await?;
                    let prefix = match &index {
                        Some((_, index)) => names::prefix(|name| index.contains_key(name)),
                        None => names::prefix(|name| header.entries.contains_key(name)),
                    };
                    text_part(header, prefix).map_err(failed(&self.dir.join(&name), "plan"))?
                }
            };
            weights.push(Weights { name, remote, wanted, part });
        }
        Ok(weights)
    }

    /// The header of a file of weights, by two requests for ranges.
    async fn header(&mut self, name: &str, remote: &Remote) -> Result<Header, FetchError> {
        let refused = |problem: Problem| problem.in_file(Path::new(name));
        let mut start = self.line.bytes(remote, 0..remote.len.min(8)).await?;
        let prefix = start.first_chunk().copied().unwrap_or([u8::MAX; 8]);
        let len = header::length(prefix, remote.len).map_err(refused)?;
        start.extend(self.line.bytes(remote, 8..len).await?);
        Ok(header::parse_start(&start, remote.len).map_err(refused)?)
    }

    /// Whether there is room for what is still to come, and for packing it.
    fn check_space(&self, weights: &[Weights]) -> Result<(), FetchError> {
        let mut needed = PACKED_MORE;
        for Weights { name, wanted, .. } in weights {
            let path = self.dir.join(name);
            let there = [path.with_added_extension("partial"), path].iter().find_map(|path| fs::metadata(path).ok());
            // A server can say any length.
            let both = wanted.len().saturating_mul(2);
            needed = needed.saturating_add(both - there.map_or(0, |found| found.len().min(wanted.len())));
        }
        let free = output::free_space(&self.dir.join(MODEL_FILE)).map_err(failed(self.dir, "measure"))?;
        let mega = |bytes: u64| bytes / 1_000_000;
        match needed <= free {
            true => Ok(()),
            false => Err(FetchError::Space { path: self.dir.to_owned(), needed: mega(needed) + 1, free: mega(free) }),
        }
    }
}

/// The text model's tensors of a file, as a file of their own.
fn text_part(header: Header, prefix: &str) -> io::Result<Wanted> {
    let mut text: Vec<(String, Entry)> =
        header.entries.into_iter().filter(|(name, _)| names::is_text(prefix, name)).collect();
    text.sort_unstable_by(|(a, x), (b, y)| (x.start, x.len, a).cmp(&(y.start, y.len, b)));
    let metadata = header.metadata.into_iter().collect::<BTreeMap<_, _>>();
    let metadata: Map<String, Value> = metadata.into_iter().map(|(key, text)| (key, text.into())).collect();
    let mut wanted = Wanted::default();
    let entries =
        text.iter().map(|(name, entry)| (name.as_str(), entry.dtype.name(), entry.shape.as_slice(), entry.len as u64));
    output::header(Value::Object(metadata), 8, entries, &mut wanted.head)?;
    for (_, entry) in &text {
        let range: Range<u64> = entry.start as u64..(entry.start + entry.len) as u64;
        match wanted.ranges.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ if range.is_empty() => {}
            _ => wanted.ranges.push(range),
        }
    }
    Ok(wanted)
}
